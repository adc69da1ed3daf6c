"""How much faster than dense, and from which sparsity on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BreakEven:
    """`bound` is "at" a sparsity in percent, "below" the lowest that was measured, or "above" the highest."""

    bound: str
    sparsity: float

    @classmethod
    def of(cls, speeds: dict[float, float]) -> BreakEven:
        """From the speed against dense by sparsity, 1 where equal; between two sparsities its logarithm is a line.

        The last crossing counts: from there on, sparse is faster at all that was measured.
        """
        points = sorted(speeds.items())
        if points[-1][1] < 1:
            return cls("above", points[-1][0])
        slower = [index for index, (_, speed) in enumerate(points) if speed < 1]
        if not slower:
            return cls("below", points[0][0])
        (left, slow), (right, fast) = points[slower[-1]], points[slower[-1] + 1]
        share = -math.log(slow) / (math.log(fast) - math.log(slow))
        return cls("at", round(left + share * (right - left), 1))

    def __str__(self) -> str:
        sign = {"at": "", "below": "≤ ", "above": "> "}[self.bound]
        return f"{sign}{self.sparsity:.3g}%"

    def as_dict(self) -> dict[str, Any]:
        return {"bound": self.bound, "sparsity": self.sparsity}


def speeds_against_dense(rows: list[dict[str, Any]]) -> dict[str, dict[float, float]]:
    """How many times faster than the best dense: by library, whose best way counts, and by sparsity."""
    dense_ms = min(row["ms"]["median"] for row in rows if row["library"] == "dense")
    speeds: dict[str, dict[float, float]] = {}
    for each in rows:
        if each["library"] != "dense":
            of_library = speeds.setdefault(each["library"], {})
            speed = dense_ms / each["ms"]["median"]
            of_library[each["sparsity"]] = max(speed, of_library.get(each["sparsity"], 0.0))
    return speeds


def break_evens(rows: list[dict[str, Any]]) -> dict[str, BreakEven]:
    """By library, against the best dense."""
    speeds = speeds_against_dense(rows)
    return {library: BreakEven.of(by_sparsity) for library, by_sparsity in speeds.items()}
