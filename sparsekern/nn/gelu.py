"""GELU on the library's kernels."""

from torch import Tensor, nn

from sparsekern.ops.gelu import gelu


class GELU(nn.GELU):
    """Takes the place of ``torch.nn.GELU``; results agree to rounding (see `sparsekern.ops.gelu.gelu`).

    Args:
        approximate: "none", or "tanh" for the approximation by tanh.

    Shapes: any; the output has the input's shape, dtype and, where it has no gaps, its strides.

    Raises:
        ValueError: another ``approximate``.
    """

    def __init__(self, approximate: str = "none") -> None:
        if approximate not in ("none", "tanh"):
            raise ValueError(f"approximate is {approximate!r}; expected 'none' or 'tanh'")
        super().__init__(approximate)

    def forward(self, input: Tensor) -> Tensor:
        return gelu(input, self.approximate == "tanh")
