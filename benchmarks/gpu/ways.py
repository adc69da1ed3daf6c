"""Ways to compute a layer's products and training step on a GPU: dense, masked dense, torch's CSR, and sparsekern's.

A way's precision names what its time is compared with: a float32 layer is held against dense float32 and, apart from
it, against dense TF32, which rounds operands to 10 bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import sparsekern
from benchmarks.gpu.cases import PRODUCTS, DenseProducts, Problem
from benchmarks.libraries.torch_csr import compressed
from sparsekern.backends import choice
from sparsekern.nn import SparseConv2d, SparseLinear

DTYPES = {"float32": torch.float32, "TF32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Of the largest element of the same result.
TOLERANCES = {"float32": 1e-4, "TF32": 5e-3, "bfloat16": 2e-2, "float16": 4e-3}
DENSE, MASKED, CSR, OURS = "dense", "masked dense", "torch CSR", "sparsekern"
# The reference gathers a column of activations for each edge, in chunks: below this sparsity it takes seconds.
REFERENCE_FROM = 99.0


@dataclass
class Way:
    """One way at one sparsity (None: dense, whatever is zero).

    `mask` are the edges, of the dense weight's shape; `forward` runs under autograd, `products` take (x, grad) and do
    not; `at_edges` brings a gradient of `weight` into the edges' row-major order. `layout` is the memory format of the
    activations.
    """

    name: str
    family: str
    precision: str
    sparsity: float | None
    edges: int
    mask: Tensor
    weight: nn.Parameter
    bias: nn.Parameter
    forward: Callable[[Tensor], Tensor]
    products: dict[str, Callable[[Tensor, Tensor], Tensor]]
    at_edges: Callable[[Tensor], Tensor]
    layout: torch.memory_format = torch.contiguous_format
    backend: str | None = None
    held: tuple[Tensor, ...] = field(default=())  # beside the parameters: indices, masks

    @property
    def label(self) -> str:
        return self.name if self.sparsity is None else f"{self.name} at {self.sparsity:g}%"

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [self.weight, self.bias]

    def taken(self, tensor: Tensor) -> Tensor:
        """A copy as this way takes activations."""
        layout = self.layout if tensor.dim() == 4 else torch.contiguous_format
        return tensor.to(self.dtype, copy=True).contiguous(memory_format=layout)

    @contextmanager
    def context(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(tensor_cores(self.precision == "TF32"))
            if self.backend is not None:
                stack.enter_context(sparsekern.backend(self.backend))
            yield

    def results(self, x: Tensor, grad: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(output, input gradient, weight gradient at the edges), by autograd and by the products alone."""
        with self.context():
            own = x.detach().requires_grad_()
            y = self.forward(own)
            y.backward(grad)
            by_step = y.detach(), own.grad, self.at_edges(self.weight.grad).clone()
            self.forget_gradients()
            alone = [self.products[product](x, grad) for product in PRODUCTS]
            return [by_step, (alone[0], alone[1], self.at_edges(alone[2]))]

    def forget_gradients(self) -> None:
        self.weight.grad = self.bias.grad = None


@contextmanager
def tensor_cores(on: bool) -> Iterator[None]:
    """Whether dense float32 products may round their operands to TF32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = on
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def dense_ways(problem: Problem, precisions: tuple[str, ...]) -> list[Way]:
    """Dense at its best: each precision, half ones with float32 and with half weights, both layouts of images."""
    layouts = {"": torch.contiguous_format}
    if isinstance(problem.layer, nn.Conv2d):
        layouts = {" NCHW": torch.contiguous_format, " NHWC": torch.channels_last}
    ways = []
    for precision in precisions:
        dtype = DTYPES[precision]
        for ending, layout in layouts.items():
            for kept in (torch.float32, dtype) if dtype != torch.float32 else (torch.float32,):
                also = f", {precision} weights" if kept != torch.float32 else ""
                ways.append(_dense(problem, f"dense {precision}{ending}{also}", DENSE, precision, kept, layout))
    return ways


def masked_ways(problem: Problem, precisions: tuple[str, ...]) -> list[Way]:
    """A dense weight times a mask, as networks that are only called sparse are trained."""
    is_conv = isinstance(problem.layer, nn.Conv2d)
    layout = torch.channels_last if is_conv else torch.contiguous_format
    return [
        _dense(problem, f"masked dense {precision}", MASKED, precision, torch.float32, layout)
        for precision in precisions
    ]


def _dense(
    problem: Problem, name: str, family: str, precision: str, kept: torch.dtype, layout: torch.memory_format
) -> Way:
    products, dtype = DenseProducts(problem.layer), DTYPES[precision]
    value = problem.layer.weight.detach().to(kept, copy=True)
    weight = nn.Parameter(value.contiguous(memory_format=layout) if value.dim() == 4 else value)
    bias = nn.Parameter(problem.layer.bias.detach().to(kept, copy=True))
    mask = problem.mask.to(dtype) if family == MASKED else None
    if mask is not None and mask.dim() == 4:
        mask = mask.contiguous(memory_format=layout)

    def used() -> Tensor:
        w = weight.to(dtype)
        return w if mask is None else w * mask

    def weight_grad(x: Tensor, grad: Tensor) -> Tensor:
        dw = products.weight_grad(grad, x, weight.to(dtype))
        return dw if mask is None else dw * mask

    return Way(
        name=name,
        family=family,
        precision=precision,
        sparsity=None,
        edges=problem.edges,
        mask=problem.mask,
        weight=weight,
        bias=bias,
        forward=lambda x: products.forward(x, used(), bias.to(dtype)),
        products=_without_gradients(
            lambda x, grad: products.forward(x, used(), bias.to(dtype)),
            lambda x, grad: products.input_grad(grad, x, used()),
            weight_grad,
        ),
        at_edges=lambda grad: grad[problem.mask],
        layout=layout,
        held=() if mask is None else (mask,),
    )


def _without_gradients(*products: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    return {name: torch.no_grad()(product) for name, product in zip(PRODUCTS, products, strict=True)}


def csr_ways(problem: Problem, precisions: tuple[str, ...]) -> list[Way]:
    """torch.sparse at its best, cuSPARSE on a GPU: CSR products with a kept transpose; sampled_addmm for the weight.

    sampled_addmm has no half precision: operands are widened for it, as a user has to.
    """
    if isinstance(problem.layer, nn.Conv2d):
        return []
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    return [_csr(problem, precision) for precision in precisions]


def _csr(problem: Problem, precision: str) -> Way:
    mask, dtype = problem.mask, DTYPES[precision]
    rows, columns = mask.nonzero(as_tuple=True)
    permutation = torch.argsort(columns * mask.shape[0] + rows)
    crow, col = compressed(rows, mask.shape[0]), columns.int()
    crow_t, col_t = compressed(columns, mask.shape[1]), rows[permutation].int()
    values = nn.Parameter(problem.layer.weight.detach()[mask])
    bias = nn.Parameter(problem.layer.bias.detach().clone())
    zeros = _csr_tensor(crow, col, torch.zeros_like(values), mask.shape)

    def forward(x: Tensor, values: Tensor) -> Tensor:
        return (_csr_tensor(crow, col, values.to(dtype), mask.shape) @ x.t()).t()

    def input_grad(grad: Tensor, values: Tensor) -> Tensor:
        return (_csr_tensor(crow_t, col_t, values.to(dtype)[permutation], mask.shape[::-1]) @ grad.t()).t()

    def weight_grad(grad: Tensor, x: Tensor) -> Tensor:
        return torch.sparse.sampled_addmm(zeros, grad.t().float(), x.float(), beta=0.0).values()

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, values: Tensor) -> Tensor:
            ctx.save_for_backward(x, values)
            return forward(x, values)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
            x, values = ctx.saved_tensors
            return input_grad(grad, values), weight_grad(grad, x)

    return Way(
        name=f"torch CSR {precision}",
        family=CSR,
        precision=precision,
        sparsity=problem.sparsity,
        edges=problem.edges,
        mask=problem.mask,
        weight=values,
        bias=bias,
        forward=lambda x: Product.apply(x, values) + bias.to(dtype),
        products=_without_gradients(
            lambda x, grad: forward(x, values) + bias.to(dtype),
            lambda x, grad: input_grad(grad, values),
            lambda x, grad: weight_grad(grad, x),
        ),
        at_edges=lambda grad: grad,
        held=(crow, col, crow_t, col_t, permutation, zeros.values()),
    )


def _csr_tensor(crow: Tensor, col: Tensor, values: Tensor, shape: Any) -> Tensor:
    return torch.sparse_csr_tensor(crow, col, values, tuple(shape), check_invariants=False)


def our_ways(problem: Problem, precisions: tuple[str, ...], backends: tuple[str, ...]) -> tuple[list[Way], list[str]]:
    """A way for each backend that serves such activations there, and a line for each that does not."""
    ways, notes = [], []
    device, is_conv = problem.layer.weight.device, isinstance(problem.layer, nn.Conv2d)
    for name in backends:
        for precision in precisions:
            if name == "reference" and ((problem.sparsity or 0) < REFERENCE_FROM or precision != "float32"):
                continue
            serving = served_by(name, "conv2d" if is_conv else "linear", DTYPES[precision], device)
            if serving == name:
                ways.append(_ours(problem, precision, name))
            else:
                product = "convolutions" if is_conv else "linear layers"
                notes.append(f"backend {name}, {product} in {precision}: {serving}")
    return ways, notes


def served_by(name: str, product: str, dtype: torch.dtype, device: torch.device) -> str:
    """The backend that computes where this one is asked for, or why it cannot."""
    try:
        with sparsekern.backend(name):
            found = choice.chosen(product, dtype, device)
    except (ValueError, ImportError, RuntimeError) as error:
        return f"not measured ({str(error).splitlines()[0]})"
    return name if found == name else f"not measured, {found} would compute it"


def serving(device: torch.device, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The backends, "auto" not among them, that can take a device's tensors; of those that are wanted, if any are."""
    names = [name for name in choice.NAMES if name != "auto" and (not wanted or name in wanted)]
    return tuple(n for n in names if not served_by(n, "linear", torch.float32, device).startswith("not measured ("))


def _ours(problem: Problem, precision: str, backend: str) -> Way:
    dense, pattern = problem.layer, problem.pattern
    rows, columns = pattern.edges()
    geometry: tuple[Any, ...] = ()
    device = dense.weight.device
    if isinstance(dense, nn.Linear):
        layer: Any = SparseLinear(dense.in_features, dense.out_features, device=device, pattern=pattern)
    else:
        sizes = dense.in_channels, dense.out_channels, dense.kernel_size, dense.stride, dense.padding, dense.dilation
        layer = SparseConv2d(*sizes, dense.groups, device=device, pattern=pattern)
        geometry = layer.geometry
    with torch.no_grad():
        layer.weight.copy_(dense.weight.flatten(1)[rows, columns])
        layer.bias.copy_(dense.bias)
    del rows, columns
    operators, kind = torch.ops.sparsekern, "conv2d" if geometry else "linear"
    weight, bias, topology = layer.weight, layer.bias, layer.pattern.tensors()

    def input_grad(x: Tensor, grad: Tensor) -> Tensor:
        size = (list(x.shape[2:]),) if geometry else ()
        return getattr(operators, f"{kind}_input_grad")(grad, weight, *topology[:2], *size, *geometry)

    return Way(
        name=f"sparsekern {backend} {precision}",
        family=OURS,
        precision=precision,
        sparsity=problem.sparsity,
        edges=problem.edges,
        mask=problem.mask,
        weight=weight,
        bias=bias,
        forward=layer,
        products=_without_gradients(
            lambda x, grad: getattr(operators, kind)(x, weight, bias, *topology, *geometry),
            input_grad,
            lambda x, grad: getattr(operators, f"{kind}_weight_grad")(
                grad, x, *topology[:2], *geometry, dtype=weight.dtype
            ),
        ),
        at_edges=lambda grad: grad[layer.permutation.long()],
        backend=backend,
        held=topology,
    )


def optimizers(parameters: list[nn.Parameter]) -> dict[str, torch.optim.Optimizer]:
    """Adam and SGD with momentum, fused, for any way alike. The learning rate keeps all values what they are."""
    return {
        "Adam": torch.optim.Adam(parameters, lr=1e-9, fused=True),
        "SGD": torch.optim.SGD(parameters, lr=1e-9, momentum=0.9, fused=True),
    }
