"""What a model's forward does with its 3x3 convolutions and ReLUs, found by tracing it."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsekern.nn import GELU, BatchNorm2d, SparseConv2d, SparseLayer
from sparsekern.ops.attention import attention
from sparsekern.ops.gelu import gelu

NORMS = (BatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.InstanceNorm2d)
_RELU_CALLS = (F.relu, F.relu_, torch.relu, torch.relu_, F.relu6)
_RELU_METHODS = ("relu", "relu_")

Conv = nn.Conv2d | SparseConv2d


@dataclass
class Survey:
    """Modules by their first names in the model.

    Attributes:
        pairs: 3x3 convolution -> the norm that its output, and nothing else, goes into.
        unpaired: 3x3 convolution -> why it has no such norm.
        functional: module -> ReLUs that its forward calls as a function.
        untraced: modules whose own forward could not be traced: convolutions directly in it are paired with the norm
            that was registered next, and its functional ReLUs are not seen.
    """

    pairs: dict[str, str] = field(default_factory=dict)
    unpaired: dict[str, str] = field(default_factory=dict)
    functional: dict[str, int] = field(default_factory=dict)
    untraced: list[str] = field(default_factory=list)


def survey(model: nn.Module) -> Survey:
    """Looks at every 3x3 convolution and every functional ReLU of ``model``, which is not changed."""
    flow = _Flow(model)
    with torch.random.fork_rng(devices=[]):  # a forward may draw numbers while it is traced
        flow.follow(model)
    found = Survey(functional=dict(flow.functional), untraced=flow.untraced)
    for name, conv in model.named_modules():
        if is_conv3x3(conv):
            norm = flow.norm_of(conv)
            if isinstance(norm, str):
                found.unpaired[name] = norm
            else:
                found.pairs[name] = flow.names[norm]
    return found


def is_conv3x3(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv2d, SparseConv2d)) and tuple(module.kernel_size) == (3, 3)


class _Tracer(fx.Tracer):
    """Goes into every module that is not one of torch's or of this library's layers; if ``shallow``, into none."""

    def __init__(self, shallow: bool = False) -> None:
        super().__init__(autowrap_functions=(attention, gelu))  # these look at shapes, which a proxy has not
        self.shallow = shallow

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self.shallow or isinstance(m, (SparseLayer, _BatchNorm, GELU)):
            return True
        return super().is_leaf_module(m, module_qualified_name)


class _Flow:
    """From which modules to which the activations go."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.places = Counter(module for _, module in model.named_modules(remove_duplicate=False))
        self.readers: dict[nn.Module, set[nn.Module]] = defaultdict(set)  # conv -> the norms that read its output
        self.sources: dict[nn.Module, set[nn.Module | None]] = defaultdict(set)  # norm -> what its input comes from
        self.called: set[nn.Module] = set()
        self.functional: Counter[str] = Counter()
        self.untraced: list[str] = []
        self._followed: set[nn.Module] = set()

    def norm_of(self, conv: nn.Module) -> nn.Module | str:
        """The one norm behind ``conv``, or why there is none."""
        norms = self.readers[conv]
        if not norms:
            return "no norm reads its output" if conv in self.called else "no call of it was found"
        if len(norms) > 1:
            return "several norms read its output: " + ", ".join(sorted(self.names[norm] for norm in norms))
        (norm,) = norms
        if type(norm) not in NORMS:
            return f"its norm, {self.names[norm]}, is a {type(norm).__name__}, which may end in an activation"
        if len(self.sources[norm]) > 1:
            return f"its norm, {self.names[norm]}, has other inputs too"
        return norm

    def follow(self, module: nn.Module) -> None:
        """Traces a module's forward with all that it calls; where that fails, it alone, and each child on its own."""
        if module in self._followed:
            return
        self._followed.add(module)
        graph = _traced(module, shallow=False)
        if graph is not None:
            self._read(module, graph)
            return
        if _has_forward(module):
            graph = _traced(module, shallow=True)
            if graph is not None:
                self._read(module, graph)
            else:
                self.untraced.append(self.names[module])
                self._pair_in_order(module)
        for child in module.children():
            if not _has_forward(child) or not _Tracer().is_leaf_module(child, self.names[child]):
                self.follow(child)

    def _read(self, root: nn.Module, graph: fx.Graph) -> None:
        for node in graph.nodes:
            module = _called(root, node)
            if module is not None:
                self.called.add(module)
                if isinstance(module, NORMS):
                    source = _called(root, node.args[0]) if node.args else None
                    self.sources[module].add(source)
                    if source is not None:
                        self.readers[source].add(module)
            elif (node.op == "call_function" and node.target in _RELU_CALLS) or (
                node.op == "call_method" and node.target in _RELU_METHODS
            ):
                stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
                inner = next(reversed(stack.values()))[0] if stack else ""
                self.functional[self.names[root.get_submodule(inner)]] += 1

    def _pair_in_order(self, parent: nn.Module) -> None:
        for conv, norm in itertools.pairwise(parent.children()):
            if is_conv3x3(conv) and type(norm) in NORMS and self.places[conv] == self.places[norm] == 1:
                self.called.add(conv)
                if _channels(norm) == conv.out_channels:
                    self.readers[conv].add(norm)
                    self.sources[norm].add(conv)


def _traced(module: nn.Module, shallow: bool) -> fx.Graph | None:
    try:
        return _Tracer(shallow).trace(module)
    except Exception:  # whatever a forward raises on proxies
        return None


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward  # nn.ModuleList and nn.ModuleDict have none


def _called(root: nn.Module, node: Any) -> nn.Module | None:
    if isinstance(node, fx.Node) and node.op == "call_module":
        return root.get_submodule(str(node.target))
    return None


def _channels(norm: nn.Module) -> Any:
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
