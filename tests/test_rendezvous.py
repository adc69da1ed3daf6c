"""Processes that torchrun starts again find each other, not those of the start before."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from sparsekern.commands.train import train
from sparsekern.training.progress import StopRequest
from sparsekern.training.rendezvous import part_of_this_start

LONG = timedelta(seconds=30)
COUNT = 3


def come(pool, store, number):
    return pool.submit(part_of_this_start, store, number, COUNT, LONG)


def test_starts_share_nothing():
    store = dist.HashStore()
    with ThreadPoolExecutor(COUNT) as pool:
        parts = [each.result() for each in [come(pool, store, number) for number in range(COUNT)]]
        parts[0].set("address", "here")
        assert [part.get("address") for part in parts] == [b"here"] * COUNT
        for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):  # the tokens of those before are still there
            early, late = order[:-1], order[-1]
            coming = {number: come(pool, store, number) for number in early}
            time.sleep(0.1)
            assert not coming[0].done() if 0 in early else not any(each.done() for each in coming.values())
            coming[late] = come(pool, store, late)
            parts = [coming[number].result() for number in range(COUNT)]
            assert not any(part.check(["address"]) for part in parts)
            parts[1].set("address", "there")
            assert [part.get("address") for part in parts] == [b"there"] * COUNT


def test_processes_that_do_not_come_are_named():
    with pytest.raises(RuntimeError, match=r"after 0.05 s, process\(es\) \[1, 2\] had not come"):
        part_of_this_start(dist.HashStore(), 0, COUNT, timedelta(seconds=0.05))


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_a_timeout_is_some_time(seconds, capsys):
    assert train([f"--timeout={seconds}"]) == 1
    assert f"--timeout is {seconds}; expected seconds above 0" in capsys.readouterr().err


def test_under_torchrun_a_second_signal_does_not_end_a_save(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
