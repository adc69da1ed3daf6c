"""CSV files that grow by a row at a time and can be cut back to a step."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sparsekern.atomic import replace_file


class CsvLog:
    """A CSV file with a header; every row has a `step` and has left this process when `append` returns."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self.path, self.columns = path, columns

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        rows = list(rows)
        is_new = not self.path.exists()
        if not rows and not is_new:
            return
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            if is_new:
                writer.writeheader()
            writer.writerows(rows)

    def cut(self, step: int, tested: int | None = None) -> None:
        """Removes the rows after `step`: what a run wrote after the checkpoint that it now resumes from.

        Rows of an epoch are written once it is tested, which comes after its last step and maybe after a checkpoint of
        that step: of those, the ones after step `tested`, the end of the last epoch that the checkpoint counts.
        """
        last = {False: step, True: step if tested is None else tested}
        if self.path.exists():
            # A row cut short by a kill has fields that are None; a power loss can leave anything in the last ones.
            whole = [row for row in read_csv(self.path) if None not in row.values() and row["step"].isdecimal()]
            kept = [row for row in whole if int(row["step"]) <= last["epoch" in row or row.get("what") == "epoch"]]
            replace_file(self.path, lambda aside: CsvLog(aside, self.columns).append(kept))


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows, as text by column; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", errors="replace") as file:
        return list(csv.DictReader(line.replace("\0", "") for line in file))
