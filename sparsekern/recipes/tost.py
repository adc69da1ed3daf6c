"""ToST on digits: the default run with all four ingredients.

ToST, "Training Your Sparse Neural Network Better with Any Mask" (ICML 2022, arXiv 2206.12755).

    sparsekern train --recipe tost [--no-ghost-neurons] [--no-ghost-skips] [--no-lrsi] [--label-smoothing 0]

The paper does not use this data set; docs/tost-digits.md has the accuracies of a smaller network with each ingredient.
"""

from sparsekern.training.config import OptimizerConfig, TostConfig, TrainConfig

RECIPE = TrainConfig(
    optimizer=OptimizerConfig(label_smoothing=0.1, label_smoothing_over="others"),
    tost=TostConfig(ghost_neurons=True, ghost_skips=True, lrsi=True),
)
