"""`python -m benchmarks`: every command on tiny sizes, and what it does with peers that are wrong or absent."""

import json
import math
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import (
    admission,
    breakdown,
    ceilings,
    conditions,
    fresh,
    large,
    layers,
    libraries,
    nets,
    one_layer,
    process,
    report,
    update_steps,
    width,
    wire,
)
from benchmarks.__main__ import COMMANDS, main
from benchmarks.footprint import saved_bytes
from benchmarks.libraries import Peer, dense, ours
from benchmarks.libraries.candidate import Candidate, largest_error
from benchmarks.options import RESULTS, Layers, Updates, Wire, command_line
from benchmarks.readme import section, tables, updated
from benchmarks.shapes import SHAPES, Shape, conv, linear
from benchmarks.speed import BreakEven, speeds_against_dense
from benchmarks.timing import Timing, interleaved
from benchmarks.twin import disagreement

ROOT = Path(__file__).resolve().parents[1]
MACHINE = {"processor", "cores", "caches", "instruction_set", "python", "versions", "commit"}
TIMING = {"median", "lower_quartile", "upper_quartile", "rounds"}
UNDER_LIMITS = pytest.mark.skipif(
    "SPARSEKERN_SANITIZE" in os.environ, reason="AddressSanitizer's own memory does not fit under a process's limits"
)


@pytest.fixture(autouse=True)
def unchanged_process(monkeypatch):
    """The commands change their process: here only the number of threads, and that is put back."""
    monkeypatch.setattr(process, "prepare", lambda threads: None)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def known_ceilings(monkeypatch):
    levels = {"L1": 100.0, "L2": 58.0, "L3": 40.0, "DRAM": 12.5}
    entry = {"threads": 1, "fma_gflops": 117.0, "load_fma_gflops": levels, "copy_gbps": 13.0}
    entry["read_gbps"] = {level: 2 * value for level, value in levels.items()}
    monkeypatch.setattr(ceilings, "measure", lambda threads, caches: {"vector_bytes": 64, "entries": [entry]})


@pytest.fixture
def tiny_layers(monkeypatch):
    monkeypatch.setattr(
        layers, "SHAPES", (linear(16, 32, 24), conv(8, 3, 6, 8), linear(8, 40, 40, lowest=80, is_large=True))
    )


def run(*arguments):
    assert main([str(each) for each in arguments]) == 0


def read(folder, name, keys):
    """A command's JSON, once its page and what they have in common are as they should be."""
    result = json.loads((folder / f"{name}.json").read_text())
    assert {"benchmark", "command", "date", "machine", "threads", "seed", *keys} <= result.keys()
    assert result["machine"].keys() >= MACHINE
    page = (folder / f"{name}.md").read_text()
    flat = " ".join(page.split())
    assert result["machine"]["processor"] in flat
    assert f"at commit {result['machine']['commit']}" in flat
    assert f"torch {torch.__version__}" in flat
    assert f"`{result['command']}`" in flat
    assert tables(page)
    return result, page


def assert_png(path):
    """The file is a picture of a size that can be read, whole and not of one colour."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, place = [], 8
    while place < len(data):
        (length,), kind = struct.unpack(">I", data[place : place + 4]), data[place + 4 : place + 8]
        body = data[place + 8 : place + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack(">I", data[place + 8 + length : place + 12 + length])[0]
        chunks.append((kind, body))
        place += 12 + length
    assert [chunks[0][0], chunks[-1][0]] == [b"IHDR", b"IEND"]
    columns, rows = struct.unpack(">II", chunks[0][1][:8])
    assert min(columns, rows) > 300
    pixels = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    assert len(pixels) == rows * (1 + 4 * columns)
    assert len(set(pixels)) > 50


# The commands


def test_layers(tmp_path, tiny_layers, known_ceilings):
    pytest.importorskip("matplotlib")
    run("layers", "--rounds", 2, "--sparsity", 50, 90, 95, "--peers", "torch-csr", "--output", tmp_path)
    result, page = read(tmp_path, "layers_1_threads", {"dtype", "rounds", "ceilings", "notes", "layers"})
    assert [layer["kind"] for layer in result["layers"]] == ["linear", "conv", "linear"]
    for layer in result["layers"]:
        assert layer["layer"] in page
        candidates = {(row["candidate"], row["sparsity"]) for row in layer["results"]}
        sparsities = (50, 90, 95) if layer is not result["layers"][2] else (90, 95)
        assert {(ours.NAME, sparsity) for sparsity in sparsities} <= candidates
        assert ((ours.NAME, 50) in candidates) == (50 in sparsities)
        assert sum(row["library"] == "dense" for row in layer["results"]) == 2
        assert (("torch CSR", 90) in candidates) == (layer["kind"] == "linear")
        assert ours.NAME in layer["break_even"]
        for row in layer["results"]:
            assert row["ms"].keys() == TIMING
            assert 0 < row["ms"]["lower_quartile"] <= row["ms"]["median"] <= row["ms"]["upper_quartile"]
            assert row["max_relative_error"] < 1e-4
            assert row["gflops"] > 0
            assert row["intensity"] > 0
    first = next(row for row in result["layers"][0]["results"] if row["library"] == ours.NAME)
    moved = 4 * (3 * 16 * 32 + 2 * 16 * 24) + 20 * first["edges"]
    assert first["intensity"] == pytest.approx(6 * 16 * first["edges"] / moved, abs=1e-3)
    assert "Sparsities below 80% would take too much memory." in page
    for chart in ("speed", "roofline"):
        assert_png(tmp_path / f"layers_1_threads_{chart}.png")
        assert f"(layers_1_threads_{chart}.png)" in page
    assert tables(section(page, "summary")).count("\n|") > 6


def test_layers_in_bfloat16_with_another_batch(tmp_path, tiny_layers, monkeypatch, capsys):
    monkeypatch.setattr(ceilings, "compiled", lambda folder: (_ for _ in ()).throw(RuntimeError("no C++ compiler")))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    options = ("--rounds", 2, "--sparsity", 80, 90, "--dtype", "bfloat16", "--batch", 24, "--threads", 2)
    run("layers", *options, "--output", tmp_path)
    result, page = read(tmp_path, "layers_2_threads_bfloat16_batch_24", {"layers"})
    assert result["layers"][0]["layer"] == "linear 32->24, 24 tokens"
    assert {row["library"] for layer in result["layers"] for row in layer["results"]} == {"dense", ours.NAME}
    for layer in result["layers"]:
        conditions = {(each["condition"], each["sparsity"]) for each in layer["others"]}
        assert conditions == {(name, sparsity) for name in ("one thread", "float32") for sparsity in (80, 90)}
    own, other = result["layers"][0]["results"][2:], result["layers"][0]["others"]
    ratio = other[0]["ms"]["median"] / next(row for row in own if row["sparsity"] == 90)["ms"]["median"]
    first, *_, means = tables(section(page, "against-one-thread")).splitlines()[2:]
    assert first == f"| linear 32->24, 24 tokens | {float(first.split()[-4][:-1]):.2f}x | {ratio:.2f}x |"
    assert means.startswith("| geometric mean |")
    assert tables(section(page, "against-float32"))
    assert result["ceilings"] is None
    assert "no C++ compiler" in page
    assert "no charts: matplotlib is not installed" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.png"))


def test_networks(tmp_path):
    pytest.importorskip("matplotlib")
    run("networks", "--threads", 1, "--rounds", 2, "--batch", 2, "--sparsity", 98, "--output", tmp_path)
    result, page = read(tmp_path, "networks_1_threads", {"rounds", "batch", "networks"})
    assert [network["network"] for network in result["networks"]] == list(nets.NETWORKS)
    for network in result["networks"]:
        plain, fast, ours, sparse = network["results"]
        assert (plain["candidate"], sparse["candidate"]) == ("dense", "sparsekern at 98%")
        assert fast["candidate"] == nets.NETWORKS[network["network"]].fast_name
        assert ours["sparsity"] == 0
        assert not network["notes"]
        for row in network["results"]:
            assert row["parts_ms"].keys() == {"forward", "backward", "optimizer"}
            assert all(part.keys() == TIMING for part in row["parts_ms"].values())
            assert sum(row["breakdown"].values()) == pytest.approx(1, abs=1e-3)
        assert sparse["breakdown"]["sparse products"] > 0
        assert plain["breakdown"]["sparse products"] == 0 < plain["breakdown"]["dense products"]
        assert sparse["gradient_difference"]["torch.float64"] < 1e-9
    assert tables(section(page, "steps"))
    assert_png(tmp_path / "networks_1_threads.png")


@UNDER_LIMITS
def test_memory(tmp_path):
    pytest.importorskip("matplotlib")
    run("memory", "--network", "resnet", "--batch", 2, "--sparsity", 98, "--output", tmp_path)
    result, page = read(tmp_path, "memory", {"batch", "limit_gib", "networks"})
    ((whole, sparse),) = (network["results"] for network in result["networks"])
    parts = {"weights", "indices", "gradients", "optimizer_state", "activations", "peak"}
    assert whole.keys() & sparse.keys() >= parts
    weights = sum(parameter.numel() for parameter in nets.resnet18().parameters())
    assert whole["weights"] + whole["other_parameters"] == 4 * weights
    assert whole["indices"] == 0 < sparse["indices"]
    assert sparse["activations"] == whole["activations"] > 0
    assert 4 * 3 * weights < whole["peak"] < 600 << 20
    assert sparse["peak"] < whole["peak"]
    assert "| dense |" in page
    assert_png(tmp_path / "memory.png")


def test_large(tmp_path, monkeypatch):
    monkeypatch.setattr(fresh, "call", lambda function, arguments, **limits: large.measure(**arguments))
    network = large.Network("mlp", large.NETWORKS["ResNet-50"].optimizer)
    monkeypatch.setattr(large, "NETWORKS", {"an MLP": network})
    run("large", "--threads", 1, "--batch", 7, "--size", 16, "--sparsity", 99, "--output", tmp_path)
    result, page = read(tmp_path, "large", {"batch", "size", "limit_gib", "networks"})
    ((whole, sparse),) = (network["results"] for network in result["networks"])
    weights = 4 * sum(parameter.numel() for parameter in network.make(16, 1000).parameters())
    assert whole["weights"] + whole["other_parameters"] == weights
    assert sparse["weights"] + sparse["other_parameters"] < 0.013 * weights
    assert whole["indices"] == 0 < sparse["indices"] < 0.04 * weights
    assert sparse["activations"] == whole["activations"] > 0
    assert sparse["file"] < 0.06 * weights < 2 * weights <= whole["file"]
    assert len(sparse["losses"]) == len(whole["losses"]) == 2
    assert tables(section(page, "an-mlp,-mib"))


def test_large_names_the_networks_there_are(capsys):
    assert main(["large", "--network", "alexnet"]) == 1
    assert "alexnet" in capsys.readouterr().err


@UNDER_LIMITS
def test_width(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    call = fresh.call

    def fresh_for_memory(function, arguments, **limits):
        if function == "one_layer.timed" or (arguments["edges"] and arguments["width"] == 512):
            return getattr(one_layer, function.split(".")[1])(**arguments)
        return call(function, arguments, **limits)

    monkeypatch.setattr(fresh, "call", fresh_for_memory)
    options = ("--edges", 2, "--interval", 3, "--updates", 2, "--batch", 4, "--seconds", 60)
    run("width", "--threads", 1, "--widths", 512, 2**16, *options, "--output", tmp_path)
    keys = {"interval", "updates", "sampler", "limit_gib", "time_limit_s", "results"}
    result, page = read(tmp_path, "width_1_threads", keys)
    small, large, whole, too_wide = result["results"]
    for row in (small, large):
        assert row["step_ms"].keys() == row["update_step_ms"].keys() == TIMING
        assert row["update_step_ms"]["rounds"] == 2
        assert row["peak"] <= row["update_peak"]
    # Values, their gradient, Adam's states, and three tensors of indices.
    assert large["peak"] > large["weights"] * 4 * 7
    assert whole["update_step_ms"] is None
    assert whole["peak"] > 0.5 * 512**2 * width.DENSE_BYTES_A_WEIGHT
    assert too_wide["failed"] == "not tried: about 96 GiB"
    assert "step_ms" not in too_wide
    assert tables(section(page, "growth"))
    assert_png(tmp_path / "width_1_threads.png")


def test_updates(tmp_path, monkeypatch):
    monkeypatch.setattr(
        update_steps, "SHAPES", (linear(16, 32, 24), conv(8, 3, 6, 8), linear(8, 40, 40, is_large=True))
    )
    options = ("--widths", 64, 128, "--edges", 4, "--batch", 4, "--repeats", 2, "--sparsity", 50, 80)
    run("updates", *options, "--output", tmp_path)
    keys = {"clock", "batch", "edges_per_row", "repeats", "results", "steps"}
    result, page = read(tmp_path, "updates_1_threads", keys)
    assert len(result["steps"]) == 2 * 2 * 3
    for row in result["steps"]:
        assert {row[kind]["rounds"] for kind in update_steps.KINDS} == {2}
    first = result["steps"][0]
    ordinary, updated, after = (first[kind]["median"] for kind in ("ordinary", "update", "next"))
    ratios = f"{updated / ordinary:.2f} ({updated / ordinary + after / ordinary - 1:.2f})"
    lines = tables(section(page, "against-an-ordinary-step")).splitlines()
    assert lines[2].startswith(f"| linear 32->24, 16 tokens | 50% | {ordinary:.2f} | {ratios} |")
    assert len(lines) == 2 + 4
    assert [(row["sampler"], row["width"]) for row in result["results"]][:3] == [
        ("uniform", 64),
        ("uniform", 128),
        ("grabo", 64),
    ]
    for row in result["results"]:
        assert row["total_ms"]["median"] >= max(row["backward_ms"]["median"], row["step_ms"]["median"])
    assert section(page, "by-width").count("| grabo |") == 2


def test_wire():
    """The measured page; tests/test_ranks.py measures a small model."""
    result = json.loads((RESULTS / "wire.json").read_text())
    page = wire.page(result)
    assert page == (RESULTS / "wire.md").read_text()
    assert {row["ranks"] for row in result["results"]} == {2, 3, 4}
    for row in result["results"]:
        assert row["rigl"] < row["dense"]
        assert row["share"] == pytest.approx((99 * row["plain"] + row["update"]) / 100 / row["dense"])
        assert row["density"] < row["share"] < 2 * row["density"]
    for row in result["topologies"]:
        assert row["updates"] == row["equal_among_ranks"] == row["equal_to_one"] == 200
    with pytest.raises(ValueError, match="--steps is 1"):
        wire.run(Wire(steps=1))
    with pytest.raises(ValueError, match="--densities are"):
        wire.run(Wire(densities=(0.5, 1.0)))


def test_readme(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.readme.ROOT", tmp_path)
    page = "# Page\n\n## First part\n\n| a |\n\n## Second\n\n### Layer\n\ntext\n\n| b |\n| c |\n"
    (tmp_path / "page.md").write_text(page)
    (tmp_path / "chart.png").touch()
    text = (
        "<!-- tables of page.md#second -->\nold\n<!-- end -->\n<!-- tables of page.md -->\n<!-- end -->\n"
        "<!-- chart chart.png: Speed -->\n<!-- end -->\n<!-- chart absent.png: Speed -->\nkept\n<!-- end -->\n"
    )
    (tmp_path / "README.md").write_text(text)
    run("readme", "--file", tmp_path / "README.md")
    filled = (tmp_path / "README.md").read_text()
    assert "second -->\n\n**Layer**\n\n| b |\n| c |\n\n<!-- end -->" in filled
    assert "page.md -->\n\n| a |\n\n**Layer**\n\n| b |" in filled
    assert "\n\n![Speed](chart.png)\n\n<!-- end -->" in filled
    assert "-->\nkept\n<!-- end -->" in filled
    assert updated(filled) == filled
    with pytest.raises(ValueError, match="no section 'third'; it has first-part, second"):
        section(page, "third")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"python -m benchmarks {command}" in capsys.readouterr().out


def test_what_cannot_be_done_is_said(capsys, tmp_path):
    for arguments, message in (
        ([], "no command given"),
        (["layer"], "unknown command 'layer'"),
        (["layers", "--layer", "conv 9x9"], "--layer is 'conv 9x9'"),
        (["layers", "--rounds", "1"], "--rounds is 1"),
        (["layers", "--sparsity", "100"], "--sparsity has 100"),
        (["layers", "--layer", "16384", "--sparsity", "70"], "no layer's name contains at these sparsities"),
        (["networks", "--network", "vgg"], "--network is 'vgg'"),
        (["width", "--interval", "1"], "--interval is 1"),
        (["width", "--widths", "4", "--edges", "8"], "--edges has 8"),
        (["updates", "--repeats", "1"], "--repeats is 1"),
    ):
        assert main([*arguments, "--output", str(tmp_path)] if len(arguments) > 1 else arguments) != 0
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@UNDER_LIMITS
def test_threads_are_set_before_torch_is_loaded():
    """In a process of its own: torch must not come with the command line, only with the command."""
    program = """
import os, sys
from benchmarks import __main__, process
prepare = process.prepare
def check(threads):
    prepare(threads)
    assert "torch" not in sys.modules and "numpy" not in sys.modules
    assert os.environ["OMP_NUM_THREADS"] == "3"
process.prepare = check
assert __main__.main(["updates", "--threads", "3", "--widths", "8", "--edges", "1", "--repeats", "2",
                      "--layer", "none of them", "--output", sys.argv[1]]) == 0
import torch
assert torch.get_num_threads() == 3
"""
    command = [sys.executable, "-c", program, "/dev/null/nowhere"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "benchmarks updates: " in result.stderr, result.stderr  # all went well up to the writing


# Peers


def measured(*candidates, longest=10.0):
    """What `layers` reports with these candidates as its only peer."""
    peer = Peer("torch", lambda layer, mask: [make(layer, mask) for make in candidates])
    options = replace(Layers(), rounds=2, sparsity=(50.0, 80.0), longest=longest)
    return layers.measure(linear(4, 12, 10), options, {"peer": peer})


def other(name, change=lambda y: y):
    """A peer that computes with dense torch, and then changes the output."""

    def make(layer, mask):
        right = dense.layers(layer, mask)[0]
        return Candidate(name, lambda x: change(right.forward(x)), right.parameters, right.edge_grad)

    return make


def test_conditions_set_threads_and_dtype():
    problem = admission.Problem.draw(linear(4, 8, 6), torch.nn.Linear(8, 6).bfloat16(), 50)
    options = Layers(threads=2, dtype="bfloat16")
    assert conditions.others(Layers()) == []
    seen = []
    for condition in (conditions.own(options), *conditions.others(options)):
        candidate = condition.layer(problem)
        forward = candidate.forward
        candidate.forward = lambda x, forward=forward: seen.append((torch.get_num_threads(), x.dtype)) or forward(x)
        condition.step(candidate)((problem.x, problem.grad))()
        assert candidate.parameters[0].grad.dtype == condition.dtype
    assert seen == [(2, torch.bfloat16), (1, torch.bfloat16), (2, torch.float32)]


def test_wrong_peers_are_reported_and_left_out():
    def fails(y):
        raise RuntimeError("unsupported\nshape")

    wrong, broken = other("wrong", lambda y: 1.01 * y), other("broken", fails)
    nan = other("nan", lambda y: y * math.nan)
    result = measured(other("right"), wrong, broken, nan)
    assert {row["library"] for row in result["results"]} == {"dense", ours.NAME, "right"}
    for name in (
        "wrong at 80%: wrong by",
        "nan at 50%: wrong by inf",
        "broken at 50%: failed, not timed (unsupported)",
    ):
        assert any(note.startswith(name) for note in result["notes"]), result["notes"]


def test_slow_peers_are_left_out_at_lower_sparsities_too(monkeypatch):
    monkeypatch.setattr(admission, "one_call", lambda candidate, _: {"slow": 5.04, "quick": 4.9}[candidate.name])
    result = measured(other("slow"), other("quick"), longest=5.0)
    assert "slow" not in {row["library"] for row in result["results"]}
    assert [note for note in result["notes"] if "slow" in note] == [
        "slow at 80%: one call takes 5.0 s, not timed there and at lower sparsities"
    ]
    assert {row["sparsity"] for row in result["results"] if row["library"] == "quick"} == {50, 80}


def test_absent_peers_are_skipped_with_a_message(tmp_path, tiny_layers, monkeypatch, capsys):
    absent = Peer("a_library_that_is_not_there", lambda layer, mask: pytest.fail("it is not there"))
    monkeypatch.setitem(libraries.PEERS, "sparseprop", absent)
    monkeypatch.setattr(ceilings, "measure", lambda *_: (_ for _ in ()).throw(RuntimeError("no C++ compiler")))
    run("layers", "--layer", "32->24", "--rounds", 2, "--sparsity", 80, "--peers", "sparseprop", "--output", tmp_path)
    assert "a_library_that_is_not_there is not installed: skipped" in capsys.readouterr().err
    result, page = read(tmp_path, "layers_1_threads", {"notes"})
    assert result["notes"][0] == "a_library_that_is_not_there is not installed: skipped"
    assert "a_library_that_is_not_there is not installed" in page


@pytest.mark.parametrize("name", [*libraries.PEERS, "ours"])
@pytest.mark.parametrize(
    "shape", [linear(8, 40, 24), conv(8, 6, 7, 8), conv(8, 6, 8, 8, stride=2)], ids=lambda s: s.name
)
def test_each_library_computes_what_dense_does(name, shape):
    """Output and both gradients, the weight's in the mask's row-major order, with empty rows and columns."""
    peer = libraries.PEERS.get(name, Peer("torch", lambda layer, mask: [ours.layer(layer, mask)]))
    pytest.importorskip(peer.package)
    torch.manual_seed(0)
    layer = shape.make()
    if peer.linear_only and not isinstance(layer, torch.nn.Linear):
        pytest.skip("linear only")
    mask = torch.rand(layer.weight.shape) < 0.3
    mask[3] = False
    mask[:, 2] = False
    x = shape.sample(layer)
    reference, *_ = dense.layers(layer, mask)
    grad = torch.randn_like(reference.forward(x))
    expected = reference.results(x, grad)
    assert expected[2].shape == (int(mask.sum()),)
    for candidate in [*peer.make(layer, mask), *dense.layers(layer, mask)]:
        assert largest_error(candidate.results(x, grad), expected) < 1e-5, candidate.name
        assert all(parameter.grad is None for parameter in candidate.parameters)


# The parts


def test_the_shapes_are_those_of_the_table():
    names = [shape.name for shape in SHAPES]
    assert len(set(names)) == 10
    assert names[0] == "linear 768->3072, 2048 tokens"
    assert names[8] == "conv 3x3 stride 2 128->256, 64 images of 16x16"
    assert isinstance(SHAPES[0].with_batch(3), Shape)
    assert SHAPES[0].with_batch(3).name == "linear 768->3072, 3 tokens"


def test_break_even():
    assert BreakEven.of({50: 0.5, 60: 2.0}) == BreakEven("at", 55)
    assert BreakEven.of({90: 4.0, 50: 0.25, 60: 2.0, 40: 3.0}) == BreakEven("at", 56.7)  # the last crossing
    assert BreakEven.of({50: 1.0, 60: 2.0}) == BreakEven("below", 50)
    assert BreakEven.of({50: 0.5, 99.9: 0.9}) == BreakEven("above", 99.9)
    assert [str(each) for each in (BreakEven("at", 56.7), BreakEven("above", 99.9))] == ["56.7%", "> 99.9%"]
    rows = [
        {"library": library, "sparsity": sparsity, "ms": {"median": ms}}
        for library, sparsity, ms in (("dense", 0, 9), ("dense", 0, 6), ("a", 80, 4), ("a", 80, 3), ("a", 90, 12))
    ]
    assert speeds_against_dense(rows) == {"a": {80: 2.0, 90: 0.5}}


def test_the_command_line_is_recorded():
    options = Layers(threads=2, sparsity=(50.0, 99.9), layer="conv 3x3", output=Path("elsewhere"))
    line = "python -m benchmarks layers --threads 2 --layer 'conv 3x3' --sparsity 50.0 99.9"
    assert command_line("layers", options) == line
    assert command_line("updates", Updates(cpu_time=True)) == "python -m benchmarks updates --cpu-time"


def test_slope():
    assert width.slope([1, 2, 4, 8], [3, 100, 12, 48]) == pytest.approx(2)  # of the wider half
    assert width.slope([2, 4], [1, 2]) == pytest.approx(1)
    assert width.slope([2], [1]) is None


def test_ceilings_are_those_of_a_machine():
    try:
        result = ceilings.measure(2, {"L1": 32 << 10}, seconds=0.01)
    except RuntimeError as error:
        pytest.skip(str(error))
    assert [entry["threads"] for entry in result["entries"]] == [1, 2]
    for entry in result["entries"]:
        assert min(entry["fma_gflops"], entry["copy_gbps"], *entry["load_fma_gflops"].values()) > 0
        assert entry["read_gbps"]["L1"] == pytest.approx(2 * entry["load_fma_gflops"]["L1"], abs=0.2)
    assert ceilings.table(result).count("\n") == 3


def test_without_a_compiler_ceilings_say_so(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler, so the machine's ceilings are not measured"):
        ceilings.compiled(tmp_path)


@UNDER_LIMITS
def test_a_fresh_process_keeps_to_its_limits():
    limits = dict(threads=1, keep_freed=False)
    arguments = {"width": 2**14, "edges": None, "batch": 1, "interval": 2, "sampler": "grabo", "seed": 0}
    found = fresh.call("one_layer.Training", arguments, gibibytes=0.75, seconds=60, **limits)
    assert found == {"failed": "needs more than 0.75 GiB"}
    found = fresh.call("one_layer.Training", arguments, gibibytes=4, seconds=0.2, **limits)
    assert found == {"failed": "stopped after 0.2 s"}


def test_saved_bytes_counts_each_storage_once():
    layer = torch.nn.Linear(5, 7, bias=False)
    x = torch.randn(3, 5)
    # The input of the product, the output of exp (which both its backward and the product's read), never the weight.
    assert saved_bytes(layer, lambda: layer(x)) == 4 * 15
    assert saved_bytes(layer, lambda: (lambda y: y * y)(layer(x).exp())) == 4 * (15 + 21)


def test_kinds_of_operators():
    for name, kind in (
        ("sparsekern::conv2d_backward", "sparse products"),
        ("aten::addmm", "dense products"),
        ("aten::mkldnn_convolution", "dense products"),
        ("aten::native_batch_norm_backward", "norms"),
        ("aten::threshold_backward", "activations"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::copy_", "copies and sums"),
        ("aten::view", "other"),
    ):
        assert breakdown.kind(name) == kind


def test_a_network_that_computes_something_else_is_found_out():
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(6, 20), torch.nn.ReLU(), torch.nn.Linear(20, 3)).double()
    sparse = nets.make_sparse(torch.nn.Sequential(*map(copy_of, plain)), 0.5)
    images, labels = torch.randn(9, 6).double(), torch.randint(3, (9,))
    assert disagreement(sparse, plain, images, labels) < 1e-12
    sparse[1] = torch.nn.GELU()
    assert disagreement(sparse, plain, images, labels) > 1e-3
    with pytest.raises(ValueError, match="different parameters"):
        disagreement(sparse, plain[:2], images, labels)


def copy_of(module):
    return torch.nn.Linear(module.in_features, module.out_features).double() if hasattr(module, "weight") else module


def test_interleaved_times_every_candidate_each_round():
    calls = []
    names = ("a", "b", "c")
    candidates = {name: lambda inputs, name=name: lambda: calls.append((name, inputs)) for name in names}
    timings = interleaved(lambda index: index, candidates, rounds=3, warm_up=1)
    assert [inputs for _, inputs in calls] == sorted([0, 1, 2, 3] * 3)
    assert "".join(name for name, _ in calls) == "abcbcacababc"
    assert all(timing.rounds == 3 for timing in timings.values())
    assert Timing.of([0.001, 0.002, 0.003, 0.004, 0.005]) == Timing(3.0, 2.0, 4.0, 5)


def test_tables_are_markdown():
    assert report.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"


def test_tables_that_follow_one_another_stay_apart():
    table = "| a |\n| --- |\n| 1 |"
    page = f"text\n\n{table}\n\n{table}\n\n### Third\n\n{table}\n"
    assert tables(page) == f"{table}\n\n{table}\n\n**Third**\n\n{table}"
