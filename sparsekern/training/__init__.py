"""The trainer behind `sparsekern train`."""
