"""How many runs at a time, and on how many threads."""

from __future__ import annotations

from collections.abc import Sequence

from sparsekern.compare.machine import cores_at_hand, memory_at_hand
from sparsekern.compare.process import RunProcess

MARGIN = (
    1.25  # of the largest run so far, for the next: others keep more, and updates of the topology are still to come
)


class Capacity:
    """Lets runs start: as many as were asked for, or as the cores and the memory at hand allow.

    Memory is not computed but measured: of the first run, while it is alone, and of all others as they go on.
    """

    def __init__(self, jobs: int | None, runs: int, threads: int | None, device: str) -> None:
        self.cores, self.is_asked, self.device = cores_at_hand(), jobs is not None, device
        self.given_threads = threads
        # Other devices than the CPU are not counted: one run has it to itself.
        possible = max(1, self.cores // (threads or 1)) if device == "cpu" else 1
        self.jobs = jobs or min(runs, possible)
        self.largest = 0
        self.is_settled = self.is_asked or self.jobs == 1 or memory_at_hand() is None

    @property
    def threads(self) -> int:
        return self.given_threads or max(1, self.cores // self.jobs)

    def admits(self, running: Sequence[RunProcess]) -> bool:
        """Whether one more run may start now."""
        if len(running) >= self.jobs:
            return False
        available = memory_at_hand()
        if self.is_asked or available is None:
            return True
        now_and_most = [run.memory() for run in running]
        self.largest = max([self.largest, *(most for _, most in now_and_most)])
        needed = int(MARGIN * self.largest)
        free = available - sum(max(0, needed - now) for now, _ in now_and_most)
        if not self.is_settled and needed > 0 and all(run.is_settled() for run in running):
            self.jobs = max(1, min(self.jobs, len(running) + free // needed))
            self.is_settled = True
        return not running or (self.is_settled and len(running) < self.jobs and free >= needed)

    def describe(self) -> str:
        """The choice and why, in a line."""
        runs = "1 run at a time" if self.jobs == 1 else f"{self.jobs} runs at a time"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        reasons = [f"{self.cores} core{'s' * (self.cores > 1)} at hand"]
        if self.is_asked:
            reasons.append(f"--jobs {self.jobs}")
        if self.given_threads:
            reasons.append(f"--threads {self.given_threads}")
        if self.device != "cpu":
            reasons.append(f"device {self.device}")
        available = memory_at_hand()
        if self.largest and available is not None:
            reasons.append(
                f"the first run took {self.largest / 2**30:.2f} GiB, {available / 2**30:.1f} GiB more are free"
            )
        return f"{runs}, {threads} each ({'; '.join(reasons)})"
