"""Operators of ``torch.ops.sparsekern``, their derivatives, and the functions that the modules call."""

from sparsekern.ops import attention as _attention  # noqa: F401  (these register on import)
from sparsekern.ops import batch_norm as _batch_norm  # noqa: F401
from sparsekern.ops import gelu as _gelu  # noqa: F401
from sparsekern.ops import implementations as _implementations  # noqa: F401
