"""Everything a run depends on, in one place: the dataclasses behind `sparsekern train` and a run's config.json."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

ModelName = Literal[
    "mlp",
    "resnet",
    "resnet18",
    "resnet34",
    "resnet50",
    "vgg16",
    "mobilenetv1",
    "mobilenetv2",
    "vit",
    "simple-vit",
    "vit-ti",
    "vit-s",
    "vit-b",
]
DataName = Literal["digits", "cifar10", "cifar100", "tiny-imagenet", "imagenet"]
DistributionName = Literal["erk", "er", "uniform"]
GrowthName = Literal["static", "set", "rigl", "gse-uniform", "gse-grabo", "gse-graest"]
OptimizerName = Literal["sgd", "adam", "adamw"]
ScheduleName = Literal["cosine", "multistep", "constant"]
DecayName = Literal["weights", "all"]
DtypeName = Literal["float32", "bfloat16", "float16", "float64"]
SmoothingName = Literal["all", "others"]
NeuronName = Literal["swish", "gelu", "mish", "elu", "softplus"]
BranchName = Literal["sparse", "free"]
NonFiniteName = Literal["stop", "skip"]

MODEL_OPTIONS: dict[str, tuple[str, ...]] = {
    "mlp": ("width", "depth"),
    "resnet": ("width", "depth", "shortcut"),
    "resnet18": ("width", "stem", "shortcut"),
    "resnet34": ("width", "stem", "shortcut"),
    "resnet50": ("width", "stem", "shortcut"),
    "vgg16": ("width", "hidden", "stem"),
    "mobilenetv1": ("width", "stem"),
    "mobilenetv2": ("width", "stem"),
    "vit": ("width", "depth", "heads", "patch", "hidden", "pooling"),
    "simple-vit": ("width", "depth", "heads", "patch", "hidden"),
    "vit-ti": ("patch", "pooling"),
    "vit-s": ("patch", "pooling"),
    "vit-b": ("patch", "pooling"),
}
# (shift, flip) where nothing is said; ImageNet is cropped at random instead of shifted.
AUGMENTATION: dict[str, tuple[int, bool]] = {
    "digits": (1, False),
    "cifar10": (4, True),
    "cifar100": (4, True),
    "tiny-imagenet": (4, True),
    "imagenet": (0, True),
}
LEARNING_RATES: dict[str, float] = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}


def check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    if not low <= value <= high:
        expected = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
        raise ValueError(f"{name} must be {expected}, got {value!r}")


@dataclass(frozen=True)
class ModelConfig:
    name: Annotated[ModelName, tyro.conf.arg(name="model")] = "resnet"
    """Network to train."""
    width: int | None = None
    """Hidden units (mlp), channels of the first stage (convolutional networks) or embedding width (vit, simple-vit).
    vgg16 has 64; 16 is VGG-16/4."""
    depth: int | None = None
    """Hidden layers (mlp), 6n+2 layers (resnet) or blocks (vit, simple-vit)."""
    shortcut: Literal["A", "B"] | None = None
    """Residual networks: shortcuts across stages padded with zeros (A) or 1x1 convolutions (B)."""
    stem: Literal["cifar", "imagenet"] | None = None
    """Form of a convolutional network for small or for large images; by default cifar up to 64 pixels."""
    heads: int | None = None
    """vit, simple-vit: attention heads."""
    patch: int | None = None
    """Vision transformers: patch size [pixels]."""
    hidden: int | None = None
    """Units of a block's hidden layer (vit, simple-vit) or of each hidden linear layer (vgg16, 0 for none)."""
    pooling: Literal["mean", "cls"] | None = None
    """Vision transformers: mean of the patches or a class token."""

    def __post_init__(self) -> None:
        check_choice("model", self.name, ModelName)
        for option, value in self.options().items():
            if option not in MODEL_OPTIONS[self.name]:
                raise ValueError(
                    f"{option} does not apply to model {self.name}, which takes {', '.join(MODEL_OPTIONS[self.name])}"
                )
            if isinstance(value, int):
                check_range(option, value, 0 if (self.name, option) == ("vgg16", "hidden") else 1)

    def options(self) -> dict[str, Any]:
        """What was set, by name; everything else is the model's own default."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "name"}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class DataConfig:
    name: Annotated[DataName, tyro.conf.arg(name="data")] = "digits"
    """Data set. digits: 1797 images of 8x8 pixels from scikit-learn. The others are read from --data-root."""
    root: Annotated[Path, tyro.conf.arg(name="data-root")] = Path("data")
    """Folder with the data set as it is distributed: archive or extracted folder (docs/data.md)."""
    batch_size: int = 64
    """Images a step."""
    shift: int | None = None
    """Augmentation: each training image moves by up to this many pixels each way, 0 for none; by default 1 for digits
    and 4 for CIFAR and TinyImageNet. ImageNet is cropped at random instead."""
    flip: bool | None = None
    """Augmentation: half of the training images, at random, are mirrored left to right; by default not for digits."""
    mixup: float = 0.0
    """Augmentation: mixup's alpha, such as 0.2; 0 for none. With cutmix too, each batch gets one of the two."""
    cutmix: float = 0.0
    """Augmentation: cutmix's alpha, such as 1; 0 for none."""
    held_out: int = 0
    """Training images taken out as a dev set, the first ones (ImageNet: as many of each class)."""
    workers: int | None = None
    """imagenet: processes that read images; by default one a core, at most 8. The images do not depend on it."""

    def __post_init__(self) -> None:
        check_choice("data", self.name, DataName)
        check_range("batch_size", self.batch_size, 1)
        for name in ("mixup", "cutmix", "held_out"):
            check_range(name, getattr(self, name), 0)
        for name in ("shift", "workers"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 0)

    @property
    def augmentation(self) -> tuple[int, bool]:
        """(shift, flip): what was set, else the data set's own."""
        shift, flip = AUGMENTATION[self.name]
        return shift if self.shift is None else self.shift, flip if self.flip is None else self.flip


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
    weights: Path | None = None
    """Checkpoint of the dense network (safetensors, or torch.save's) whose values at the edges the run begins with."""

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
    """sgd: momentum."""
    nesterov: bool = True
    """sgd: Nesterov's form of momentum."""
    weight_decay: float = 5e-4
    """Weight decay."""
    decay: DecayName = "weights"
    """What decays: weights leaves out biases, norms, position embeddings and class tokens."""
    schedule: ScheduleName = "cosine"
    """Learning rate after the warm-up."""
    warmup_epochs: float = 2.0
    """Epochs of linear warm-up."""
    milestones: tuple[float, ...] = (0.4, 0.6)
    """multistep: shares of the run at which the rate is multiplied by 0.1."""
    label_smoothing: float = 0.0
    """Probability mass that the labels give away."""
    label_smoothing_over: SmoothingName = "all"
    """Who shares that mass: all classes, the label's too (torch's definition), or the others alone (ToST's)."""
    clip: float = 0.0
    """Longest gradient of all parameters together (2-norm); longer ones are scaled down to it. 0 for no limit."""
    ema: float = 0.0
    """Decay a step of a moving average of the weights, such as 0.999, which is then what is tested; 0 for none. It
    begins when ghosts, where there are any, are gone."""

    def __post_init__(self) -> None:
        check_choice("optimizer", self.name, OptimizerName)
        check_choice("schedule", self.schedule, ScheduleName)
        check_choice("decay", self.decay, DecayName)
        check_range("momentum", self.momentum, 0, 1)
        check_range("weight_decay", self.weight_decay, 0)
        check_range("warmup_epochs", self.warmup_epochs, 0)
        check_range("label_smoothing", self.label_smoothing, 0, 1)
        check_range("clip", self.clip, 0)
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be from 0 to below 1, got {self.ema!r}")
        check_choice("label_smoothing_over", self.label_smoothing_over, SmoothingName)
        for milestone in self.milestones:
            check_range("milestones", milestone, 0, 1)
        if not self.learning_rate > 0:
            raise ValueError(f"lr must be above 0, got {self.lr!r}")

    @property
    def learning_rate(self) -> float:
        return LEARNING_RATES[self.name] if self.lr is None else self.lr


@dataclass(frozen=True)
class TostConfig:
    ghost_neurons: bool = False
    """ToST: ReLUs begin as smooth functions and become ReLUs."""
    ghost_skips: bool = False
    """ToST: 3x3 convolutions begin with a branch beside them, which fades and is removed."""
    lrsi: bool = False
    """ToST: each parameter is scaled before the first step, so that this step lowers the loss most."""
    ghost_end: float = 0.5
    """Share of the run after which the ghosts are gone."""
    ghost_neuron: NeuronName = "swish"
    """ghost_neurons: the smooth function f, as f(beta x) / beta."""
    ghost_beta: float = 1.0
    """ghost_neurons: beta at the first step; it rises to infinity."""
    ghost_branch: BranchName = "sparse"
    """ghost_skips: a sparse 1x1 convolution with its norm, or the input itself, free of parameters."""
    ghost_branch_density: float | None = None
    """ghost_skips: density of sparse branches; by default that of the convolution beside each."""
    lrsi_iterations: int = 180
    """lrsi: iterations on batches of training images."""

    def __post_init__(self) -> None:
        check_range("ghost_end", self.ghost_end, 0, 1)
        check_choice("ghost_neuron", self.ghost_neuron, NeuronName)
        check_choice("ghost_branch", self.ghost_branch, BranchName)
        check_range("lrsi_iterations", self.lrsi_iterations, 1)
        if not 0 < self.ghost_beta < float("inf"):
            raise ValueError(f"ghost_beta must be above 0 and finite, got {self.ghost_beta!r}")
        density = self.ghost_branch_density
        if density is not None and not 0 < density <= 1:
            raise ValueError(f"ghost_branch_density must be above 0 and at most 1, got {density!r}")

    @property
    def ghosts(self) -> bool:
        return (self.ghost_neurons or self.ghost_skips) and self.ghost_end > 0


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
    """New folder of the run; by default runs/[DATA-]MODEL-GROWTH-DENSITY-SEED, numbered where that exists."""
    checkpoint_every: int = 1
    """Epochs between checkpoints. The last step and an interruption are always saved."""
    save_every: int | None = None
    """Steps between checkpoints, beside those at epochs' ends."""
    keep: int = 2
    """Checkpoints that stay: the newest and the last ones before it, from which a damaged one is recovered."""
    nonfinite: NonFiniteName = "stop"
    """A step whose loss is infinite or NaN ends the run or is skipped, leaving no trace but a warning."""
    stop_after: int | None = None
    """Save and stop when this many steps of the run are done; --resume goes on from there."""
    plots: bool = True
    """Draw the plots at the end."""
    tensorboard: bool | None = None
    """Write TensorBoard event files to RUN/tensorboard; by default where tensorboard is installed."""
    twin: bool = False
    """Train the dense twin afterwards, in RUN/dense, and compare. No effect on a dense run."""

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, DtypeName)
        check_range("epochs", self.epochs, 1)
        check_range("checkpoint_every", self.checkpoint_every, 1)
        check_range("keep", self.keep, 1)
        check_choice("nonfinite", self.nonfinite, NonFiniteName)
        for name in ("threads", "stop_after", "save_every"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 1)


PATHS = (("run", "output"), ("data", "root"), ("sparsity", "mask"), ("sparsity", "weights"))
CHANGEABLE_ON_RESUME = (
    *("device", "threads", "checkpoint_every", "save_every", "keep", "nonfinite", "stop_after"),
    *("plots", "tensorboard", "twin", "root", "workers"),
)


@dataclass(frozen=True)
class TrainConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    tost: TostConfig = field(default_factory=TostConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def label(self) -> str:
        """MODEL-GROWTH-DENSITY-SEED, or MODEL-dense-SEED.

        The data set's name comes first where that is not digits, a mask file's before the density.
        """
        mask = "" if self.sparsity.mask is None else f"{self.sparsity.mask.stem}-"
        method = "dense" if self.sparsity.is_dense else f"{self.growth.name}-{mask}{self.sparsity.density:g}"
        data = "" if self.data.name == "digits" else f"{self.data.name}-"
        return f"{data}{self.model.name}-{method}-{self.run.seed}"

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
            if value != theirs[section][name] and name not in (*CHANGEABLE_ON_RESUME, "output")
        }
