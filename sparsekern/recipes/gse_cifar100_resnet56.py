"""GSE on CIFAR-100 with ResNet-56.

GSE, "Always-Sparse Training by Growing Connections with Guided Stochastic Exploration" (arXiv 2401.06898), appendix.

    sparsekern train --recipe gse-cifar100-resnet56 --data-root DATA [--density 0.05] [--growth rigl]

Published test accuracy in percent at densities 0.1, 0.05 and 0.02:

    SET          65.0  60.5  49.7
    RigL         65.7  62.3  52.8
    GSE uniform  66.0  62.5  54.3

At density 0.02: static 36.6, SNIP 41.7, GraSP 42.3, SynFlow 31.4, lottery ticket 50.3, gradual pruning 57.0; GSE with
1.5 and 2 times the epochs (--epochs 300, 400): 56.4, 57.9.
"""

from dataclasses import replace

from sparsekern.recipes.gse_cifar10_resnet56 import RECIPE as GSE_CIFAR10_RESNET56

RECIPE = replace(GSE_CIFAR10_RESNET56, data=replace(GSE_CIFAR10_RESNET56.data, name="cifar100"))
