"""Dense networks that `sparsify` makes sparse."""

from sparsekern.models.convnet import ConvNet
from sparsekern.models.mlp import MLP
from sparsekern.models.mobilenet import MobileNetV1, MobileNetV2
from sparsekern.models.registry import MODELS, make_model
from sparsekern.models.resnet import ResNet, resnet18, resnet34, resnet50
from sparsekern.models.simple_vit import SimpleViT
from sparsekern.models.vgg import VGG16
from sparsekern.models.vit import ViT, vit_b, vit_s, vit_ti

__all__ = [
    "MLP",
    "MODELS",
    "VGG16",
    "ConvNet",
    "MobileNetV1",
    "MobileNetV2",
    "ResNet",
    "SimpleViT",
    "ViT",
    "make_model",
    "resnet18",
    "resnet34",
    "resnet50",
    "vit_b",
    "vit_s",
    "vit_ti",
]
