"""`python -m benchmarks gpu` and `make gpu`, rehearsed on the CPU: no GPU's time is to be spent on their mistakes."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import cases, command, counters, layers, networks, page, place, prepare, profiled, ways
from benchmarks.gpu.clock import Call, CpuClock, CudaClock, OutOfTime, interleaved, is_fatal
from benchmarks.gpu.exercise import main as exercise
from benchmarks.gpu.options import SECTIONS, folder, parse
from benchmarks.options import RESULTS
from benchmarks.shapes import linear

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
SMOKE = ("--device", "cpu", "--smoke")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """The sections' files but for the counters', which are processes of their own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    target = tmp_path_factory.mktemp("gpu")
    names = [name for name in SECTIONS if name != "counters"]
    assert command.main([*SMOKE, "--sections", *names, "--output", str(target)]) == 0
    torch.set_num_threads(threads)
    return {name: json.loads((target / f"{name}.json").read_text()) for name in names}


def test_each_section_has_its_file(rehearsed):
    for name, result in rehearsed.items():
        assert result["benchmark"] == f"gpu {name}"
        assert result["ended"] == "whole"
        assert result["machine"]["gpu"] is None
        assert result["machine"]["versions"]["torch"] == torch.__version__
        assert "--output" not in result["command"]
        assert result["entries"]


def test_every_way_is_checked_and_timed(rehearsed):
    for section, families in (
        ("layers", {"dense", "masked dense", "torch CSR", "sparsekern"}),
        ("convolutions", {"dense", "masked dense", "sparsekern"}),
    ):
        for entry in rehearsed[section]["entries"]:
            rows = entry["results"]
            assert {row["family"] for row in rows} == families, entry["notes"]
            assert not any("WRONG" in note for note in entry["notes"])
            for row in rows:
                assert 0 < row["max_relative_error"] <= ways.TOLERANCES[row["precision"]]
                assert row["bytes"]["held"] > 0
                assert row["products_ms"].keys() == set(cases.PRODUCTS)
                for step in (row["steps_ms"][name] for name in layers.OPTIMIZERS):
                    assert step["total"]["median"] >= max(step[part] for part in layers.PARTS) > 0
            own = [row for row in rows if row["family"] == "sparsekern"]
            assert {row["precision"] for row in own} == {"float32", "bfloat16", "float16"}
            assert {even["against"] for even in entry["break_even"]} >= {"float32", "TF32", "bfloat16", "float16"}
    large = rehearsed["layers"]["entries"][1]["results"]
    assert {row["sparsity"] for row in large} == {None, 95.0}  # not below its lowest


def test_memory_of_a_sparse_layer_is_its_edges(rehearsed):
    """Values, Adam's two and SGD's none yet, and indices: four bytes each, whatever the dense size."""
    rows = rehearsed["layers"]["entries"][0]["results"]
    row = next(row for row in rows if row["way"] == "sparsekern cpu float32" and row["sparsity"] == 95.0)
    per_edge, bias, pointers = 4 * (3 + 3), 4 * 3 * 24, 4 * (32 + 1 + 24 + 1)
    steps = 8  # Adam's counters
    assert row["bytes"]["held"] == per_edge * row["edges"] + bias + pointers + steps


def test_networks(rehearsed):
    for entry in rehearsed["networks"]["entries"]:
        assert not entry["notes"]
        names = [row["candidate"] for row in entry["results"]]
        assert names[:3] == ["dense bfloat16", "dense TF32", "dense float32"]
        assert "sparsekern cpu bfloat16 at 95%" in names
        assert any(name.startswith("sparsekern.models") for name in names)
        for row in entry["results"]:
            assert row["ms"]["median"] > 0
            assert (row["edges"] is None) == (row["sparsity"] is None)


def test_counters_without_a_gpu():
    found = counters.profile("cpu", "float32", parse(SMOKE), CPU, 60)
    assert found == {"failed": "only a GPU has counters; the kernels ran"}
    (late, *_) = counters.measure(parse([*SMOKE, "--backends", "cpu"]), CPU, CpuClock(), time.monotonic() - 1)
    assert late["failed"] == "not measured: the time was over"


def test_what_a_profiler_has_started_is_stopped_with_it(tmp_path):
    """Such a child holds the pipe that the profiler's output comes by, and the GPU."""
    pid = tmp_path / "pid"
    shell = ["sh", "-c", 'sleep 600 & echo $! > "$1"; wait', "sh", str(pid)]
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        counters.output_of(shell, 2)
    assert time.monotonic() - began < 60
    for _ in range(100):
        if state_of(pid.read_text().strip()) in ("", "Z"):
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the child runs on")
    assert counters.output_of(["sh", "-c", "echo a; echo b >&2; exit 3"], 60) == (3, "a\nb\n")


def state_of(pid):
    """One letter of /proc, "" where there is no such process any more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.fixture
def pretended(monkeypatch):
    """torch.cuda as far as it is asked for here, with a time that goes on by a millisecond at each event."""
    now, log = [0.0], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            now[0] += 1.0
            self.at = now[0]

        def elapsed_time(self, later):
            return later.at - self.at

    properties = SimpleNamespace(
        name="NVIDIA X1", major=9, minor=0, multi_processor_count=132, total_memory=139 << 30, L2_cache_size=1 << 20
    )
    for name, value in {
        "Event": Event,
        "synchronize": lambda: log.append("synchronize"),
        "_sleep": lambda cycles: log.append(("sleep", cycles)),
        "get_device_properties": lambda device: properties,
        "get_device_name": lambda device: properties.name,
        "reset_peak_memory_stats": lambda: log.append("reset"),
        "memory_allocated": lambda: 100,
        "max_memory_allocated": lambda: 130,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return log


def test_a_gpus_clock(pretended):
    timer = CudaClock(CPU)
    assert timer._flushed.numel() == 4 << 20  # four times the cache
    order = []
    entered = contextlib.contextmanager(lambda: (order.append("in"), (yield), order.append("out"))[1])
    times, host = timer.time(Call([lambda: order.append(1), lambda: order.append(2)], entered), ahead=1e-3)
    assert times == pytest.approx([1e-3, 1e-3])
    assert order == ["in", 1, 2, "out"]
    assert 0 < host < 1
    assert pretended == ["synchronize", ("sleep", int(1.55e-3 * 2e9)), "synchronize"]
    timer.time(Call([lambda: None]), ahead=5.0)
    assert pretended[-2] == ("sleep", int(0.02 * 2e9))  # not for as long as a call that waits
    assert timer.peak(Call([lambda: None])) == 30


def test_a_gpus_description(pretended):
    found = place.describe(torch.device("cuda", 0), "0123456789ab")
    assert found["commit"] == "0123456789ab"
    gpu = found["gpu"]
    assert (gpu["name"], gpu["capability"], gpu["multiprocessors"], gpu["l2_mib"]) == ("NVIDIA X1", "9.0", 132, 1.0)
    assert "NVIDIA X1 (132 multiprocessors, 139 GiB, L2 1 MiB, sm_90)" in place.where(found)


# What goes wrong


def test_a_way_that_computes_something_else_is_not_timed(monkeypatch):
    ours = ways.our_ways

    def wrong(problem, precisions, backends):
        made, notes = ours(problem, precisions, backends)
        with torch.no_grad():
            made[0].weight.mul_(1.01)
        return made, notes

    monkeypatch.setattr(ways, "our_ways", wrong)
    options = parse([*SMOKE, "--backends", "cpu", "--sparsity", "80"])
    entry = layers.measure_layer(linear(16, 32, 24), options, CPU, CpuClock(), time.monotonic() + 60)
    assert any("sparsekern cpu float32 at 80%: WRONG by" in note for note in entry["notes"])
    assert "sparsekern cpu float32" not in {row["way"] for row in entry["results"]}
    assert "sparsekern cpu bfloat16" in {row["way"] for row in entry["results"]}


def test_a_way_that_cannot_be_made_does_not_cost_the_others(monkeypatch):
    def full(problem, precisions):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(ways, "csr_ways", full)
    monkeypatch.setattr(ways, "masked_ways", full)
    options = parse([*SMOKE, "--backends", "cpu", "--sparsity", "80", "95"])
    entry = layers.measure_layer(linear(16, 32, 24), options, CPU, CpuClock(), time.monotonic() + 60)
    assert sum("could not be made (OutOfMemoryError: CUDA out of memory" in note for note in entry["notes"]) == 2
    found = {(row["family"], row["sparsity"]) for row in entry["results"]}
    assert found == {("dense", None), ("sparsekern", 80.0), ("sparsekern", 95.0)}


def test_a_network_that_computes_something_else_is_not_timed(monkeypatch):
    monkeypatch.setattr(networks, "disagreement", lambda *networks_and_batch: 0.2)
    options = parse([*SMOKE, "--backends", "cpu", "--sparsity", "95"])
    network = networks.SMOKE_NETWORKS["tiny ViT"]
    entry = networks.measure_network("tiny ViT", network, options, CPU, CpuClock(), time.monotonic() + 60)
    assert sum("WRONG: gradients differ" in note for note in entry["notes"]) == 2
    # The library's own model has no twin of its structure.
    assert [row["sparsity"] for row in entry["results"]] == [None, None, None, 98.0]


def test_what_fails_while_it_is_timed_is_noted_and_the_rest_goes_on():
    calls = []

    def fails(inputs):
        def call():
            calls.append(inputs)
            if inputs == 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

        return Call([call])

    good = {"good": lambda inputs: Call([lambda: None, lambda: None]), "bad": fails}
    found, notes = interleaved(CpuClock(), lambda index: index, good, 5, time.monotonic() + 60)
    assert list(found) == ["good"]
    assert found["good"].total.rounds == 5
    assert len(found["good"].parts) == 2
    assert calls == [0, 1, 2, 3]
    assert notes == ["bad: failed while it was timed (CUDA out of memory. Tried to allocate 2 GiB)"]


def test_a_fault_of_the_gpu_ends_the_section(tmp_path, monkeypatch):
    def faults(shapes, *rest):
        yield {"layer": "first", "results": [], "notes": []}
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(layers, "measure", faults)
    assert command.main([*SMOKE, "--sections", "layers", "ceilings", "--output", str(tmp_path)]) == 1
    result = json.loads((tmp_path / "layers.json").read_text())
    assert result["ended"].startswith("failed: RuntimeError: CUDA error: an illegal memory access")
    assert [entry["layer"] for entry in result["entries"]] == ["first"]
    assert (tmp_path / "ceilings.json").exists()
    assert is_fatal(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_fatal(RuntimeError("CUDA out of memory"))


def test_what_is_too_slow_is_not_tried_with_more_edges(monkeypatch):
    monkeypatch.setattr(networks, "LONGEST", 0.0)
    options = parse([*SMOKE, "--backends", "cpu", "--sparsity", "90", "95", "98"])
    network = networks.SMOKE_NETWORKS["tiny ViT"]
    entry = networks.measure_network("tiny ViT", network, options, CPU, CpuClock(), time.monotonic() + 60)
    assert entry["results"] == []
    notes = [note for note in entry["notes"] if "sparsekern cpu bfloat16" in note]
    assert ["a step takes" in note for note in notes] == [True, False, False]
    assert all("too slow at 98% already" in note for note in notes[1:])


def test_the_time_is_over(monkeypatch):
    options = parse([*SMOKE])
    (entry, *others) = layers.measure(cases.SMOKE_LINEAR, options, CPU, CpuClock(), time.monotonic() - 1)
    assert entry["notes"] == ["not measured: the time was over"]
    assert len(others) == len(cases.SMOKE_LINEAR) - 1
    with pytest.raises(OutOfTime, match="0 of at least 3 rounds"):
        interleaved(CpuClock(), lambda index: index, {"a": lambda inputs: Call([])}, 5, time.monotonic() - 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(capsys):
    assert command.main(["--sections", "ceilings"]) == 1
    assert "no GPU can be used: torch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu"], "--device cpu only rehearses"),
        (["--sparsity", "100"], "--sparsity has 100"),
        (["--rounds", "2"], "--rounds is 2; expected at least 3"),
        (["--budget", "0"], "--budget is 0"),
        (["--sections", "layer"], "invalid choice: 'layer'"),
    ],
)
def test_wrong_options(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse(arguments)
    assert message in capsys.readouterr().err


def test_rehearsals_are_not_among_the_results(tmp_path):
    assert RESULTS not in folder("cpu", True, None).parents
    assert folder("NVIDIA H200", False, None) == RESULTS / "nvidia-h200" / "gpu"
    assert folder("NVIDIA H200", False, tmp_path) == tmp_path


# Profiles


def test_the_products_that_a_profiler_is_given_run(capsys):
    assert profiled.main(["cpu", "float32", "cpu", "80", "smoke"]) == 0
    assert "tokens 16" in capsys.readouterr().out
    assert exercise(["cpu"]) == 0
    assert "WRONG" not in capsys.readouterr().out


def profile_of(names):
    """What ncu prints as CSV."""
    metrics = [counters.METRICS[name] for name in ("duration, ns", "clocks", "L1 hits, %")]
    lines = [["ID", "Process ID", "Kernel Name", *metrics], ["", "", "", "us", "cycle", "%"]]
    lines += [[index, 7, name, "1,002.5", "2,000", "61.5"] for index, name in enumerate(names)]
    table = "\n".join(",".join(f'"{cell}"' for cell in line) for line in lines)
    return f"==PROF== Connected to process 7\nedges 500, tokens 64\n{table}\n"


def test_the_profile_is_cut_at_the_separators():
    metrics = {name: counters.METRICS[name] for name in ("duration, ns", "clocks", "L1 hits, %")}
    names = ["warm", "vec<cosh_kernel>", "copy", "spmm", "vec<cosh_kernel>", "spmm", "vec<cosh_kernel>", "sddmm"]
    found = counters.summary(profile_of(names), metrics, "bfloat16", CPU)
    kernels = [[kernel["kernel"] for kernel in product["kernels"]] for product in found["products"]]
    assert kernels == [["copy", "spmm"], ["spmm"], ["sddmm"]]
    first = found["products"][0]
    assert first["kernels"][1] == {"kernel": "spmm", "duration, ns": 1002500.0, "clocks": 2000.0, "L1 hits, %": 61.5}
    assert first["multiply-adds a clock and multiprocessor"] == 16.0
    assert first["at most from shared memory"] == 64
    with pytest.raises(ValueError, match="no kernels"):
        counters.kernels_of("==ERROR== The user does not have permission", metrics)


# The page


def on_a_gpu(rehearsed):
    """The rehearsal's results as a GPU's, with known times: sparse is twice as fast as dense at 95%, half as at 80%."""
    gpu = {"name": "NVIDIA X1", "capability": "9.0", "multiprocessors": 132, "memory_gib": 139.0, "l2_mib": 50.0}
    gpu |= {"driver": "580.1", "clock_mhz": "1980", "cuda": "13.0", "nvcc": "13.0"}
    sections = json.loads(json.dumps(rehearsed))
    for result in sections.values():
        result |= {"device": "cuda", "smoke": False}
        result["machine"] |= {"gpu": gpu, "commit": "0123456789ab"}
    for name in ("layers", "convolutions"):
        for entry in sections[name]["entries"]:
            for row in entry["results"]:
                ms = 8.0 if row["family"] == "dense" else {None: 9.0, 95.0: 4.0, 80.0: 16.0}[row["sparsity"]]
                for timing in (*row["products_ms"].values(), *(step["total"] for step in row["steps_ms"].values())):
                    timing["median"] = ms
                row["bytes"]["peak"] = 1 << 20
            entry["break_even"] = layers.break_evens(entry["results"])
    sections["layers"]["entries"][0]["notes"] = ["sparsekern triton float16 at 80%: WRONG by 1.0e+00, not timed"]
    return sections


def written(sections, results, machine="nvidia-x1"):
    target = results / machine / "gpu"
    target.mkdir(parents=True)
    for name, result in sections.items():
        (target / f"{name}.json").write_text(json.dumps(result))
    return results


def test_the_page_shows_what_was_lost_as_well(rehearsed, tmp_path):
    sections = on_a_gpu(rehearsed)
    metrics = {name: counters.METRICS[name] for name in ("duration, ns", "clocks", "L1 hits, %")}
    names = ["cosh", "spmm", "cosh", "spmm", "cosh", "sddmm"]
    profile = {"backend": "triton", "precision": "bfloat16", "sparsity": 98.0}
    refused = {**profile, "precision": "float32", "failed": "ncu is not installed"}
    entries = [profile | counters.summary(profile_of(names), metrics, "bfloat16", CPU), refused]
    sections["counters"] = sections["ceilings"] | {"entries": entries}
    text = page.page(written(sections, tmp_path))
    assert "## NVIDIA X1" in text
    flat = " ".join(text.split())
    assert "driver 580.1, CUDA 13.0, nvcc 13.0" in flat
    row = next(line for line in text.splitlines() if "| sparsekern cpu bfloat16 | dense bfloat16 |" in line)
    assert row.split("|")[-3:-1] == [" 0.50x ", " 2.00x "]
    assert "| linear 32->24, 16 tokens | sparsekern cpu bfloat16 | dense bfloat16 | 87.5% |" in text
    assert "sparsekern triton float16 at 80%: WRONG by 1.0e+00, not timed." in flat
    assert "triton bfloat16 at 98%, sddmm" not in text
    assert "| triton bfloat16 at 98%, weight gradient | sddmm | 16 | 64 | 61.5 |" in text
    assert "triton float32 at 98%: ncu is not installed." in text
    assert "| bfloat16 step at 99%: at least 2.5x dense | not measured | - |" in text
    assert "tiny ViT" in text
    assert text.count("Measured on GPUs") == 1


def test_goals_are_held_against_what_was_measured(rehearsed, tmp_path, monkeypatch):
    from benchmarks.gpu import goals

    monkeypatch.setattr(goals, "LAYER", "linear 32->24, 16 tokens")
    sections = on_a_gpu(rehearsed)
    for network in sections["networks"]["entries"]:
        network["network"] = "ViT-B/16"
        for row in network["results"]:
            row["bytes"]["peak"] = 5 * row["bytes"]["held"]
            row["ms"]["median"] = 3.0 if row["sparsity"] is None else 1.5
    text = page.page(written(sections, tmp_path))
    assert "| float32 step at 95%: at least 4x dense | 2.00x (sparsekern cpu float32) | no |" in text
    assert "| bfloat16 step faster than dense from 97% on | 87.5% (sparsekern cpu bfloat16) | yes |" in text
    assert "| float32 step faster than dense from 80% on | 87.5% (sparsekern cpu float32) | no |" in text
    assert "at least 5x cuSPARSE | from 1.0x (linear 32->24, 16 tokens, forward) to 1.0x | no |" in text
    assert "in bfloat16: less time than dense | 50% of dense's | yes |" in text


def test_nothing_is_claimed_before_anything_was_measured(rehearsed, tmp_path):
    assert page.NOTHING in page.page(tmp_path)
    text = page.page(written(rehearsed, tmp_path))  # a rehearsal is no measurement
    assert page.NOTHING in text
    assert "|" not in text


def test_the_page_is_made_from_the_files():
    assert (ROOT / "docs" / "gpu-measured.md").read_text() == page.page(RESULTS), "python -m benchmarks gpu-page"


# make gpu


# What the Python of a GPU machine may lack is hidden from all processes.
HIDING = """
from importlib.machinery import PathFinder

class Hiding:
    found = PathFinder.find_spec

    def __call__(self, name, *rest):
        hidden = ("tyro", "rich", "psutil", "hypothesis", "triton")
        return None if name.split(".")[0] in hidden else Hiding.found(name, *rest)

PathFinder.find_spec = Hiding()
"""


def session(target, *arguments):
    (target / "sitecustomize.py").write_text(HIDING)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(target),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command_line = [sys.executable, ".ci/gpu.py", *SMOKE, "--output", str(target), *arguments]
    return subprocess.Popen(command_line, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE)


def test_make_gpu_rehearsed(tmp_path):
    steps = ("tests", "networks")
    process = session(tmp_path, "--sections", *steps, "--commit", "0123456789ab")
    out, _ = process.communicate(timeout=120)
    summary = json.loads((tmp_path / "gpu.json").read_text())
    assert process.returncode == 0, out
    assert summary["passed"]
    assert (summary["ended"], summary["commit"], tuple(summary["steps"])) == ("whole", "0123456789ab", steps)
    assert set(summary["not_installed"]) >= {"tyro", "rich"}
    assert summary["steps"]["tests"]["passed"] > 5
    networks = json.loads((tmp_path / "networks.json").read_text())
    assert networks["machine"]["commit"] == "0123456789ab"
    assert all(entry["results"] and not entry["notes"] for entry in networks["entries"])
    assert f"results in {tmp_path}" in out


def test_make_gpu_goes_on_after_what_takes_too_long(tmp_path):
    process = session(tmp_path, "--sections", "layers", "ceilings", "--budget", "2.5")
    process.communicate(timeout=120)
    summary = json.loads((tmp_path / "gpu.json").read_text())
    assert summary["ended"] == "whole"
    assert summary["steps"]["layers"]["ended"].startswith("stopped after")
    assert list(summary["steps"]) == ["layers", "ceilings"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_make_gpu_without_a_gpu():
    done = subprocess.run([sys.executable, ".ci/gpu.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "can use no GPU (" in done.stderr
    assert "Traceback" not in done.stderr


def test_make_gpu_interrupted(tmp_path):
    process = session(tmp_path, "--sections", "layers", "ceilings")
    log = tmp_path / "logs" / "layers.log"
    for _ in range(600):
        if log.exists() and "timing" in log.read_text():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads((tmp_path / "gpu.json").read_text())["ended"] == "interrupted"
    assert json.loads((tmp_path / "layers.json").read_text())["ended"] in ("interrupted", "whole")


def load_session():
    import importlib.util

    spec = importlib.util.spec_from_file_location("ci_gpu", ROOT / ".ci" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_module_of_a_gpu_backends_tests_is_run():
    import test_cuda
    import test_triton

    backends = load_session().BACKENDS
    assert {name: tuple(backends[name]) for name in backends} == {
        "triton": test_triton.MODULES,
        "cuda": test_cuda.MODULES,
    }


def pytest_session(tmp_path):
    """A session, and pytest's arguments for a file of six tests, of which the fourth loses the GPU's context."""
    module = load_session()
    session = module.Session(module.parse(["--device", "cpu", "--smoke", "--output", str(tmp_path)]))
    (tmp_path / "conftest.py").write_text(
        "import conftest_of_all as all\nfrom conftest_of_all import *\nall.gpu_is_lost = lambda: True\n"
    )
    (tmp_path / "conftest_of_all.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    test = "import pytest\n@pytest.mark.parametrize('n', range(6))\ndef test(n):\n    assert n != 3\n"
    (tmp_path / "test_lost.py").write_text(test)
    arguments = ["-c", "/dev/null", f"--rootdir={tmp_path}", str(tmp_path / "test_lost.py")]
    return module, session, arguments


def test_a_lost_gpu_costs_one_test_and_processes_share_the_rest(tmp_path):
    module, session, arguments = pytest_session(tmp_path)
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    environment = {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    commands = module.sharded("tests", arguments, environment, 2)
    assert list(commands) == ["tests-1", "tests-2"]
    del commands["tests-1"]
    codes = session.side_by_side(commands, 2, time.monotonic() + 60, restarts=module.RESTARTS)
    log = session.log("tests-2")
    found = module.tested(codes, {"tests-2": log}, 60)
    assert re.findall(r"::test\[(\d)\] (\w+)", log)[:3] == [("1", "PASSED"), ("3", "FAILED"), ("5", "PASSED")]
    assert (found["passed"], found["failed"]) == (2, 1), log
    assert found["failures"][0].startswith("tests-2: ")
    assert found["failures"][0].endswith("test_lost.py::test[3]")
    assert log.count(module.LOST) == 1


def test_a_section_goes_on_without_the_backend_that_lost_the_gpu(tmp_path, monkeypatch):
    _, session, _ = pytest_session(tmp_path)
    asked = []

    def call(name, command, limit, environment=None, more=False):
        asked.append(command[command.index("--backends") + 1 :] if "--backends" in command else None)
        faulty = asked[-1] is None
        written = {"fault": "cuda", "entries": [1]} if faulty else {"entries": [1, 2]}
        (tmp_path / "layers.json").write_text(json.dumps(written))
        (session.logs / "layers.log").write_text("cuda float16: misaligned address\n" if faulty else "")
        return int(faulty)

    monkeypatch.setattr(session, "call", call)
    found = session.measure("layers", 100)
    assert asked == [None, ["triton", "reference"]]
    assert found["ended"] == "measured; without backend cuda (cuda float16: misaligned address)"
    assert json.loads((tmp_path / "layers-with-cuda.json").read_text())["entries"] == [1]
    assert json.loads((tmp_path / "layers.json").read_text())["entries"] == [1, 2]
    asked.clear()
    assert session.measure("layers", 20)["ended"].startswith("failed")  # no time for another
    assert asked == [None]


@pytest.mark.parametrize("part", prepare.PARTS)
def test_what_is_measured_is_compiled_before(part, capsys):
    assert prepare.main([part, *SMOKE]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2
    assert all(line.endswith(": ran") for line in lines)
    assert prepare.main(["others"]) == 2


def test_what_the_tests_and_the_sanitizer_say_is_read():
    module = load_session()
    log = "tests/test_a.py::test_b[cuda] PASSED  [ 50%]\ntests/test_a.py::test_c[x y] FAILED [100%]\n"
    log += "tests/test_a.py::test_d SKIPPED (there is no GPU)\nSKIPPED [1] tests/test_a.py:3: there is no GPU\n"
    found = module.tested({"a": 1}, {"a": log}, 9)
    assert found["ended"] == "1 passed, 1 failed, 1 skipped"
    assert found["failures"] == ["a: tests/test_a.py::test_c[x y]"]
    assert found["skipped_because"] == ["tests/test_a.py:3: there is no GPU"]
    half = log[:40] + "\ntests/test_a.py::test_e "
    found = module.tested({"a": None, "b": 0}, {"a": half, "b": log.replace("FAILED", "PASSED")}, 9)
    assert found["ended"] == "3 passed, 0 failed, 1 skipped; 1 of 2 processes stopped after 9 s"
    assert found["stopped_in"] == ["a: tests/test_a.py::test_e"]
    collection = module.tested({"a": 1}, {"a": "ERROR tests/test_a.py - SyntaxError"}, 9)
    assert collection["failures"] == ["a: tests/test_a.py"]
    other = module.tested({"a": 2, "b": 5, "c": "OSError: full"}, {"a": "no such option", "b": "", "c": ""}, 9)
    assert other["failures"] == ["a: exit status 2: no such option", "c: exit status OSError: full: no output"]
    assert module.watched(0, "========= ERROR SUMMARY: 0 errors") == "found nothing"
    assert module.watched(9, "========= ERROR SUMMARY: 3 errors") == "FOUND 3 errors"
    assert module.watched(0, "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)") == "found nothing"
    assert module.watched(1, "ERROR SUMMARY: 0 errors").startswith("FOUND wrong results")
    assert module.watched(1, "Error: no device").startswith("skipped: it does not work here")
    assert sum(module.SHARES.values()) == module.BUDGET
