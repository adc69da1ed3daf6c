"""GSE on CIFAR-10 with a small SimpleViT.

GSE, "Always-Sparse Training by Growing Connections with Guided Stochastic Exploration" (arXiv 2401.06898), appendix.

    sparsekern train --recipe gse-cifar10-vit --data-root DATA [--density 0.05] [--growth rigl]

Published test accuracy in percent at densities 0.1, 0.05 and 0.02:

    SET          79.4  75.2  68.7
    RigL         79.9  76.2  70.6
    GSE uniform  80.1  76.4  70.7
"""

from dataclasses import replace

from sparsekern.recipes.gse_cifar10_resnet56 import RECIPE as GSE_CIFAR10_RESNET56
from sparsekern.training.config import ModelConfig

RECIPE = replace(
    GSE_CIFAR10_RESNET56,
    model=ModelConfig("simple-vit", patch=4, width=512, depth=4, heads=6, hidden=256),
    optimizer=replace(GSE_CIFAR10_RESNET56.optimizer, lr=0.01),  # 0.1 is for convolutional networks
)
