"""The trainer behind `sparsekern train`."""

from sparsekern.training.load import load_model

__all__ = ["load_model"]
