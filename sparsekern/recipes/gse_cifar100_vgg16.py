"""GSE on CIFAR-100 with VGG-16/4.

GSE, "Always-Sparse Training by Growing Connections with Guided Stochastic Exploration" (arXiv 2401.06898), appendix.

    sparsekern train --recipe gse-cifar100-vgg16 --data-root DATA [--density 0.05] [--growth rigl]

Published test accuracy in percent at densities 0.1, 0.05 and 0.02:

    SET          54.7  47.9  32.4
    RigL         57.0  51.8  39.9
    GSE uniform  57.9  52.3  40.8
"""

from dataclasses import replace

from sparsekern.recipes.gse_cifar10_vgg16 import RECIPE as GSE_CIFAR10_VGG16

RECIPE = replace(GSE_CIFAR10_VGG16, data=replace(GSE_CIFAR10_VGG16.data, name="cifar100"))
