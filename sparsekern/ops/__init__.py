"""Operators of ``torch.ops.sparsekern``, their derivatives, and the functions that the modules call."""

from sparsekern.ops import implementations as _implementations  # noqa: F401  (registers on import)
