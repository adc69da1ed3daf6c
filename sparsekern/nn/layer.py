"""What every sparse layer has: values, the topology's buffers, loading, conversion, and a place to watch gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.init import fan_in_uniform_
from sparsekern.pattern import Pattern

_INDEX_BUFFERS = ("ccol_indices", "row_indices", "crow_indices", "col_indices", "permutation")

# Called in backward as watcher(layer, x, grad): x is the product's input, grad the gradient of its output.
Watcher = Callable[["SparseLayer", Tensor, Tensor], None]


class SparseLayer(nn.Module):
    """A layer whose weight is a sparse matrix of ``rows`` x ``columns``.

    Any topology is allowed: an output without edges is its bias, an input without edges has gradient 0.

    Attributes:
        weight: Parameter (nnz,), the value of each edge in stored order: by column, then by row.
        bias: Parameter (rows,) or None.
        ccol_indices: (columns + 1,) int32 (int64 from 2**31 edges on); column c holds the edges
            ``ccol_indices[c]`` to ``ccol_indices[c + 1]``.
        row_indices: (nnz,) int32, each edge's row.
        crow_indices, col_indices, permutation: the same topology by row; entry j is the stored edge
            ``permutation[j]``. Derived, and left out of the state_dict.
        watcher: None, or a function that backward calls with the product's input and its output's gradient.

    Index buffers change only through :meth:`set_pattern`, :meth:`replace_edges` and loading. Any other in-place
    change that torch can see makes the next product raise (one made through ``.data`` or a numpy view cannot be seen).
    """

    ccol_indices: Tensor
    row_indices: Tensor
    crow_indices: Tensor
    col_indices: Tensor
    permutation: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        matrix_shape: tuple[int, int],
        bias: bool,
        density: float | None,
        pattern: Pattern | None,
        generator: torch.Generator | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.matrix_shape = matrix_shape
        self.watcher: Watcher | None = None
        device = torch.get_default_device() if device is None else torch.device(device)
        if pattern is None:
            nnz = edges_at_density(matrix_shape, density)
            if device.type == "meta":
                pattern = Pattern.empty(matrix_shape, nnz, device=device)
            else:
                pattern = Pattern.random(matrix_shape, nnz, generator=generator).to(device)
        else:
            if density is not None:
                raise ValueError(f"density is {density} and a pattern is given; expected one of the two")
            if pattern.shape != matrix_shape:
                raise ValueError(f"pattern has shape {pattern.shape}; expected {matrix_shape}")
            pattern = pattern.clone() if pattern.device == device else pattern.to(device)
        for name, tensor in zip(_INDEX_BUFFERS, pattern.tensors(), strict=True):
            self.register_buffer(name, tensor, persistent=name in ("ccol_indices", "row_indices"))
        self.weight = nn.Parameter(torch.empty(pattern.nnz, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(matrix_shape[0], device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        if device.type != "meta":
            self.reset_parameters(generator)

    @property
    def pattern(self) -> Pattern:
        """The layer's topology; a view on its buffers."""
        # A module's attributes are looked up slowly, and each call of the layer asks for five.
        buffers: dict[str, Any] = self._buffers
        return Pattern.from_buffers(
            self.matrix_shape,
            buffers["ccol_indices"],
            buffers["row_indices"],
            buffers["crow_indices"],
            buffers["col_indices"],
            buffers["permutation"],
        )

    @property
    def nnz(self) -> int:
        """Number of edges."""
        return self.row_indices.numel()

    @property
    def density(self) -> float:
        """Edges as a share of all rows x columns places."""
        rows, columns = self.matrix_shape
        return self.nnz / (rows * columns)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws new values, U(-b, b) with b = sqrt(3 / fan-in) per output row, for weight and bias.

        The topology stays, unless it holds no valid one (a meta layer after ``to_empty``): then it is drawn too.
        """
        try:
            self.pattern.ensure_valid()
        except ValueError:
            fresh = Pattern.random(self.matrix_shape, self.nnz, generator=generator)
            self._write_pattern(fresh.to(self.row_indices.device))
        fan_in_uniform_(self.weight, self.bias, self.pattern, generator)

    def set_pattern(self, pattern: Pattern, weight: Tensor | None = None) -> None:
        """Gives the layer another topology, of any number of edges.

        Args:
            pattern: of the layer's shape, on any device.
            weight: (pattern.nnz,) values in stored order; None draws new ones (bias included).

        With another number of edges the Parameter object stays and its data is replaced, so that an optimizer's
        state for it must be dropped or loaded anew.

        Raises:
            ValueError: if the pattern's shape, its contents or the weight's shape is wrong.
        """
        if pattern.shape != self.matrix_shape:
            raise ValueError(f"pattern has shape {pattern.shape}; expected {self.matrix_shape}")
        if weight is not None and weight.shape != (pattern.nnz,):
            raise ValueError(f"weight has shape {tuple(weight.shape)}; expected ({pattern.nnz},), the pattern's nnz")
        pattern.ensure_valid()
        self._write_pattern(pattern.to(self.weight.device))
        if weight is None:
            self.reset_parameters()
        else:
            with torch.no_grad():
                self.weight.copy_(weight)

    def _write_pattern(self, pattern: Pattern) -> None:
        """Takes over a valid pattern: in place where the sizes agree, else with new buffers and a new weight."""
        mine = self.pattern.tensors()
        same_place = pattern.device == self.row_indices.device
        for name, old, new in zip(_INDEX_BUFFERS, mine, pattern.tensors(), strict=True):
            if same_place and old.shape == new.shape and old.dtype == new.dtype:
                old.copy_(new)
            else:
                setattr(self, name, new.clone())
        if self.weight.shape != (pattern.nnz,):
            self.weight.data = torch.empty(pattern.nnz, dtype=self.weight.dtype, device=self.weight.device)
            self.weight.grad = None

    def replace_edges(self, pruned: Tensor, grown_rows: Tensor, grown_columns: Tensor) -> Tensor:
        """Swaps edges in place: those in the slots ``pruned`` go, those at the given places come.

        See :meth:`Pattern.replace_edges`. Values are not moved: the returned ``source`` (nnz,) int64 says, for each
        slot, which slot the edge had before, -1 for a new one.
        """
        return self.pattern.replace_edges(pruned, grown_rows, grown_columns)

    def weight_grad_at(self, grad: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
        """Gradient of the loss for weights at ``pattern``'s places, whether or not they are edges of this layer.

        Args:
            grad: the gradient of the product's output, as a :attr:`watcher` is given it.
            x: the product's input, as a watcher is given it.
            pattern: the places, of the layer's shape.

        Returns:
            (pattern.nnz,), float64 for float64 activations and float32 for others.
        """
        raise NotImplementedError

    def dense_weight_grad(self, grad: Tensor, x: Tensor) -> Tensor:
        """The DENSE weight gradient (rows, columns), for methods that need all of it (RigL's growth).

        Takes memory in the dense weight's size for as long as the result lives.
        """
        raise NotImplementedError

    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight in torch's layout."""
        raise NotImplementedError

    def to_dense(self) -> Tensor:
        """The weight as a DENSE tensor in torch's layout, differentiable in :attr:`weight`."""
        rows, columns = self.pattern.edges()
        flat = self.weight.new_zeros(self.matrix_shape).index_put((rows, columns), self.weight)
        return flat.view(self.dense_shape())

    def to_sparse_csr(self) -> Tensor:
        """The weight as a torch.sparse_csr tensor (rows, columns), differentiable in :attr:`weight`."""
        # Clones: torch's fake tensors cannot hold a CSR tensor whose indices are views of a buffer.
        return torch.sparse_csr_tensor(
            self.crow_indices.clone(),
            self.col_indices.to(self.crow_indices.dtype).clone(),
            self.weight[self.permutation.long()],
            size=self.matrix_shape,
            check_invariants=False,
        )

    def _take_dense(self, module: nn.Linear | nn.Conv2d) -> None:
        """Copies the values under the pattern, and bias, training mode and requires_grad, from a dense module."""
        rows, columns = self.pattern.edges()
        with torch.no_grad():
            self.weight.copy_(module.weight.reshape(self.matrix_shape)[rows, columns])
            if self.bias is not None and module.bias is not None:
                self.bias.copy_(module.bias)
                self.bias.requires_grad_(module.bias.requires_grad)
        self.weight.requires_grad_(module.weight.requires_grad)
        self.train(module.training)

    def _watched(self, x: Tensor, y: Tensor) -> Tensor:
        """Has backward call the watcher, if there is one, with this product's input and output gradient."""
        watcher = self.watcher
        if watcher is not None and y.requires_grad:
            kept = x.detach()
            y.register_hook(lambda grad: watcher(self, kept, grad))
        return y

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Loads values together with their topology, which may have another number of edges than the layer's.

        A topology that is not valid, or values that do not fit it, is an error of load_state_dict and leaves the
        layer as it was.
        """
        names = [prefix + name for name in ("ccol_indices", "row_indices", "weight")]
        if all(name in state_dict for name in names):
            ccol, row, weight = (state_dict[name] for name in names)
            try:
                pattern = Pattern.from_csc(self.matrix_shape, ccol, row)
                if weight.shape != (pattern.nnz,):
                    raise ValueError(f"weight has shape {tuple(weight.shape)}; expected ({pattern.nnz},), the edges")
            except (ValueError, TypeError) as error:
                error_msgs.append(f"{prefix.removesuffix('.') or type(self).__name__}: {error}")
                return
            if not self.weight.is_meta:
                self._write_pattern(pattern.to(self.weight.device))
            elif local_metadata.get("assign_to_params_buffers", False):
                self._write_pattern(pattern)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def __getstate__(self) -> dict[str, Any]:
        # A watcher belongs to one model and one optimizer: copies and pickles start without.
        return {**self.__dict__, "watcher": None}


def edges_at_density(matrix_shape: tuple[int, int], density: float | None) -> int:
    """Edges of a layer at a density in (0, 1]: round(density * rows * columns), at least one."""
    if density is None:
        raise ValueError("density is missing; expected a number in (0, 1] or a pattern")
    if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0.0 < density <= 1.0:
        raise ValueError(f"density is {density!r}; expected a number in (0, 1]")
    rows, columns = matrix_shape
    return max(1, round(density * rows * columns))


def largest_magnitudes(weight: Tensor, nnz: int) -> Tensor:
    """Mask of the ``nnz`` largest absolute values of a dense weight; of equal ones, the first in memory order."""
    flat = weight.detach().abs().flatten()
    order = torch.sort(flat, descending=True, stable=True).indices[:nnz]
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[order] = True
    return mask.view(weight.shape)


def dense_pattern(weight: Tensor, matrix_shape: tuple[int, int], density: float | None, mask: Tensor | None) -> Pattern:
    """The pattern that from_dense keeps: the mask's, or that of the largest magnitudes at ``density``."""
    if (density is None) == (mask is None):
        raise ValueError(f"density is {density!r} and mask is {type(mask).__name__}; expected exactly one of them")
    if mask is None:
        mask = largest_magnitudes(weight, edges_at_density(matrix_shape, density))
    elif mask.shape != weight.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; expected the weight's, {tuple(weight.shape)}")
    return Pattern.from_mask(mask.reshape(matrix_shape) != 0)
