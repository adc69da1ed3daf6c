"""Dense networks that `sparsify` makes sparse."""

from sparsekern.models.mlp import MLP
from sparsekern.models.resnet import ResNet
from sparsekern.models.vit import ViT

__all__ = ["MLP", "ResNet", "ViT"]
