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

from sparsekern.training.config import (
    DataConfig,
    GrowthConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SparsityConfig,
    TrainConfig,
)

RECIPE = TrainConfig(
    model=ModelConfig("resnet", depth=56, shortcut="A"),
    # Crops of the image padded by 4 black pixels, and mirroring: the set's own defaults.
    data=DataConfig("cifar100", batch_size=128),
    # The paper's Erdos-Renyi density counts a convolution's kernel into its inputs; no layer stays dense.
    sparsity=SparsityConfig(density=0.1, distribution="er"),
    # Updates every 1000 steps until epoch 120; as many candidates as edges.
    growth=GrowthConfig("gse-uniform", gamma=1.0, alpha=0.2, interval=1000, end=0.6),
    optimizer=OptimizerConfig(
        "sgd",
        lr=0.1,
        momentum=0.9,
        nesterov=False,
        weight_decay=1e-4,
        decay="all",  # the published code does not leave out biases and norms
        schedule="multistep",
        milestones=(0.4, 0.6),  # epochs 80 and 120
        warmup_epochs=5,
    ),
    run=RunConfig(epochs=200),
)
