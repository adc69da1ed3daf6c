"""A fully connected layer with a sparse weight."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from sparsekern.backends import choice
from sparsekern.nn.layer import SparseLayer, dense_pattern
from sparsekern.ops import functional
from sparsekern.pattern import Pattern


class SparseLinear(SparseLayer):
    """``y = x W^T + b`` with a sparse W (out_features, in_features); takes the place of ``torch.nn.Linear``.

    Args:
        in_features: size of each input sample.
        out_features: size of each output sample.
        bias: adds a learnable dense bias.
        device: where the values and indices live.
        dtype: of the values.
        density: share of the out_features x in_features places that are edges, in (0, 1], drawn uniformly.
        pattern: the topology itself, of shape (out_features, in_features), instead of ``density``.
        generator: of the random topology and values; default torch's own.

    Shapes: input (..., in_features), output (..., out_features).

    Where the same values are met in several calls of few tokens on the CPU (up to 64 float32 ones with AVX-512), a
    copy of them by row is kept with its indices: 6 bytes an edge in float32, 8 with more than 65,536 columns, once for
    single tokens, once for up to 16 and once for more, as far as such calls are made.

    Raises:
        ValueError: if a size is negative, the density is outside (0, 1], or the pattern has another shape.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        density: float | None = None,
        pattern: Pattern | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if size < 1:
                raise ValueError(f"{name} is {size}; expected a positive integer")
        super().__init__((out_features, in_features), bias, density, pattern, generator, device, dtype)
        self.in_features = in_features
        self.out_features = out_features

    @classmethod
    def from_dense(cls, module: nn.Linear, density: float | None = None, mask: Tensor | None = None) -> "SparseLinear":
        """The sparse layer that keeps a dense one's values where ``mask`` is nonzero, or its largest at ``density``."""
        weight = module.weight
        layer = cls(
            module.in_features,
            module.out_features,
            module.bias is not None,
            weight.device,
            weight.dtype,
            pattern=dense_pattern(weight, (module.out_features, module.in_features), density, mask),
        )
        layer._take_dense(module)
        return layer

    def forward(self, input: Tensor) -> Tensor:
        # A module's attributes are looked up slowly. Pruning and parametrizations put theirs in the parameters' place.
        parameters: dict[str, Any] = self._parameters
        buffers: dict[str, Any] = self._buffers
        if "weight" in parameters and "bias" in parameters:
            weight, bias = parameters["weight"], parameters["bias"]
        else:
            weight, bias = self.weight, self.bias
        y = None
        if not is_compiling():
            y = choice.linear_direct(
                input,
                weight,
                bias,
                buffers["ccol_indices"],
                buffers["row_indices"],
                buffers["crow_indices"],
                buffers["col_indices"],
                buffers["permutation"],
            )
        if y is None:
            y = functional.linear_checked(input, weight, self.pattern, bias)
        return y if self.watcher is None else self._watched(input, y)

    def weight_grad_at(self, grad: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
        flat_grad, flat_x = self._flat(grad, x)
        return torch.ops.sparsekern.linear_weight_grad(flat_grad, flat_x, pattern.ccol_indices, pattern.row_indices)

    def dense_weight_grad(self, grad: Tensor, x: Tensor) -> Tensor:
        flat_grad, flat_x = self._flat(grad, x)
        return flat_grad.t() @ flat_x

    def _flat(self, grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        # Under autocast the product's input was cast, and the gradient has that dtype.
        return grad.reshape(-1, self.out_features), x.reshape(-1, self.in_features).to(grad.dtype)

    def dense_shape(self) -> tuple[int, ...]:
        return self.matrix_shape

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"density={self.density:.4g}, nnz={self.nnz}"
        )
