"""Data sets held in memory and the loader that feeds them."""

from sparsekern.data.digits import load_digits
from sparsekern.data.images import ImageSet
from sparsekern.data.loader import BatchLoader

__all__ = ["BatchLoader", "ImageSet", "load_digits"]
