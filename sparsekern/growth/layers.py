"""The sparse layers of a model by name."""

import sys
from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import nn

from sparsekern.nn.layer import SparseLayer

# What wrappers put before a module's own name: DataParallel and AveragedModel, torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")


def find_sparse_layers(model: nn.Module, exclude: tuple[str, ...] = ()) -> dict[str, SparseLayer]:
    """Name -> layer, in the model's order, a shared layer once (under its first name).

    Args:
        model: searched with all its submodules. The prefixes that wrappers add (``module.`` of DataParallel
            and AveragedModel, ``_orig_mod.`` of torch.compile) are left out of the names.
        exclude: patterns such as ``"head*"`` (as in fnmatch) of names to leave out.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer):
            while name.startswith(_WRAPPERS):
                name = name.split(".", 1)[1]
            if not any(fnmatchcase(name, pattern) for pattern in exclude):
                found[name] = module
    return found


def check_whole(model: nn.Module, layers: Mapping[str, SparseLayer]) -> None:
    """Raises TypeError for layers whose weights are, or between the model's calls will be, spread over ranks."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # imported where it is in use
    kinds = () if fsdp is None else (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)
    spread = {id(layer) for module in model.modules() if isinstance(module, kinds) for layer in module.modules()}
    for name, layer in layers.items():
        if id(layer) in spread or hasattr(layer.weight, "device_mesh") or layer.weight.shape != (layer.nnz,):
            raise TypeError(
                f"the weight of layer {name!r} is sharded (fully_shard, FSDP): its edges cannot move among shards. Use "
                "DistributedDataParallel, whose gradients are sparse already, and ZeroRedundancyOptimizer for a share "
                "of the optimizer's state on each rank"
            )
