"""GSE on CIFAR-100 with VGG-16/4.

GSE, "Always-Sparse Training by Growing Connections with Guided Stochastic Exploration" (arXiv 2401.06898), appendix.

    sparsekern train --recipe gse-cifar100-vgg16 --data-root DATA [--density 0.05] [--growth rigl]

Published test accuracy in percent at densities 0.1, 0.05 and 0.02:

    SET          54.7  47.9  32.4
    RigL         57.0  51.8  39.9
    GSE uniform  57.9  52.3  40.8
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
    # VGG-16 with a quarter of the channels, and linear layers of 512 units.
    model=ModelConfig("vgg16", width=16, hidden=512),
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
