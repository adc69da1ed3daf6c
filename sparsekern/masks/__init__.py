"""Topologies found in a dense model: random, by magnitude, SNIP, GraSP, SynFlow, lottery tickets."""

from sparsekern.masks.dense_checkpoint import load_dense
from sparsekern.masks.file import load_masks, save_masks
from sparsekern.masks.grasp import grasp
from sparsekern.masks.lottery_ticket import lottery_ticket
from sparsekern.masks.magnitude import magnitude
from sparsekern.masks.masks import Masks
from sparsekern.masks.random_mask import random_mask
from sparsekern.masks.snip import snip
from sparsekern.masks.synflow import synflow

__all__ = [
    "Masks",
    "grasp",
    "load_dense",
    "load_masks",
    "lottery_ticket",
    "magnitude",
    "random_mask",
    "save_masks",
    "snip",
    "synflow",
]
