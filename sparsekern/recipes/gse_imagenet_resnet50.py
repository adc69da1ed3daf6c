"""GSE on ImageNet with ResNet-50.

GSE, "Always-Sparse Training by Growing Connections with Guided Stochastic Exploration" (arXiv 2401.06898).

    sparsekern train --recipe gse-imagenet-resnet50 --data-root DATA

90% sparse, for 100 epochs. The published accuracy is in the paper's table on ImageNet.
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
    model=ModelConfig("resnet50"),
    # RandomResizedCrop to 224 pixels and mirroring; tests on the middle 224 of 256 pixels. The paper names no batch
    # size of its own for ImageNet.
    data=DataConfig("imagenet", batch_size=128),
    sparsity=SparsityConfig(density=0.1, distribution="er"),
    # On ImageNet, twice as many candidates as edges.
    growth=GrowthConfig("gse-uniform", gamma=2.0, alpha=0.2, interval=1000, end=0.6),
    optimizer=OptimizerConfig(
        "sgd",
        lr=0.1,
        momentum=0.9,
        nesterov=False,
        weight_decay=1e-4,
        decay="all",  # the published code does not leave out biases and norms
        schedule="multistep",
        milestones=(0.4, 0.6),  # the same shares of the run as on CIFAR
        warmup_epochs=5,
        label_smoothing=0.1,
    ),
    run=RunConfig(epochs=100),
)
