"""Small data sets in the form in which the real ones are distributed, and torchvision where it can be had."""

import gzip
import io
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch

CIFAR10_FILES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def torchvision_or_skip():
    """torchvision, also a CUDA build beside a CPU torch, which only lacks the schemas of two operators."""
    try:
        import torchvision
    except ImportError:
        pytest.skip("torchvision is not installed")
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torchvision_or_skip.library = library  # the schemas last as long as it does
        import torchvision
    return torchvision


def python2_pickle(value):
    """As Python 2's pickle.dumps(value, 2) writes it: dicts, lists, tuples, ints, text as byte strings, byte arrays."""

    def text(value):
        value = value if isinstance(value, bytes) else value.encode("latin-1")
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def array(value):
        kind = b"cnumpy\ndtype\n" + write(("u1", 0, 1)) + b"R" + write((3, "|", None, None, None, -1, -1, 0)) + b"b"
        empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + write((0,)) + write("b") + b"tR"
        return empty + b"(" + write(1) + write(value.shape) + kind + b"\x89" + text(value.tobytes()) + b"tb"

    def write(value):
        if value is None:
            return b"N"
        if isinstance(value, np.ndarray):
            return array(value)
        if isinstance(value, dict):
            return b"}" + b"".join(write(key) + write(item) + b"s" for key, item in value.items())
        if isinstance(value, list):
            return b"]" + b"".join(write(item) + b"a" for item in value)
        if isinstance(value, tuple):
            return b"(" + b"".join(map(write, value)) + b"t"
        return b"J" + struct.pack("<i", value) if isinstance(value, int) else text(value)

    return b"\x80\x02" + write(value) + b"."


def cifar_files(classes, images=16, seed=0):
    """{file name: its batch as a dict} of CIFAR-10 or CIFAR-100, `images` in each file."""
    draw = np.random.default_rng(seed)
    files = {}
    for name in CIFAR10_FILES if classes == 10 else ["train", "test"]:
        labels = draw.integers(classes, size=images).tolist()
        batch = {
            "batch_label": f"{name} of 1",
            "data": draw.integers(256, size=(images, 3072), dtype=np.uint8),
            "filenames": [f"image_{number}.png" for number in range(images)],
        }
        if classes == 10:
            batch["labels"] = labels
        else:
            batch |= {"fine_labels": labels, "coarse_labels": [label // 5 for label in labels]}
        files[name] = batch
    return files


def write_tar_gz(path, folder, contents):
    """{name in the folder: bytes} as an archive."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def cifar_archive(root, classes, files=None):
    """Writes the archive into `root` and returns (its path, the batches in it)."""
    files = cifar_files(classes) if files is None else files
    path = root / f"cifar-{classes}-python.tar.gz"
    contents = {name: batch if isinstance(batch, bytes) else python2_pickle(batch) for name, batch in files.items()}
    write_tar_gz(path, "cifar-10-batches-py" if classes == 10 else "cifar-100-python", contents)
    return path, files


def jpeg(size, color, mode="RGB"):
    """A JPEG file of one colour with a bright corner, `size` (width, height)."""
    from PIL import Image

    picture = Image.new("RGB", size, tuple(color))
    picture.paste((255, 255, 255), (0, 0, size[0] // 4, size[1] // 4))
    file = io.BytesIO()
    picture.convert(mode).save(file, "JPEG", quality=95)
    return file.getvalue()


def tiny_imagenet_files(classes=4, train=4, val=6):
    """{name in tiny-imagenet-200: bytes}; the last image of each class is grey."""
    wnids = [f"n{9000 - 7 * label:08}" for label in range(classes)]  # not in alphabetical order
    files = {"wnids.txt": "\n".join(wnids).encode(), "words.txt": b"n00000001\tthing"}
    for label, wnid in enumerate(wnids):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"0\t0\t10\t10"
        for number in range(train):
            mode = "L" if number == train - 1 else "RGB"
            files[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = jpeg((64, 64), (40 * label, 50 * number, 100), mode)
    lines = []
    for number in range(val):
        label = number % classes
        files[f"val/images/val_{number}.JPEG"] = jpeg((64, 64), (40 * label, 9, 9))
        lines.append(f"val_{number}.JPEG\t{wnids[label]}\t0\t0\t62\t62\n")
    files["val/val_annotations.txt"] = "".join(lines).encode()
    files["test/images/test_0.JPEG"] = b"has no label"
    return files


def tiny_imagenet_archive(root, files=None):
    path = root / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (tiny_imagenet_files() if files is None else files).items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
    return path


def imagenet_folders(root, classes=3, train=8, val=4):
    """train/WNID/*.JPEG and val/WNID/*.JPEG of many sizes."""
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"n{label + 1:08}"
            folder.mkdir(parents=True)
            for number in range(count):
                size = (180 + 40 * number, 300 - 20 * number)
                (folder / f"{folder.name}_{number}.JPEG").write_bytes(jpeg(size, (80 * label, 25 * number, 60)))


def flipped(path, place):
    """Changes a bit of the file, at a share of its length."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x10
    path.write_bytes(content)


def extracted(path, root):
    """Unpacks an archive into `root` and removes it."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(root)
    else:
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(path.read_bytes()))) as archive:
            archive.extractall(root, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(root)
    path.unlink()
