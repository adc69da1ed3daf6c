import collections
import dataclasses
import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsekern.atomic import replace_file
from sparsekern.training import checkpoint
from sparsekern.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from sparsekern.training.config import DataConfig, ModelConfig, TostConfig, TrainConfig
from sparsekern.training.trainer import Trainer


def make_state():
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(3, 4, generator=generator)
    base = torch.randn(10, generator=generator)
    return {
        "model": {"a.weight": shared, "b.weight": shared, "half": torch.ones(2).bfloat16(), "scalar": torch.tensor(7)},
        "views": [base[2:5], base[4:8], base.view(2, 5), base.view(2, 5).T],
        "empty": torch.empty(0, 3),
        "indices": torch.arange(5, dtype=torch.int32),
        "rng": torch.get_rng_state(),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}, 1: {}}, "groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]},
        "scheduler": {"milestones": collections.Counter({3: 1, 6: 2}), "rates": [1e-300, float("inf"), 0.1 + 0.2]},
        "none": None,
        "$kind": "a key that the format itself uses",
        "flag": True,
    }


def assert_same(left, right):
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        assert left == right


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, make_state())
    return path


def test_round_trip_is_exact(saved):
    assert_same(load_checkpoint(saved), make_state())


def test_tensors_are_there_for_other_safetensors_readers(saved):
    tensors = load_file(saved)
    assert torch.equal(tensors["model/a.weight"], make_state()["model"]["a.weight"])
    assert "model/b.weight" not in tensors  # the same tensor, stored once


def test_values_that_cannot_be_saved_are_named(tmp_path):
    with pytest.raises(TypeError, match="cannot save growth/callback: function"):
        save_checkpoint(tmp_path / "x", {"growth": {"callback": lambda: 0}})


def test_every_truncation_is_an_error(saved):
    content = saved.read_bytes()
    for share in range(100):
        saved.write_bytes(content[: len(content) * share // 100])
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            load_checkpoint(saved)
    saved.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        load_checkpoint(saved)


def test_every_flipped_bit_is_an_error(saved):
    content = saved.read_bytes()
    generator = torch.Generator().manual_seed(1)
    for position in torch.randint(8 * len(content), (300,), generator=generator).tolist():
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        saved.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_checkpoint(saved)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*gone"):
        load_checkpoint(tmp_path / "gone")


def test_other_safetensors_file(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="not a checkpoint of sparsekern"):
        load_checkpoint(tmp_path / "x")


def test_newer_format(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "VERSION", checkpoint.VERSION + 1)
    save_checkpoint(tmp_path / "x", make_state())
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"format 2, newer than format 1 .*upgrade"):
        load_checkpoint(tmp_path / "x")


def test_changed_metadata_fails_the_checksum(saved):
    content = saved.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"]["state"] = header["__metadata__"]["state"].replace("0.9,", "0.8,")
    encoded = json.dumps(header).encode()
    saved.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])
    with pytest.raises(CheckpointError, match="do not match their checksum"):
        load_checkpoint(saved)


def test_failing_write_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def fail_half_way(tensors, path, metadata):
        path.write_bytes(before[: len(before) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sparsekern.sealed.save_file", fail_half_way)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(saved, {"other": torch.zeros(3)})
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_file_is_whole_on_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("sync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append("move"), replace(old, new)))
    replace_file(tmp_path / "x", lambda aside: aside.write_text("content"))
    assert events == ["sync", "move", "sync"]
    assert (tmp_path / "x").read_text() == "content"


def test_a_run_of_a_version_without_later_parts_goes_on():
    pytest.importorskip("sklearn")
    config = TrainConfig(ModelConfig("mlp", width=8, depth=1), DataConfig(batch_size=512))
    state = Trainer(config).state_dict()
    del state["average"], state["tost"], state["config"]["tost"], state["config"]["optimizer"]["ema"]
    del state["config"]["data"]["mixup"], state["config"]["sparsity"]["mask"]
    Trainer(config, restoring=True).load_state_dict(state)
    other = Trainer(dataclasses.replace(config, tost=TostConfig(ghost_neurons=True)), restoring=True)
    with pytest.raises(CheckpointError, match=r"its tost\.ghost_neurons is False, here it is True"):
        other.load_state_dict(state)
