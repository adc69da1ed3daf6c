"""GSE on CIFAR-100 with a small SimpleViT.

GSE, "Always-Sparse Training by Growing Connections with Guided Stochastic Exploration" (arXiv 2401.06898), appendix.

    sparsekern train --recipe gse-cifar100-vit --data-root DATA [--density 0.05] [--growth rigl]

Published test accuracy in percent at densities 0.1, 0.05 and 0.02:

    SET          54.3  48.2  38.7
    RigL         54.6  49.0  40.4
    GSE uniform  54.4  48.8  40.7
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
    model=ModelConfig("simple-vit", patch=4, width=512, depth=4, heads=6, hidden=256),
    # Crops of the image padded by 4 black pixels, and mirroring: the set's own defaults.
    data=DataConfig("cifar100", batch_size=128),
    # The paper's Erdos-Renyi density counts a convolution's kernel into its inputs; no layer stays dense.
    sparsity=SparsityConfig(density=0.1, distribution="er"),
    # Updates every 1000 steps until epoch 120; as many candidates as edges.
    growth=GrowthConfig("gse-uniform", gamma=1.0, alpha=0.2, interval=1000, end=0.6),
    optimizer=OptimizerConfig(
        "sgd",
        lr=0.01,  # 0.1 is for convolutional networks
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
