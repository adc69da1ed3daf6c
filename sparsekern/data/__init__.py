"""Data sets, held in memory or read from files, and the loaders that feed them."""

from sparsekern.data.cifar import CIFAR10, CIFAR100, load_cifar
from sparsekern.data.digits import load_digits
from sparsekern.data.files import FileLoader, FileSet
from sparsekern.data.imagenet import load_imagenet
from sparsekern.data.images import ImageSet
from sparsekern.data.loader import BatchLoader
from sparsekern.data.sources import DataError
from sparsekern.data.tiny_imagenet import load_tiny_imagenet

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "BatchLoader",
    "DataError",
    "FileLoader",
    "FileSet",
    "ImageSet",
    "load_cifar",
    "load_digits",
    "load_imagenet",
    "load_tiny_imagenet",
]
