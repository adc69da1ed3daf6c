"""GSE on CIFAR-10 with VGG-16/4.

GSE, "Always-Sparse Training by Growing Connections with Guided Stochastic Exploration" (arXiv 2401.06898), appendix.

    sparsekern train --recipe gse-cifar10-vgg16 --data-root DATA [--density 0.05] [--growth rigl]

Published test accuracy in percent at densities 0.1, 0.05 and 0.02:

    SET          86.8  84.8  79.9
    RigL         88.5  87.1  83.6
    GSE uniform  88.6  88.1  85.1
"""

from dataclasses import replace

from sparsekern.recipes.gse_cifar10_resnet56 import RECIPE as GSE_CIFAR10_RESNET56
from sparsekern.training.config import ModelConfig

# VGG-16 with a quarter of the channels, and linear layers of 512 units.
RECIPE = replace(GSE_CIFAR10_RESNET56, model=ModelConfig("vgg16", width=16, hidden=512))
