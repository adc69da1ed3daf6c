"""GSE on CIFAR-100 with a small SimpleViT.

GSE, "Always-Sparse Training by Growing Connections with Guided Stochastic Exploration" (arXiv 2401.06898), appendix.

    sparsekern train --recipe gse-cifar100-vit --data-root DATA [--density 0.05] [--growth rigl]

Published test accuracy in percent at densities 0.1, 0.05 and 0.02:

    SET          54.3  48.2  38.7
    RigL         54.6  49.0  40.4
    GSE uniform  54.4  48.8  40.7
"""

from dataclasses import replace

from sparsekern.recipes.gse_cifar10_vit import RECIPE as GSE_CIFAR10_VIT

RECIPE = replace(GSE_CIFAR10_VIT, data=replace(GSE_CIFAR10_VIT.data, name="cifar100"))
