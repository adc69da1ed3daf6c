"""ToST (arXiv 2206.12755): the default run with all of its ingredients; each has its own flag to switch it off."""

from sparsekern.training.config import OptimizerConfig, TostConfig, TrainConfig

RECIPE = TrainConfig(
    optimizer=OptimizerConfig(label_smoothing=0.1, label_smoothing_over="others"),
    tost=TostConfig(ghost_neurons=True, ghost_skips=True, lrsi=True),
)
