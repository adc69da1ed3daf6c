"""Seeds and generators of random draws."""

import torch

_INT64_MAX = 2**63 - 1


def draw_seed(generator: torch.Generator | None = None) -> int:
    """One 63-bit seed from a CPU generator (torch's default one if None)."""
    return int(torch.randint(_INT64_MAX, (), generator=generator, dtype=torch.int64, device="cpu"))


def generator_on(device: torch.device, generator: torch.Generator | None) -> torch.Generator:
    """The generator itself where it draws on ``device``, else one that does, with a seed drawn from it."""
    if generator is not None and generator.device.type == device.type:
        return generator
    return torch.Generator(device).manual_seed(draw_seed(generator))
