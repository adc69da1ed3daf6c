"""ToST on CIFAR-100 with ResNet-18.

ToST, "Training Your Sparse Neural Network Better with Any Mask" (ICML 2022, arXiv 2206.12755).

    sparsekern train --recipe tost-cifar100-resnet18 --data-root DATA [--density 0.05] [--mask FILE]

The paper's masks come from lottery tickets, SNIP, GraSP, SynFlow, magnitude or chance: --mask FILE takes one, and
without it the mask is random. The published accuracies, for each mask and sparsity, are in the paper's tables. Each
ingredient is an option of its own: --no-ghost-neurons --no-ghost-skips --no-lrsi --label-smoothing 0 is the baseline.
"""

from sparsekern.training.config import (
    DataConfig,
    GrowthConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SparsityConfig,
    TostConfig,
    TrainConfig,
)

RECIPE = TrainConfig(
    model=ModelConfig("resnet18"),
    # Accuracy at the epoch that is best on the first 5000 training images, which are not trained on, and at the last.
    data=DataConfig("cifar100", batch_size=128, held_out=5000),
    sparsity=SparsityConfig(density=0.1, distribution="er"),
    # The mask stays; --growth gse-grabo and the others move its edges under the same ingredients.
    growth=GrowthConfig("static"),
    optimizer=OptimizerConfig(
        "sgd",
        lr=0.1,
        momentum=0.9,
        nesterov=False,
        weight_decay=2e-4,
        decay="all",  # the published code does not leave out biases and norms
        schedule="multistep",
        milestones=(90 / 182, 135 / 182),
        warmup_epochs=0,
        label_smoothing=0.1,
        label_smoothing_over="others",  # 0.9 for the label, 0.1 / (classes - 1) for each other class
    ),
    # The paper's ghosts are temporary, without a schedule in its code: here they are gone after half of the run.
    tost=TostConfig(ghost_neurons=True, ghost_skips=True, lrsi=True),
    run=RunConfig(epochs=182),
)
