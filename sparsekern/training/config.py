"""Everything a run depends on, in one place: the dataclasses behind `sparsekern train` and a run's config.json."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

ModelName = Literal["mlp", "resnet", "vit"]
DataName = Literal["digits"]
DistributionName = Literal["erk", "er", "uniform"]
GrowthName = Literal["static", "set", "rigl", "gse-uniform", "gse-grabo", "gse-graest"]
OptimizerName = Literal["sgd", "adam", "adamw"]
ScheduleName = Literal["cosine", "multistep", "constant"]
DtypeName = Literal["float32", "bfloat16", "float16", "float64"]

MODEL_OPTIONS: dict[str, tuple[str, ...]] = {
    "mlp": ("width", "depth"),
    "resnet": ("width", "depth", "shortcut"),
    "vit": ("width", "depth", "heads", "patch", "pooling"),
}
LEARNING_RATES: dict[str, float] = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}


def check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low:g} to {high:g}, got {value!r}")


@dataclass(frozen=True)
class ModelConfig:
    name: Annotated[ModelName, tyro.conf.arg(name="model")] = "resnet"
    """Network to train."""
    width: int | None = None
    """Hidden units (mlp), channels of the first stage (resnet) or embedding width (vit)."""
    depth: int | None = None
    """Hidden layers (mlp), 6n+2 layers (resnet) or blocks (vit)."""
    shortcut: Literal["A", "B"] | None = None
    """resnet: shortcuts across stages padded with zeros (A) or 1x1 convolutions (B)."""
    heads: int | None = None
    """vit: attention heads."""
    patch: int | None = None
    """vit: patch size [pixels]."""
    pooling: Literal["mean", "cls"] | None = None
    """vit: mean of the patches or a class token."""

    def __post_init__(self) -> None:
        check_choice("model", self.name, ModelName)
        for option, value in self.options().items():
            if option not in MODEL_OPTIONS[self.name]:
                raise ValueError(
                    f"{option} does not apply to model {self.name}, which takes {', '.join(MODEL_OPTIONS[self.name])}"
                )
            if isinstance(value, int):
                check_range(option, value, 1)

    def options(self) -> dict[str, Any]:
        """What was set, by name; everything else is the model's own default."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "name"}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class DataConfig:
    name: Annotated[DataName, tyro.conf.arg(name="data")] = "digits"
    """Data set. digits: 1797 images of 8x8 pixels from scikit-learn."""
    batch_size: int = 64
    """Images a step."""
    shift: int = 1
    """Augmentation: each training image moves by up to this many pixels each way; 0 for none."""

    def __post_init__(self) -> None:
        check_choice("data", self.name, DataName)
        check_range("batch_size", self.batch_size, 1)
        check_range("shift", self.shift, 0)


@dataclass(frozen=True)
class SparsityConfig:
    density: float = 0.05
    """Share of the weights that exist, over all sparse layers together. 1 trains the dense twin."""
    dense: bool = False
    """Train the dense twin: plain torch layers, all else the same."""
    distribution: DistributionName = "erk"
    """How the density is spread over the layers."""
    exclude: tuple[str, ...] = ()
    """Name patterns of layers that stay dense, such as 'head*'."""
    mask: Path | None = None
    """File of `sparsekern mask` to begin with; density and exclude are then the file's."""

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be above 0 and at most 1, got {self.density!r}")
        check_choice("distribution", self.distribution, DistributionName)
        if self.mask is not None and self.distribution != "erk":
            raise ValueError(f"distribution does not apply to a mask file, got {self.distribution!r} with {self.mask}")

    @property
    def is_dense(self) -> bool:
        return self.dense or self.density == 1


@dataclass(frozen=True)
class GrowthConfig:
    name: Annotated[GrowthName, tyro.conf.arg(name="growth")] = "gse-grabo"
    """How the topology changes while training."""
    gamma: float = 1.0
    """gse: candidates an update, as a share of a layer's edges."""
    alpha: float = 0.2
    """Share of a layer's edges that the first update replaces; falls to 0 along a cosine."""
    interval: int = 50
    """Steps between updates."""
    end: float = 0.75
    """Share of the run after which the topology stays."""

    def __post_init__(self) -> None:
        check_choice("growth", self.name, GrowthName)
        check_range("alpha", self.alpha, 0, 1)
        check_range("interval", self.interval, 1)
        check_range("end", self.end, 0, 1)
        if not self.gamma > 0:
            raise ValueError(f"gamma must be above 0, got {self.gamma!r}")


@dataclass(frozen=True)
class OptimizerConfig:
    name: Annotated[OptimizerName, tyro.conf.arg(name="optimizer")] = "sgd"
    """Optimizer."""
    lr: float | None = None
    """Peak learning rate; by default 0.1 for sgd and 0.001 for adam and adamw."""
    momentum: float = 0.9
    """sgd: Nesterov momentum."""
    weight_decay: float = 5e-4
    """Weight decay, on weights only: biases, norms, position embeddings and class tokens are left out."""
    schedule: ScheduleName = "cosine"
    """Learning rate after the warm-up."""
    warmup_epochs: float = 2.0
    """Epochs of linear warm-up."""
    milestones: tuple[float, ...] = (0.4, 0.6)
    """multistep: shares of the run at which the rate is multiplied by 0.1."""
    label_smoothing: float = 0.0
    """Probability mass spread over all classes (torch's definition)."""

    def __post_init__(self) -> None:
        check_choice("optimizer", self.name, OptimizerName)
        check_choice("schedule", self.schedule, ScheduleName)
        check_range("momentum", self.momentum, 0, 1)
        check_range("weight_decay", self.weight_decay, 0)
        check_range("warmup_epochs", self.warmup_epochs, 0)
        check_range("label_smoothing", self.label_smoothing, 0, 1)
        for milestone in self.milestones:
            check_range("milestones", milestone, 0, 1)
        if not self.learning_rate > 0:
            raise ValueError(f"lr must be above 0, got {self.lr!r}")

    @property
    def learning_rate(self) -> float:
        return LEARNING_RATES[self.name] if self.lr is None else self.lr


@dataclass(frozen=True)
class RunConfig:
    epochs: int = 60
    """Passes over the training images."""
    seed: int = 0
    """Seed of initial weights, topology, growth and order of the data. The test images do not depend on it."""
    device: str = "cpu"
    """Torch device."""
    dtype: DtypeName = "float32"
    """bfloat16 and float16 are autocast over float32 weights; float64 is whole."""
    threads: int | None = None
    """CPU threads; by default torch's own choice."""
    output: Path | None = None
    """New folder of the run; by default runs/MODEL-GROWTH-DENSITY-SEED, numbered where that exists."""
    checkpoint_every: int = 1
    """Epochs between checkpoints. The last step and an interruption are always saved."""
    stop_after: int | None = None
    """Save and stop when this many steps of the run are done; --resume goes on from there."""
    plots: bool = True
    """Draw the plots at the end."""
    twin: bool = False
    """Train the dense twin afterwards, in RUN/dense, and compare. No effect on a dense run."""

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, DtypeName)
        check_range("epochs", self.epochs, 1)
        check_range("checkpoint_every", self.checkpoint_every, 1)
        for name in ("threads", "stop_after"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 1)


PATHS = (("run", "output"), ("sparsity", "mask"))
CHANGEABLE_ON_RESUME = ("device", "threads", "checkpoint_every", "stop_after", "plots", "twin")


@dataclass(frozen=True)
class TrainConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def label(self) -> str:
        """MODEL-GROWTH-DENSITY-SEED, MODEL-GROWTH-MASKFILE-DENSITY-SEED, or MODEL-dense-SEED."""
        mask = "" if self.sparsity.mask is None else f"{self.sparsity.mask.stem}-"
        method = "dense" if self.sparsity.is_dense else f"{self.growth.name}-{mask}{self.sparsity.density:g}"
        return f"{self.model.name}-{method}-{self.run.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, for JSON."""
        nested = dataclasses.asdict(self)
        for section, name in PATHS:
            path = nested[section][name]
            nested[section][name] = None if path is None else str(path)
        return nested

    @classmethod
    def from_dict(cls, nested: dict[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`. Raises ValueError for names that this version does not know."""
        sections = {each.name: each.default_factory for each in dataclasses.fields(cls)}
        built = {}
        for section, values in nested.items():
            if section not in sections:
                raise ValueError(f"unknown section {section!r}; known are {', '.join(sections)}")
            default = sections[section]()  # type: ignore[operator]
            known = {each.name for each in dataclasses.fields(default)}
            if unknown := sorted(values.keys() - known):
                raise ValueError(f"unknown option {section}.{unknown[0]}; known are {', '.join(sorted(known))}")
            as_tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            built[section] = dataclasses.replace(default, **as_tuples)
        for section, name in PATHS:
            if section in built and (path := getattr(built[section], name)) is not None:
                built[section] = dataclasses.replace(built[section], **{name: Path(path)})
        return cls(**built)

    def differences(self, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
        """What differs: {"section.option": (mine, theirs)}, but for CHANGEABLE_ON_RESUME and where the folder is."""
        mine, theirs = self.to_dict(), other.to_dict()
        return {
            f"{section}.{name}": (value, theirs[section][name])
            for section, values in mine.items()
            for name, value in values.items()
            if value != theirs[section][name] and not (section == "run" and name in (*CHANGEABLE_ON_RESUME, "output"))
        }
