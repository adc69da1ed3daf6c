"""torchvision, an extra, imported where it is needed."""

from __future__ import annotations

from types import ModuleType

import torch


def torchvision(purpose: str) -> ModuleType:
    """torchvision with its datasets and transforms.v2; `purpose` begins the message where it cannot be imported.

    Raises ImportError, with the pip command: it is not installed, or it was built for another torch.
    """
    command = f"pip install \"torch=={torch.__version__.partition('+')[0]}\" 'sparsekern[vision]'"
    try:
        import torchvision
        import torchvision.datasets
        import torchvision.transforms.v2
    except ImportError as error:
        raise ImportError(f"{purpose} torchvision, which cannot be imported ({error}): {command}") from error
    except RuntimeError as error:  # its operators are missing: a CUDA build beside a CPU torch, or another version
        raise ImportError(
            f"{purpose} torchvision, but the one that is installed was built for another torch than "
            f"{torch.__version__} ({error}): uninstall it and install its build for this torch, from the same package "
            f"index as torch: {command}"
        ) from error
    return torchvision
