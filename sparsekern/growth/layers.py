"""The sparse layers of a model by name."""

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
