"""From a configuration to the objects that a run is made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR, SequentialLR

from sparsekern.data import (
    CIFAR10,
    CIFAR100,
    BatchLoader,
    FileLoader,
    FileSet,
    ImageSet,
    load_cifar,
    load_digits,
    load_imagenet,
    load_tiny_imagenet,
)
from sparsekern.growth import GSE, SET, Growth, RigL, Static
from sparsekern.models import make_model
from sparsekern.tost import ToST
from sparsekern.training.config import DataConfig, GrowthConfig, ModelConfig, OptimizerConfig, TostConfig

DATA_SETS: dict[str, Callable[[Path], ImageSet | FileSet]] = {
    "digits": lambda root: load_digits(),
    "cifar10": partial(load_cifar, CIFAR10),
    "cifar100": partial(load_cifar, CIFAR100),
    "tiny-imagenet": load_tiny_imagenet,
    "imagenet": load_imagenet,
}
NORMS = (nn.LayerNorm, nn.BatchNorm2d)


def build_data(config: DataConfig) -> ImageSet | FileSet:
    """Raises FileNotFoundError or DataError for a set that is missing or damaged, ImportError for a missing extra."""
    data = DATA_SETS[config.name](config.root).hold_out(config.held_out)
    return data.with_workers(config.workers) if isinstance(data, FileSet) else data


def build_loader(config: DataConfig, data: ImageSet | FileSet, seed: int) -> BatchLoader | FileLoader:
    shift, flip = config.augmentation
    return data.train_loader(config.batch_size, seed=seed, shift=shift, flip=flip)


def build_model(config: ModelConfig, data: ImageSet | FileSet) -> nn.Module:
    """The dense network, initialised from torch's global generator."""
    return make_model(config.name, data.channels, data.size, data.classes, **config.options())


def build_optimizer(config: OptimizerConfig, model: nn.Module, *, scaled: bool = False) -> Optimizer:
    """Unless all is to decay, it pulls at the layers' weights only: a bias or a norm has no reason to be near zero.

    torch's fused steps: one pass over each parameter, where many small ones are mostly the calls of single operators.
    Not of SGD whose gradients are `scaled` by a GradScaler: where that skips the first step, the fused one begins its
    momentum with whatever is in memory.
    """
    decayed, undecayed = split_parameters(model)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": undecayed, "weight_decay": config.weight_decay if config.decay == "all" else 0.0},
    ]
    if config.name == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        return SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov, fused=not scaled)
    return {"adam": Adam, "adamw": AdamW}[config.name](groups, lr=config.learning_rate, fused=True)


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(weights of layers, all else), each parameter once. A sparse weight is 1-D: dimensions do not tell them apart."""
    weights: dict[nn.Parameter, None] = {}
    others: dict[nn.Parameter, None] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_weight = name == "weight" and not isinstance(module, NORMS)
            (weights if is_weight else others)[parameter] = None
    return list(weights), list(others)


def build_scheduler(config: OptimizerConfig, optimizer: Optimizer, steps: int, steps_per_epoch: int) -> LRScheduler:
    """A schedule over `steps` optimizer steps, to be stepped after each of them."""
    warmup = min(round(config.warmup_epochs * steps_per_epoch), steps - 1)
    if config.schedule == "cosine":
        main: LRScheduler = CosineAnnealingLR(optimizer, T_max=steps - warmup)
    elif config.schedule == "multistep":
        milestones = [max(round(share * steps) - warmup, 0) for share in config.milestones]
        main = MultiStepLR(optimizer, milestones, gamma=0.1)
    else:
        main = ConstantLR(optimizer, factor=1.0, total_iters=0)
    if warmup == 0:
        return main
    rise = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [rise, main], milestones=[warmup])


def build_growth(config: GrowthConfig, model: nn.Module, optimizer: Optimizer, steps: int, seed: int) -> Growth:
    """What changes the topology over a run of `steps` optimizer steps."""
    arguments: dict[str, Any] = {
        "alpha": config.alpha,
        "interval": config.interval,
        "end": round(config.end * steps),
        "generator": torch.Generator().manual_seed(seed),
    }
    method, _, sampler = config.name.partition("-")
    if method == "gse":
        return GSE(model, optimizer, sampler, gamma=config.gamma, **arguments)
    return {"static": Static, "set": SET, "rigl": RigL}[method](model, optimizer, **arguments)


def build_tost(config: TostConfig, model: nn.Module, optimizer: Optimizer, steps: int, seed: int) -> ToST | None:
    """The ghosts of a run of `steps` optimizer steps; None where there are none."""
    if not config.ghosts:
        return None
    return ToST(
        model,
        optimizer,
        steps=max(1, round(config.ghost_end * steps)),
        ghost_neurons=config.ghost_neurons,
        ghost_skips=config.ghost_skips,
        neuron=config.ghost_neuron,
        beta=config.ghost_beta,
        branch=config.ghost_branch,
        branch_density=config.ghost_branch_density,
        generator=torch.Generator().manual_seed(seed),
    )
