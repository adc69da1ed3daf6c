"""A tree of state_dicts taken apart into named tensors and JSON, and put together again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

# JSON has neither tuples nor keys that are not text; such a value is an object with this one key, naming its kind.
KIND = "$kind"


def pack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Returns `tree` as plain JSON values and adds its tensors to `tensors` by path ("optimizer/state/0/exp_avg").

    Tensors come to the CPU, contiguous, one storage each; one that occurs twice is stored once.
    Raises TypeError for what is neither a tensor, a container nor a plain value.
    """
    seen: dict[tuple[object, ...], str] = {}
    storages: set[int] = set()

    def visit(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            return {KIND: "tensor", "name": add_tensor(value.detach(), path)}
        if isinstance(value, dict):
            children = [[key, visit(child, f"{path}/{key}" if path else str(key))] for key, child in value.items()]
            if isinstance(value, Counter):
                return {KIND: "counter", "items": children}
            if all(isinstance(key, str) for key in value) and KIND not in value:
                return dict(children)
            return {KIND: "dict", "items": children}
        if isinstance(value, (list, tuple)):
            items = [visit(child, f"{path}/{index}") for index, child in enumerate(value)]
            return items if isinstance(value, list) else {KIND: "tuple", "items": items}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"cannot save {path}: {type(value).__name__} is not a tensor, a container or a plain value")

    def add_tensor(tensor: Tensor, path: str) -> str:
        identity = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and identity in seen:
            return seen[identity]
        seen[identity] = path
        storage = tensor.untyped_storage()
        is_whole = storage.nbytes() == tensor.numel() * tensor.element_size() and storage.data_ptr() not in storages
        storages.add(storage.data_ptr())
        tensor = tensor.cpu()
        tensors[path] = tensor.contiguous() if is_whole else tensor.clone(memory_format=torch.contiguous_format)
        return path

    return visit(tree, "")


def unpack(plain: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `pack`. A tensor that occurred twice becomes one tensor in two places."""
    if isinstance(plain, list):
        return [unpack(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    kind = plain.get(KIND)
    if kind == "tensor":
        return tensors[plain["name"]]
    if kind == "tuple":
        return tuple(unpack(item, tensors) for item in plain["items"])
    if kind in ("dict", "counter"):
        items = {key: unpack(value, tensors) for key, value in plain["items"]}
        return Counter(items) if kind == "counter" else items
    return {key: unpack(value, tensors) for key, value in plain.items()}
