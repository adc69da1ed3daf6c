"""ImageNet (ILSVRC 2012) from its folders of JPEG files, by torchvision; too large for memory, so read as used."""

from __future__ import annotations

from pathlib import Path

from sparsekern.data.files import FileSet
from sparsekern.data.sources import DataError
from sparsekern.data.vision import torchvision

SITE = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PIXELS, RESIZED = 224, 256
ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}


def load_imagenet(root: Path) -> FileSet:
    """The set in `root`: train/WNID/*.JPEG and val/WNID/*.JPEG; its validation images are the test images.

    Training images are cropped at random (torchvision's RandomResizedCrop to 224 pixels) and mirrored; test images
    are resized to 256 pixels and cropped to the middle 224. A folder that is not there is made from its archive, which
    takes its size on disk again, and needs the development kit for the classes' names, and scipy.

    Raises ImportError without torchvision; FileNotFoundError or DataError, saying where to get the set and where to
    put it.
    """
    transforms = torchvision("ImageNet is read by").transforms.v2
    train, classes = read_folder(root, "train")
    test, test_classes = read_folder(root, "val")
    if test_classes != classes:
        odd = min(set(classes) ^ set(test_classes))
        raise DataError(f"class {odd} is in only one of {root / 'train'} and {root / 'val'}; expected the same classes")
    return FileSet(
        name="imagenet",
        train=train,
        test=test,
        classes=len(classes),
        size=PIXELS,
        mean=MEAN,
        deviation=DEVIATION,
        augment=transforms.RandomResizedCrop(PIXELS),
        flip=transforms.RandomHorizontalFlip(),
        center=transforms.Compose([transforms.Resize(RESIZED), transforms.CenterCrop(PIXELS)]),
        to_bytes=transforms.PILToTensor(),
    )


def read_folder(root: Path, split: str) -> tuple[list[tuple[str, int]], list[str]]:
    """((path, label) of each image, the wnids in alphabetical order)."""
    folder = root / split
    if not folder.is_dir():
        extract(root, split)
    loose = next((each for each in sorted(folder.iterdir()) if not each.is_dir() and each.suffix != ".txt"), None)
    if loose is not None:
        raise DataError(
            f"{loose} lies beside the class folders: {folder} was not extracted to its end, or its images are not in a "
            f"folder for each class. Remove {folder} and leave {ARCHIVES[split]} and ILSVRC2012_devkit_t12.tar.gz in "
            f"{root} to have it made"
        )
    try:
        images = torchvision("ImageNet is read by").datasets.ImageFolder(folder)
    except FileNotFoundError as error:
        raise DataError(f"{folder} is not a folder of class folders with images: {error}") from error
    return images.samples, images.classes


def extract(root: Path, split: str) -> None:
    """Has torchvision make the folder from the archive."""
    archive = root / ARCHIVES[split]
    if not archive.is_file():
        raise FileNotFoundError(
            f"no ImageNet in {root}: there is neither a folder {split} with a folder of images for each class (wnid) "
            f"nor {archive.name}. Get {archive.name} and ILSVRC2012_devkit_t12.tar.gz from {SITE} (with an account of "
            f"theirs) and put both into {root}; --data-root names another place"
        )
    try:
        torchvision("ImageNet is read by").datasets.ImageNet(root, split)
    except ModuleNotFoundError as error:
        raise ImportError(f"{archive} is unpacked with scipy: pip install scipy") from error
    except (RuntimeError, OSError, EOFError) as error:
        raise DataError(
            f"{archive} cannot be unpacked: {error}. Get it, and ILSVRC2012_devkit_t12.tar.gz, from {SITE} anew"
        ) from error
