"""ToST on CIFAR-10 with ResNet-32.

ToST, "Training Your Sparse Neural Network Better with Any Mask" (ICML 2022, arXiv 2206.12755).

    sparsekern train --recipe tost-cifar10-resnet32 --data-root DATA [--density 0.05] [--mask FILE]

The paper's masks come from lottery tickets, SNIP, GraSP, SynFlow, magnitude or chance: --mask FILE takes one, and
without it the mask is random. The published accuracies, for each mask and sparsity, are in the paper's tables. Each
ingredient is an option of its own: --no-ghost-neurons --no-ghost-skips --no-lrsi --label-smoothing 0 is the baseline.
"""

from dataclasses import replace

from sparsekern.recipes.tost_cifar10_resnet18 import RECIPE as TOST_CIFAR10_RESNET18
from sparsekern.training.config import ModelConfig

RECIPE = replace(TOST_CIFAR10_RESNET18, model=ModelConfig("resnet", depth=32))
