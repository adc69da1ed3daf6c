"""CIFAR and TinyImageNet from archives in the form in which they are distributed."""

import os
import pickle
import sys

import numpy as np
import pytest
import torch
from archives import (
    cifar_archive,
    cifar_files,
    extracted,
    flipped,
    python2_pickle,
    tiny_imagenet_archive,
    tiny_imagenet_files,
)

from sparsekern.data import CIFAR10, CIFAR100, BatchLoader, DataError, load_cifar, load_tiny_imagenet
from sparsekern.data.unpickle import unpickle

KINDS = {10: CIFAR10, 100: CIFAR100}


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("form", ["archive", "folder", "archive itself", "folder itself"])
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_is_read_in_order_and_unchanged(classes, form, tmp_path):
    path, files = cifar_archive(tmp_path, classes)
    if "folder" in form:
        extracted(path, tmp_path)
    root = tmp_path
    if "itself" in form:
        root = path if "archive" in form else tmp_path / KINDS[classes].distribution.folder
    data = load_cifar(KINDS[classes], root)
    *train, test = files.values()
    key = "labels" if classes == 10 else "fine_labels"
    expected = np.concatenate([batch["data"] for batch in train]).reshape(-1, 3, 32, 32)
    assert data.train_images.dtype == torch.uint8
    assert np.array_equal(data.train_images.numpy(), expected)
    assert data.train_labels.tolist() == [label for batch in train for label in batch[key]]
    assert np.array_equal(data.test_images.numpy(), test["data"].reshape(-1, 3, 32, 32))
    assert data.test_labels.tolist() == test[key]
    assert (data.classes, data.channels, data.size) == (classes, 3, 32)


def test_pickles_of_python_3_are_read_too():
    batch = cifar_files(10)["test_batch"]
    for protocol in (2, 4):
        again = unpickle(pickle.dumps(batch, protocol))
        assert np.array_equal(again.pop("data"), batch["data"])
        assert again.items() <= batch.items()


@pytest.mark.parametrize("classes", [10, 100])
def test_missing_cifar_says_where_to_get_it_and_where_to_put_it(classes, tmp_path):
    name, folder = f"cifar-{classes}-python.tar.gz", KINDS[classes].distribution.folder
    with pytest.raises(FileNotFoundError, match=rf"(?s)CIFAR-{classes} in {tmp_path}.*{name}.*cs\.toronto.*{folder}"):
        load_cifar(KINDS[classes], tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "not an archive", 0.1, 0.5, 0.9, 0.9999])
def test_damaged_archive(damage, tmp_path):
    path, _ = cifar_archive(tmp_path, 10)
    if damage == "truncated":
        truncate(path)
    elif isinstance(damage, float):
        flipped(path, damage)
    else:
        path.write_bytes(b"" if damage == "empty" else b"<html>404</html>")
    with pytest.raises(DataError, match=rf"{path} is damaged.*Get cifar-10-python.tar.gz from there anew"):
        load_cifar(CIFAR10, tmp_path)


def spoiled(change):
    files = cifar_files(10)
    change(files)
    return files


BATCHES = {
    "data_batch_3 is missing": lambda files: files.pop("data_batch_3"),
    "data_batch_2: .* asks for posix.system": lambda files: files.update(data_batch_2=b"cposix\nsystem\n(U\x04trueR."),
    "data_batch_2: its pickle cannot": lambda files: files.update(
        data_batch_2=python2_pickle(files["test_batch"])[:99]
    ),
    "data_batch_2: it holds no 'data'": lambda files: files.update(data_batch_2=[1, 2]),
    "3072 an image": lambda files: files["test_batch"].update(data=np.zeros((16, 3000), np.uint8)),
    "from 0 to 10; there are 10": lambda files: files["test_batch"].update(labels=[0, 10] * 8),
    "not as many whole": lambda files: files["test_batch"].update(labels=[1]),
}


@pytest.mark.parametrize("message", BATCHES)
@pytest.mark.parametrize("form", ["archive", "folder"])
def test_damaged_batches(message, form, tmp_path):
    path, _ = cifar_archive(tmp_path, 10, spoiled(BATCHES[message]))
    if form == "folder":
        extracted(path, tmp_path)
    with pytest.raises(DataError, match=message):
        load_cifar(CIFAR10, tmp_path)


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize("hidden", [Attack(), {"data": [Attack()]}, np.array([Attack()], dtype=object)])
def test_pickles_run_nothing(hidden, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="nothing of it was run"):
        unpickle(pickle.dumps(hidden))
    with pytest.raises(ValueError, match="encodes text as 'zip'"):
        unpickle(b"c_codecs\nencode\n(U\x01aU\x03ziptR.")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_tiny_imagenet(form, tmp_path):
    pytest.importorskip("PIL")
    path = tiny_imagenet_archive(tmp_path)
    if form == "folder":
        extracted(path, tmp_path)
    data = load_tiny_imagenet(tmp_path)
    assert (data.classes, data.channels, data.size) == (4, 3, 64)
    assert (len(data.train_images), len(data.test_images)) == (16, 6)
    # One of each class in turn; the class of the highest number was written first, with no red.
    assert data.train_labels.tolist() == [0, 1, 2, 3] * 4
    middle = data.train_images[:, :, 40, 40].int()
    for label in range(4):
        for number in range(3):
            expected = torch.tensor([40 * (3 - label), 50 * number, 100])
            assert (middle[4 * number + label] - expected).abs().max() <= 3
    assert (middle[12:].max(dim=1).values == middle[12:].min(dim=1).values).all()  # grey
    assert data.test_labels.tolist() == [3, 2, 1, 0, 3, 2]


def test_tiny_imagenet_sorts_numbers_as_numbers(tmp_path):
    pytest.importorskip("PIL")
    tiny_imagenet_archive(tmp_path, tiny_imagenet_files(classes=1, train=11))
    data = load_tiny_imagenet(tmp_path)
    assert data.train_images[:3, 1, 40, 40].tolist() == pytest.approx([0, 50, 100], abs=3)


TINY = {
    "wnids.txt is missing": lambda files: files.pop("wnids.txt"),
    "names no class": lambda files: files.update({"wnids.txt": b""}),
    "n00000001 is in wnids.txt alone": lambda files: files.update({"wnids.txt": files["wnids.txt"] + b"\nn00000001"}),
    "has class 'n5' for 'a.JPEG'": lambda files: files.update({"val/val_annotations.txt": b"a.JPEG\tn5\t1"}),
    "val/images/val_2.JPEG is missing": lambda files: files.pop("val/images/val_2.JPEG"),
    "val_1.JPEG cannot be read as an image": lambda files: files.update({"val/images/val_1.JPEG": b"no"}),
    "val_3.JPEG cannot be read as an image": lambda files: files.update(
        {"val/images/val_3.JPEG": files["val/images/val_3.JPEG"][:300]}
    ),
}


@pytest.mark.parametrize("message", TINY)
def test_damaged_tiny_imagenet(message, tmp_path):
    pytest.importorskip("PIL")
    files = tiny_imagenet_files()
    TINY[message](files)
    tiny_imagenet_archive(tmp_path, files)
    with pytest.raises(DataError, match=f"{message}.*Get tiny-imagenet-200.zip"):
        load_tiny_imagenet(tmp_path)


def test_damaged_or_missing_zip(tmp_path):
    pytest.importorskip("PIL")
    with pytest.raises(FileNotFoundError, match=r"TinyImageNet in .*cs231n\.stanford\.edu"):
        load_tiny_imagenet(tmp_path)
    path = tiny_imagenet_archive(tmp_path)
    flipped(path, 0.3)
    with pytest.raises(DataError, match="Bad CRC-32"):
        load_tiny_imagenet(tmp_path)
    truncate(path)
    with pytest.raises(DataError, match="not a zip file"):
        load_tiny_imagenet(tmp_path)


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"sparsekern\[vision\]"):
        load_tiny_imagenet(tmp_path)


def test_bytes_become_normalised_values(tmp_path):
    cifar_archive(tmp_path, 10)
    data = load_cifar(CIFAR10, tmp_path).to(torch.device("cpu"), torch.float64)
    assert data.test_images.dtype == torch.uint8
    images, labels = next(data.batches("test", 7))
    mean, deviation = (torch.tensor(values).double().view(3, 1, 1) for values in (CIFAR10.mean, CIFAR10.deviation))
    torch.testing.assert_close(images, (data.test_images[:7].double() / 255 - mean) / deviation)
    assert torch.equal(labels, data.test_labels[:7])
    assert sum(len(labels) for _, labels in data.batches("test", 7)) == 16


def test_augmentation_crops_the_padded_image_and_mirrors_it(tmp_path):
    cifar_archive(tmp_path, 10)
    data = load_cifar(CIFAR10, tmp_path)
    loader = data.train_loader(80, seed=0, shift=4, flip=True)
    raw = loader.augment(data.train_images)
    padded = torch.nn.functional.pad(data.train_images, (4,) * 4)
    seen = set()
    for image, source in zip(raw, padded, strict=True):
        crops = source.unfold(1, 32, 1).unfold(2, 32, 1)  # (3, 9, 9, 32, 32)
        for mirrored in (False, True):
            wanted = image.flip(2) if mirrored else image
            hits = (crops == wanted.view(3, 1, 1, 32, 32)).all(dim=(0, 3, 4)).nonzero()
            seen.update((mirrored, *hit) for hit in hits.tolist())
    assert len(seen) > 40
    assert {mirrored for mirrored, _, _ in seen} == {False, True}
    assert {row for _, row, _ in seen} == {column for _, _, column in seen} == set(range(9))
    kept = data.train_loader(80, seed=0, shift=0, flip=False).augment(data.train_images)
    assert torch.equal(kept, data.train_images)


def test_crops_and_mirrorings_are_all_as_likely():
    images = torch.zeros(18_000, 1, 3, 7)
    images[:, :, 1, 1] = 1
    loader = BatchLoader(images, torch.zeros(18_000, dtype=torch.int64), 18_000, seed=0, shift=1, flip=True)
    # Where the one pixel has come to: three rows, three columns, and three more where it is mirrored.
    counts = loader.augment(images).sum(dim=(0, 1))[:, [0, 1, 2, 4, 5, 6]]
    assert counts.sum() == len(images)
    assert (counts - 1000).abs().max() < 5 * 1000**0.5
    assert (counts[:, 3:].sum() - 9000).abs() < 5 * 4500**0.5


def test_the_first_images_are_held_out(tmp_path):
    cifar_archive(tmp_path, 10)
    data = load_cifar(CIFAR10, tmp_path)
    held = data.hold_out(30)
    assert torch.equal(held.dev_images, data.train_images[:30])
    assert torch.equal(held.train_images, data.train_images[30:])
    assert torch.equal(torch.cat([labels for _, labels in held.batches("dev", 16)]), data.train_labels[:30])
    assert not data.hold_out(0).has_dev
    with pytest.raises(ValueError, match="less than the 80 training images, got 80"):
        data.hold_out(80)
