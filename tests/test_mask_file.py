import json
import os
import struct

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sparsekern import sealed
from sparsekern.masks import Masks, load_masks, magnitude, save_masks
from sparsekern.masks import file as mask_file
from sparsekern.pattern import Pattern
from sparsekern.training.checkpoint import save_checkpoint


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3))


def make_masks(values=True):
    model = make_model()
    masks = magnitude(model, 0.31, exclude=())
    masks.settings["seed"] = 7
    return masks.with_values(model) if values else masks


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "masks.safetensors"
    save_masks(path, make_masks())
    return path


@pytest.mark.parametrize("values", [True, False])
def test_round_trip_is_exact(values, tmp_path):
    masks = make_masks(values)
    save_masks(str(tmp_path / "x"), masks)
    loaded = load_masks(str(tmp_path / "x"))
    assert list(loaded) == list(masks)
    for name, pattern in masks.items():
        assert loaded[name].equal(pattern)
        loaded[name].validate()
    assert loaded.shapes == masks.shapes == {"0": (5, 2, 3, 3), "4": (3, 20)}
    assert (loaded.method, loaded.density, loaded.settings) == ("magnitude", 0.31, {"exclude": [], "seed": 7})
    if not values:
        assert loaded.state is None
        return
    assert loaded.state.keys() == masks.state.keys()
    for key, value in masks.state.items():
        assert loaded.state[key].dtype == value.dtype
        assert torch.equal(loaded.state[key], value)
    model, direct = make_model(seed=1), make_model()
    loaded.apply(model)
    masks.apply(direct, keep_weights=True)
    images = torch.randn(2, 2, 4, 4)
    assert torch.equal(model.eval()(images), direct.eval()(images))


def test_file_holds_no_dense_weight(saved):
    sizes = {
        name: tensor.numel() for name, tensor in sealed.load_sealed(saved, mask_file.FORMAT, 1, ValueError)[1].items()
    }
    assert "state/0.weight" in sizes
    assert max(sizes.values()) < 60


@pytest.mark.parametrize("share", [*range(0, 100, 7), 99])
def test_truncated_file(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: len(content) * share // 100])
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_masks(saved)


def test_every_flipped_bit_is_an_error(saved):
    content = saved.read_bytes()
    generator = torch.Generator().manual_seed(1)
    for position in torch.randint(8 * len(content), (200,), generator=generator).tolist():
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        saved.write_bytes(damaged)
        with pytest.raises(ValueError):
            load_masks(saved)


def test_files_of_other_kinds(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no mask file at .*gone"):
        load_masks(tmp_path / "gone")
    save_file({"x": torch.zeros(2)}, tmp_path / "alien")
    with pytest.raises(ValueError, match="not a mask file of sparsekern"):
        load_masks(tmp_path / "alien")
    save_checkpoint(tmp_path / "checkpoint", {"x": torch.zeros(2)})
    with pytest.raises(ValueError, match="not a mask file of sparsekern"):
        load_masks(tmp_path / "checkpoint")
    (tmp_path / "text").write_text("SNIP")
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_masks(tmp_path / "text")


def test_newer_format(tmp_path, monkeypatch):
    monkeypatch.setattr(mask_file, "VERSION", 2)
    save_masks(tmp_path / "x", make_masks())
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"format 2, newer than format 1 .*upgrade"):
        load_masks(tmp_path / "x")


def rewrite(path, change):
    """The file with other contents under a checksum that is right."""
    text, tensors = sealed.load_sealed(path, mask_file.FORMAT, mask_file.VERSION, ValueError)
    header = json.loads(text)
    change(header, tensors)
    sealed.save_sealed(path, mask_file.FORMAT, mask_file.VERSION, json.dumps(header), tensors)


def set_item(name, index, value):
    return lambda header, tensors: tensors[name].__setitem__(index, value)


ROWS, COLUMNS = "patterns/0/row_indices", "patterns/0/ccol_indices"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_item(ROWS, 0, 5), r"layer '0': row_indices\[0\] = 5 is out of range: it must be in \[0, 5\)"),
        (set_item(ROWS, 0, -1), r"layer '0': row_indices\[0\] = -1 is out of range"),
        (set_item(COLUMNS, 0, 1), r"layer '0': ccol_indices\[0\] = 1: it must start with 0"),
        (set_item(COLUMNS, -1, 10**6), r"layer '0': ccol_indices\[18\] = "),
        (
            lambda header, tensors: tensors.update({ROWS: tensors[ROWS].float()}),
            "layer '0': row_indices must have dtype",
        ),
        (lambda header, tensors: tensors.pop(COLUMNS), "no whole mask file: it has no 'patterns/0/ccol_indices'"),
        (lambda header, tensors: header.pop("density"), "no whole mask file: it has no 'density'"),
        (lambda header, tensors: header.update(density=0.9), "density is 0.9, which gives 135 of 150"),
        (lambda header, tensors: header["shapes"].update({"0": [5, 3, 3, 3]}), "ccol_indices must have 28 elements"),
        (lambda header, tensors: header.update(shapes=3), "cannot be used"),
        (lambda header, tensors: header.update(settings=3), "cannot be used"),
    ],
)
def test_contents_that_do_not_hold_together(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(ValueError, match=message):
        load_masks(saved)


def test_failing_write_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def fail_half_way(tensors, path, metadata):
        path.write_bytes(before[: len(before) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sparsekern.sealed.save_file", fail_half_way)
    with pytest.raises(OSError, match="No space left"):
        save_masks(saved, make_masks(values=False))
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_settings_that_cannot_be_saved(tmp_path):
    masks = Masks({"a": Pattern.random((4, 6), 5)}, {"a": (4, 6)}, settings={"model": nn.Identity()})
    with pytest.raises(TypeError, match="Identity"):
        save_masks(tmp_path / "x", masks)
    assert not list(tmp_path.iterdir())


def test_header_is_plain_json(saved):
    content = saved.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    assert metadata["format"] == "sparsekern mask file"
    assert json.loads(metadata["state"])["method"] == "magnitude"
