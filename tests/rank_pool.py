"""Processes for tests on several ranks: started once, each test with a process group of its own."""

import datetime
import os
import tempfile
import time
import traceback

import torch.multiprocessing as mp


class RankPool:
    """As many processes as asked for: ``pool(world, function, *args)`` lists each one's ``function(rank, *args)``."""

    def __init__(self):
        self.workers = []

    def start(self, count):
        context = mp.get_context("spawn")
        while len(self.workers) < count:
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self.workers.append((process, ours))

    def __call__(self, world, function, *args, timeout=240, group_timeout=120):
        """Raises AssertionError with the traceback of a rank that failed; see `outcomes` for more of them."""
        found = self.outcomes(world, function, *args, timeout=timeout, group_timeout=group_timeout)
        for kind, content in found:
            assert kind == "returned", content
        return [content for _, content in found]

    def outcomes(self, world, function, *args, timeout=240, group_timeout=120):
        """("returned", value), ("raised", traceback) or ("ended", exit code) of each rank; all within ``timeout``."""
        self.start(world)
        found = []
        with tempfile.TemporaryDirectory() as folder:
            for rank, (_, pipe) in enumerate(self.workers[:world]):
                pipe.send((function, rank, world, f"{folder}/store", group_timeout, args))
            deadline = time.monotonic() + timeout
            for process, pipe in self.workers[:world]:
                if not pipe.poll(max(0, deadline - time.monotonic())):
                    self.stop()
                    raise AssertionError(f"a rank is not done after {timeout} s; the others: {found}")
                try:
                    found.append(pipe.recv())
                except (EOFError, ConnectionResetError):
                    process.join()
                    found.append(("ended", process.exitcode))
        if any(kind != "returned" for kind, _ in found):
            self.stop()
        return found

    def stop(self):
        for process, pipe in self.workers:
            process.kill()
            process.join()
            pipe.close()
        self.workers = []


def work(pipe):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    while True:
        try:
            function, rank, world, store, group_timeout, args = pipe.recv()
        except EOFError:
            return
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world,
            timeout=datetime.timedelta(seconds=group_timeout),
        )
        try:
            outcome = ("returned", function(rank, *args))
            dist.destroy_process_group()
        except Exception:
            outcome = ("raised", traceback.format_exc())
        pipe.send(outcome)
        if outcome[0] == "raised":
            return  # or the others would wait for what it no longer takes part in
