"""docs/report.md: its Python runs, and it names the files' columns."""

import re
from pathlib import Path

from sparsekern.training.folder import LAYERS, METRICS, RESOURCES, TOPOLOGY

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "report.md").read_text()


def test_its_python_runs(capsys, one_thread):
    (block,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    exec(compile(block, "report.md", "exec"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(int(step), layer) for step, layer, *_ in lines] == [(n, name) for n in (5, 10, 15, 20) for name in "02"]


def test_it_names_all_columns():
    named = set(re.findall(r"`([\w.]+)`", TEXT))
    assert "fan_out_..." in named
    for column in {*TOPOLOGY, *LAYERS, *RESOURCES} - {"layer", "epoch"}:
        side, _, figure = column.rpartition("_")
        spread = side in ("fan_in", "fan_out") and {f"_{figure}", f"fan_in_{figure}"} & named
        assert column in named or spread, column
    assert {"lr", "seconds", "replaced_share", "grad_norm"} <= named & set(METRICS)
