"""ImageNet from folders of JPEG files, read as it is used."""

import hashlib
import io
import shutil
import sys
import tarfile
from dataclasses import replace

import pytest
import torch
from archives import imagenet_folders, torchvision_or_skip

from sparsekern.data import DataError, load_imagenet
from sparsekern.data.vision import torchvision

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def installed():
    return torchvision_or_skip()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    imagenet_folders(folder)
    return folder


def loader_of(data, seed=5, flip=True):
    return data.train_loader(5, seed=seed, shift=0, flip=flip)


def batches(loader, epochs):
    return [batch for _ in range(epochs) for batch in loader]


def assert_same(left, right):
    assert len(left) == len(right) > 0
    for (images, labels), (others, their_labels) in zip(left, right, strict=True):
        assert torch.equal(labels, their_labels)
        assert torch.equal(images, others)


def test_what_is_read(root):
    data = load_imagenet(root).to(CPU, torch.float64)
    assert (data.classes, data.channels, data.size) == (3, 3, 224)
    loader = loader_of(data)
    assert len(loader) == 4
    first, second = (torch.cat([labels for _, labels in loader]) for _ in range(2))
    assert not torch.equal(first, second)
    images, _ = next(iter(loader))
    assert images.shape == (5, 3, 224, 224)
    assert images.dtype == torch.float64
    assert [len(labels) for _, labels in data.batches("test", 7)] == [7, 5]
    assert torch.cat([labels for _, labels in data.batches("test", 7)]).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert loader.peek().shape == (5, 3, 224, 224)


def test_test_images_are_the_middle_of_the_resized_ones(root):
    from PIL import Image

    data = load_imagenet(root)
    images, _ = next(data.batches("test", 4))
    with Image.open(data.test[0][0]) as picture:  # 180 x 300
        resized = torch.frombuffer(bytearray(picture.resize((256, 426), Image.BILINEAR).tobytes()), dtype=torch.uint8)
    middle = resized.view(426, 256, 3).permute(2, 0, 1)[:, 101 : 101 + 224, 16 : 16 + 224].float() / 255
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.deviation))
    assert (images[0] - (middle - mean) / deviation).abs().mean() < 0.02


def test_workers_and_place_in_the_order_do_not_matter(root):
    data = load_imagenet(root)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    alone = batches(loader_of(data), 2)
    assert torch.equal(torch.get_rng_state(), before)  # the run's own randomness is not touched
    assert_same(batches(loader_of(data.with_workers(2)), 2), alone)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(batches(loader_of(data, flip=False), 1)[0][0], alone[0][0])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [2, 4, 5])
def test_resumed_in_the_middle_of_an_epoch(root, workers, stop):
    data = load_imagenet(root).with_workers(workers)
    whole = batches(loader_of(data), 2)
    loader, before = loader_of(data), []
    while len(before) < stop:
        for batch in loader:
            before.append(batch)
            if len(before) == stop:
                break
    resumed = loader_of(data, seed=99)
    resumed.load_state_dict(loader.state_dict())
    assert_same(batches(resumed, 2)[: 8 - stop], whole[stop:])
    assert_same(batches(loader, 2)[: 8 - stop], whole[stop:])  # as does the one that was interrupted


def test_an_image_is_cropped_anew_each_epoch_and_mirrored_half_of_the_time(root):
    data = replace(load_imagenet(root), augment=lambda picture: picture.resize((224, 224)))
    corners = []
    for _ in range(3):
        for images, _ in loader_of(data):
            corners += (images[:, :, 10, 10] > 2).all(dim=1).tolist()
    assert 0.2 < sum(corners) / len(corners) < 0.8
    one = replace(load_imagenet(root), train=load_imagenet(root).train[:1])
    first, second = (images for images, _ in batches(one.train_loader(1, seed=0, shift=0, flip=False), 2))
    assert not torch.equal(first, second)


def test_held_out_images_are_of_all_classes_alike(root):
    whole = load_imagenet(root)
    data = whole.hold_out(7)
    labels = torch.cat([labels for _, labels in data.batches("dev", 4)])
    assert labels.bincount().tolist() == [3, 2, 2]
    assert sorted([*data.dev, *data.train]) == sorted(whole.train)
    with pytest.raises(ValueError, match="less than the 24 training images"):
        whole.hold_out(24)


def test_a_shift_is_refused(root):
    with pytest.raises(ValueError, match=r"shift must be 0 for imagenet.*got 2"):
        load_imagenet(root).train_loader(4, seed=0, shift=2, flip=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(root, workers, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    victim = tmp_path / "data" / "train" / "n00000002" / "n00000002_3.JPEG"
    victim.write_bytes(victim.read_bytes()[:200])
    with pytest.raises(DataError, match=f"{victim} cannot be read as an image"):
        batches(loader_of(load_imagenet(tmp_path / "data").with_workers(workers)), 2)


def test_folders_that_are_not_whole(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ILSVRC2012_img_train.tar.*image-net\.org"):
        load_imagenet(tmp_path)
    shutil.copytree(root, tmp_path / "data")
    (tmp_path / "data" / "train" / "n00000009.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"n00000009.tar lies beside the class folders"):
        load_imagenet(tmp_path / "data")
    (tmp_path / "data" / "train" / "n00000009.tar").unlink()
    shutil.rmtree(tmp_path / "data" / "val" / "n00000002")
    with pytest.raises(DataError, match="class n00000002 is in only one of"):
        load_imagenet(tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "val")
    (tmp_path / "data" / "val").mkdir()
    with pytest.raises(DataError, match="not a folder of class folders"):
        load_imagenet(tmp_path / "data")


def tar(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def distribute(root, folder, monkeypatch):
    """The images of `root` as the archives of ILSVRC 2012 in `folder`, whose checksums torchvision then expects."""
    scipy_io = pytest.importorskip("scipy.io")
    wnids = sorted(each.name for each in (root / "train").iterdir())
    train = {
        f"{wnid}.tar": tar({each.name: each.read_bytes() for each in sorted((root / "train" / wnid).iterdir())})
        for wnid in wnids
    }
    val = [
        (each.read_bytes(), number) for number, wnid in enumerate(wnids, 1) for each in (root / "val" / wnid).iterdir()
    ]
    kinds = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "i4")]
    import numpy as np

    synsets = np.array([(number, wnid, f"thing {number}", "", 0) for number, wnid in enumerate(wnids, 1)], dtype=kinds)
    meta = io.BytesIO()
    scipy_io.savemat(meta, {"synsets": synsets})
    truth = "".join(f"{number}\n" for _, number in val).encode()
    devkit = {"data/meta.mat": meta.getvalue(), "data/ILSVRC2012_validation_ground_truth.txt": truth}
    archives = {
        "train": ("ILSVRC2012_img_train.tar", tar(train)),
        "val": (
            "ILSVRC2012_img_val.tar",
            tar({f"ILSVRC2012_val_{place:08}.JPEG": content for place, (content, _) in enumerate(val, 1)}),
        ),
        "devkit": (
            "ILSVRC2012_devkit_t12.tar",
            tar({f"ILSVRC2012_devkit_t12/{name}": content for name, content in devkit.items()}),
        ),
    }
    folder.mkdir()
    for name, content in archives.values():
        (folder / name).write_bytes(content)
    sums = {key: (name, hashlib.md5(content).hexdigest()) for key, (name, content) in archives.items()}
    monkeypatch.setattr(sys.modules["torchvision.datasets.imagenet"], "ARCHIVE_META", sums)


def test_distributed_archives_are_unpacked(root, tmp_path, monkeypatch):
    distribute(root, tmp_path / "data", monkeypatch)
    data, whole = load_imagenet(tmp_path / "data"), load_imagenet(root)
    assert [label for _, label in data.train] == [label for _, label in whole.train]
    assert_same(batches(loader_of(data), 1), batches(loader_of(whole), 1))
    assert data.classes == 3
    assert len(data.test) == len(whole.test)
    shutil.rmtree(tmp_path / "data" / "val")
    archive = tmp_path / "data" / "ILSVRC2012_img_val.tar"
    archive.write_bytes(archive.read_bytes()[:-5000])
    with pytest.raises(DataError, match=rf"{archive} cannot be unpacked.*corrupted.*image-net\.org"):
        load_imagenet(tmp_path / "data")


def test_a_torchvision_that_does_not_fit_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"(?s)mixing needs torchvision.*sparsekern\[vision\]"):
        torchvision("mixing needs")
    monkeypatch.delitem(sys.modules, "torchvision")

    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"built for another torch than .*nms does not exist.*pip install"):
        torchvision("mixing needs")
