"""Where dense measured faster: the table, the page, and what `sparsekern info` says of a network."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import crossover as command
from benchmarks.options import Crossover
from sparsekern import _C
from sparsekern.counting import LayerCount
from sparsekern.crossover import Crossover as Entry
from sparsekern.crossover import measured, nearest, notes

ROOT = Path(__file__).resolve().parents[1]


def entry(rows=64, columns=64, kernel=0, bound="at", sparsity=50.0, **more):
    given = dict(device="cpu", machine="M", kernels=_C.isa(), dtype="float32", against="float32", layer="a layer")
    return Entry(
        **given | more, kernel=kernel, rows=rows, columns=columns, bound=bound, sparsity=sparsity, source="file"
    )


def layer(name, density, shape=(64, 64), kind="SparseLinear"):
    dense = 1000
    return LayerCount(name, kind, shape, weights=round(density * dense), dense_weights=dense)


def test_the_table_and_the_page_are_made_from_the_files(tmp_path):
    options = Crossover(table=tmp_path / "table.json", file=tmp_path / "page.md")
    command.run(options)
    wrong = "python -m benchmarks crossover"
    assert options.table.read_text() == (ROOT / "sparsekern" / "crossover.json").read_text(), wrong
    assert options.file.read_text() == (ROOT / "docs" / "crossover.md").read_text(), wrong


def test_every_figure_is_a_files(tmp_path):
    assert len(measured()) > 20
    for each in measured():
        path = ROOT / each.source.split(" ")[0]
        content = json.loads(path.read_text())
        found = next(layer for layer in content["layers"] if layer["layer"] == each.layer)
        assert found["break_even"]["sparsekern"] == {"bound": each.bound, "sparsity": each.sparsity}
        assert content["machine"]["processor"] == each.machine


def test_no_result_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no result of a layer"):
        command.run(Crossover(results=tmp_path, table=tmp_path / "table.json", file=tmp_path / "page.md"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="'attention' has neither"):
        command.matrix("attention")


def test_a_gpus_results(tmp_path):
    row = {"way": "sparsekern triton bfloat16", "family": "sparsekern", "backend": "triton"}
    even = {"way": row["way"], "precision": "bfloat16", "against": "bfloat16", "bound": "at", "sparsity": 97.5}
    theirs = {"way": "torch CSR", "precision": "bfloat16", "against": "bfloat16", "bound": "above", "sparsity": 99.9}
    entries = [{"layer": "linear 768->3072, 8192 tokens", "results": [row], "break_even": [even, theirs]}]
    machine = {"gpu": {"name": "NVIDIA X1"}, "commit": "0123456789ab", "versions": {"torch": "2.11"}}
    content = {"device": "cuda", "smoke": False, "machine": machine, "date": "2026-01-01", "entries": entries}
    for folder, smoke in (("x1", False), ("rehearsal", True)):
        (tmp_path / folder / "gpu").mkdir(parents=True)
        (tmp_path / folder / "gpu" / "layers.json").write_text(json.dumps(content | {"smoke": smoke}))
    (found,) = command.on_gpus(tmp_path)
    assert (found.machine, found.kernels, found.rows, found.columns) == ("NVIDIA X1", "triton", 3072, 768)
    assert (found.bound, found.sparsity, found.dtype) == ("at", 97.5, "bfloat16")
    text = command.page([found])
    assert "| linear 768->3072, 8192 tokens | 97.5% |" in text
    assert "Not measured" not in text
    assert any(
        "NVIDIA X1, triton kernels, bfloat16: 1 of 1" in line for line in notes([layer("a", 0.1, (3072, 768))], [found])
    )


def test_matrices_of_names():
    assert command.matrix("conv 3x3 stride 2 128->256, 64 images of 16x16") == dict(kernel=3, rows=256, columns=1152)
    assert command.matrix("conv 1x1 256->1024, 32 images of 14x14") == dict(kernel=1, rows=1024, columns=256)


def test_when_dense_is_faster():
    assert entry().dense_is_faster(0.51)
    assert not entry().dense_is_faster(0.49)
    assert entry(bound="above", sparsity=99.9).dense_is_faster(0.002)
    assert not entry(bound="above", sparsity=99.9).dense_is_faster(0.0005)  # not measured
    assert not entry(bound="below", sparsity=30.0).dense_is_faster(0.9)  # not measured


def test_the_nearest():
    small, large, conv = entry(64, 64), entry(1024, 1024), entry(64, 576, kernel=3)
    table = [small, large, conv]
    assert nearest(table, 0, 100, 130) is small
    assert nearest(table, 0, 400, 400) is large
    assert nearest(table, 3, 128, 1152) is conv
    assert nearest(table, 0, 64, 6400) is None
    assert nearest(table, 7, 64, 147) is None


def test_the_layers_of_a_network():
    other = "portable" if _C.isa() != "portable" else "avx2"
    table = [
        entry(),
        entry(machine="N", kernels=other),
        entry(machine="GPU", device="cuda", kernels="triton", sparsity=97.0),
    ]
    layers = [layer("a", 0.6), layer("b", 0.4), layer("far", 0.9, (64, 64, 7, 7)), layer("dense", 1.0, kind="Linear")]
    layers += [layer(f"more.{index}", 0.7) for index in range(5)]
    head, *lines = notes(layers, table)
    assert "docs/crossover.md" in head
    cpu, gpu = lines
    assert cpu.startswith(f"  M, {_C.isa()} kernels, float32: 6 of 8; nothing like 1 of them was measured")
    assert "faster sparse from 50% sparse on: a, more.0, more.1, more.2 and 2 more" in cpu
    assert gpu.startswith("  GPU, triton kernels, float32: 7 of 8")
    assert notes([layer("dense", 1.0, kind="Linear")], table) == []
    unmeasured = notes(layers, [replace(table[0], kernels=other)])
    assert unmeasured[1:] == [f"  {_C.isa()} kernels: not measured", "  a GPU: not measured"]


def test_links():
    assert re.search(r"\(crossover\.md\)", (ROOT / "docs" / "gpu.md").read_text())
