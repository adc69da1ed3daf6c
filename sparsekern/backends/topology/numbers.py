"""Numbers that may still be on a device, and their way to the host."""

import torch
from torch import Tensor

# An integer or a truth: known, or in a tensor of one element on the device where it was found out.
Number = int | Tensor


def at_most(number: Number, limit: int) -> Number:
    """The lesser of the two."""
    return number.clamp(max=limit) if isinstance(number, Tensor) else min(number, limit)


def read(numbers: list[Number]) -> list[int]:
    """All of them as integers, with one transfer (and one wait) for each device that holds some."""
    known = [0 if isinstance(number, Tensor) else int(number) for number in numbers]
    places: dict[torch.device, list[int]] = {}
    for place, number in enumerate(numbers):
        if isinstance(number, Tensor):
            places.setdefault(number.device, []).append(place)
    for mine in places.values():
        values = torch.stack([torch.as_tensor(numbers[place]).long() for place in mine])
        for place, value in zip(mine, transferred(values), strict=True):
            known[place] = value
    return known


def transferred(values: Tensor) -> list[int]:
    """(n,) integers on the host: the one place where an update waits for the device."""
    return [int(value) for value in values.cpu().tolist()]


def read_floats(vectors: list[Tensor]) -> list[list[float]]:
    """Several (n,) float64 tensors on the host, with one transfer for each device that holds some."""
    known: list[list[float]] = [[] for _ in vectors]
    for device in {vector.device for vector in vectors}:
        mine = [place for place, vector in enumerate(vectors) if vector.device == device]
        values = torch.cat([vectors[place] for place in mine]).cpu()
        for place, part in zip(mine, values.split([vectors[place].numel() for place in mine]), strict=True):
            known[place] = part.tolist()
    return known
