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
