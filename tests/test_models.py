import inspect
import itertools
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from sparsekern.models import MLP, MODELS, VGG16, MobileNetV1, MobileNetV2, ResNet, SimpleViT, ViT, make_model, resnet50
from sparsekern.models.mobilenet import divisible
from sparsekern.models.simple_vit import sincos_positions
from sparsekern.training.config import MODEL_OPTIONS, ModelConfig, ModelName

CASES = {
    "mlp": lambda: MLP(1, 8, 10, width=32, depth=2),
    "resnet-A": lambda: ResNet(1, 10, width=4, depth=8, shortcut="A"),
    "resnet-B": lambda: ResNet(1, 10, width=4, depth=14, shortcut="B"),
    "resnet-stages": lambda: ResNet(1, 10, width=4, stages=(1, 2, 1), shortcut="B"),
    "bottleneck-A": lambda: resnet50(1, 8, 10, width=4, shortcut="A"),
    "bottleneck-imagenet": lambda: resnet50(1, 8, 10, width=4, stem="imagenet"),
    "vgg": lambda: VGG16(1, 8, 10, width=4, hidden=16),
    "vgg-linear": lambda: VGG16(1, 8, 10, width=4, hidden=0),
    "mobilenetv1": lambda: MobileNetV1(1, 8, 10, width=8),
    "mobilenetv2": lambda: MobileNetV2(1, 8, 10, width=8),
    "mobilenetv2-imagenet": lambda: MobileNetV2(1, 8, 10, width=8, stem="imagenet"),
    "simple-vit": lambda: SimpleViT(1, 8, 10, width=16, depth=2, heads=2, hidden=24),
    "vit-mean": lambda: ViT(1, 8, 10, width=16, depth=2, heads=2, patch=2, pooling="mean"),
    "vit-cls": lambda: ViT(1, 8, 10, width=16, depth=1, heads=4, patch=4, pooling="cls"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [1, 5])
def test_forward_and_backward(name, batch):
    torch.manual_seed(0)
    model = CASES[name]()
    if batch == 1:  # 1x1 pixels of one image have no variance
        model.eval()
    images = torch.randn(batch, 1, 8, 8, requires_grad=True)
    logits = model(images)
    assert logits.shape == (batch, 10)
    logits.logsumexp(1).sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", CASES)
def test_eval_answers_do_not_depend_on_the_rest_of_the_batch(name):
    torch.manual_seed(0)
    model = CASES[name]().eval()
    images = torch.randn(6, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(images)[2:4], model(images[2:4]))


@pytest.mark.parametrize(("depth", "layers"), [(8, 8), (20, 20), (56, 56)])
def test_resnet_depth_counts_its_layers(depth, layers):
    model = ResNet(3, 10, width=2, depth=depth, shortcut="A")
    counted = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len(counted) == layers


def test_resnet20_has_the_papers_size():
    # 0.27 M parameters with option A (He et al. 2015, table 6).
    assert sum(p.numel() for p in ResNet(3, 10, width=16, depth=20, shortcut="A").parameters()) == 269_722


# At 1000 classes: torchvision's, timm's (the vision transformers) and Keras's (MobileNetV1) documented counts.
IMAGENET = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "vgg16": 138_365_992,
    "mobilenetv1": 4_231_976,
    "mobilenetv2": 3_504_872,
    "vit-ti": 5_717_416,
    "vit-s": 22_050_664,
    "vit-b": 86_567_656,
}
VGG16_4 = list(itertools.pairwise([3, 16, 16, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 128]))
# At 10 classes and 32 pixels; ResNets of 6n+2 layers with option A have the papers' 0.27 to 1.7 million.
CIFAR = [
    ("resnet", {"depth": 32}, 464_154),
    ("resnet", {"depth": 44}, 658_586),
    ("resnet", {"depth": 56}, 853_018),
    ("resnet", {"depth": 104}, 1_630_746),
    ("resnet", {"depth": 110}, 1_727_962),
    ("resnet", {"depth": 56, "shortcut": "B"}, 855_770),
    ("resnet50", {}, 23_520_842),
    ("vgg16", {"hidden": 0}, 14_728_266),
    # VGG-16/4: the convolutions with bias, scale and shift, and 128 -> 512 -> 512 -> 10.
    ("vgg16", {"width": 16}, sum(9 * a * b + 3 * b for a, b in VGG16_4) + 129 * 512 + 513 * 512 + 513 * 10),
    # The GSE paper's: patches of 48 normed values, 6 heads of 64, blocks of 256 units.
    ("simple-vit", {}, 96 + 49 * 512 + 1024 + 4 * (2048 + 4 * 384 * 512 + 513 * 256 + 257 * 512) + 1024 + 513 * 10),
]


def count_parameters(name, channels, size, classes, **options):
    with torch.device("meta"):
        model = make_model(name, channels, size, classes, **options)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "parameters"), IMAGENET.items())
def test_imagenet_models_have_the_well_known_sizes(name, parameters):
    assert count_parameters(name, 3, 224, 1000) == parameters


@pytest.mark.parametrize(("name", "options", "parameters"), CIFAR)
def test_cifar_models_have_the_well_known_sizes(name, options, parameters):
    assert count_parameters(name, 3, 32, 10, **options) == parameters


def test_a_mobilenet_of_half_the_width_has_torchvisions_size():
    assert count_parameters("mobilenetv2", 3, 224, 1000, width=16) == 1_968_680
    assert [divisible(x) for x in (3, 12, 12.1, 36, 48, 1281)] == [8, 16, 16, 40, 48, 1280]


def test_stems_follow_the_image_size():
    for name in ("resnet18", "resnet50", "mobilenetv1", "mobilenetv2"):
        at = {}
        for size, stem in ((64, None), (65, None), (64, "imagenet"), (224, "cifar")):
            with torch.device("meta"):
                model = make_model(name, 3, size, 10, stem=stem)
            at[size, stem] = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d)).stride
        assert at == {(64, None): (1, 1), (65, None): (2, 2), (64, "imagenet"): (2, 2), (224, "cifar"): (1, 1)}
    with torch.device("meta"):
        features = make_model("resnet50", 3, 224, 10).blocks(torch.empty(1, 64, 56, 56))
        assert features.shape == (1, 2048, 7, 7)
        assert make_model("mobilenetv2", 3, 32, 10).features(torch.empty(1, 3, 32, 32)).shape == (1, 1280, 4, 4)
        assert make_model("mobilenetv2", 3, 224, 10).features(torch.empty(1, 3, 224, 224)).shape == (1, 1280, 7, 7)
        assert make_model("mobilenetv1", 3, 224, 10).features(torch.empty(1, 3, 224, 224)).shape == (1, 1024, 7, 7)
        assert make_model("vgg16", 3, 32, 10).features(torch.empty(1, 3, 32, 32)).shape == (1, 512, 1, 1)
        assert make_model("vgg16", 3, 224, 10).features(torch.empty(1, 3, 224, 224)).shape == (1, 512, 7, 7)


def test_the_registry_is_what_the_command_line_offers():
    assert set(MODELS) == set(get_args(ModelName)) == set(MODEL_OPTIONS)
    for name, make in MODELS.items():
        keywords = [p.name for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY]
        assert sorted(keywords) == sorted(MODEL_OPTIONS[name]), name


def test_no_hidden_layers_is_a_choice_of_vgg_alone():
    assert ModelConfig("vgg16", hidden=0).options() == {"hidden": 0}
    with pytest.raises(ValueError, match="hidden must be at least 1"):
        ModelConfig("vit", hidden=0)


def test_sincos_positions_are_the_formula():
    table = sincos_positions(3, 16)
    for row in range(3):
        for column in range(3):
            omega = 10_000.0 ** -(torch.arange(4) / 3)
            expected = [f(at * omega) for at in (column, row) for f in (torch.sin, torch.cos)]
            torch.testing.assert_close(table[3 * row + column], torch.cat(expected))


def test_simple_vit_sees_each_patch_with_its_channels_together():
    model = SimpleViT(2, 8, 10, width=16, depth=1, heads=2, patch=4)
    images = torch.randn(3, 2, 8, 8)
    patches = model.patches(images)
    assert patches.shape == (3, 4, 32)
    assert torch.equal(patches[1, 2], images[1, :, 4:8, 0:4].permute(1, 2, 0).flatten())
    assert "positions" not in model.state_dict()


def test_a_bottleneck_is_three_convolutions_and_a_projection():
    torch.manual_seed(0)
    block = resnet50(3, 32, 10, width=4).blocks[3].train()  # the second stage's first
    x = torch.randn(5, 16, 8, 8)

    def norm(module, x):
        return F.batch_norm(x, None, None, module.weight, module.bias, training=True)

    hidden = norm(block.norm1, block.conv1(x)).relu()
    hidden = norm(block.norm2, F.conv2d(hidden, block.conv2.weight, stride=2, padding=1)).relu()
    hidden = norm(block.norm3, block.conv3(hidden))
    projected = norm(block.shortcut[1], F.conv2d(x, block.shortcut[0].weight, stride=2))
    torch.testing.assert_close(block(x), (hidden + projected).relu(), atol=1e-5, rtol=1e-5)


def test_an_inverted_residual_adds_its_input_where_it_keeps_the_shape():
    torch.manual_seed(0)
    model = MobileNetV2(1, 8, 10, width=32).eval()
    first, second = model.features[4], model.features[5]  # 16 -> 24, 24 -> 24
    x = torch.randn(2, 16, 8, 8)
    y = first(x)
    torch.testing.assert_close(y, first.norm(first.layers(x)))
    torch.testing.assert_close(second(y), second.norm(second.layers(y)) + y)


def test_resnet18_has_the_usual_size():
    model = ResNet.cifar18()
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    assert [type(m) for m in model.modules()].count(torch.nn.Conv2d) == 20
    assert model.blocks(torch.randn(2, 64, 16, 16)).shape == (2, 512, 2, 2)


def test_checkpoints_have_the_names_of_plain_modules():
    """Fused modules bring no name of their own and take none away."""
    names = set(ResNet(1, 10, width=4, depth=8, shortcut="B").state_dict())
    norms = ["norm", *(f"blocks.{i}.norm{j}" for i in range(3) for j in (1, 2)), "blocks.1.shortcut.1"]
    norms.append("blocks.2.shortcut.1")
    held = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {f"{norm}.{name}" for norm in norms for name in held}
    expected |= {f"blocks.{i}.conv{j}.weight" for i in range(3) for j in (1, 2)}
    expected |= {"stem.weight", "head.weight", "head.bias", "blocks.1.shortcut.0.weight", "blocks.2.shortcut.0.weight"}
    assert names == expected
    block = {n.removeprefix("blocks.0.").rpartition(".")[0] for n in CASES["vit-cls"]().state_dict() if "blocks" in n}
    assert block == {"norm1", "norm2", "attention.qkv", "attention.projection", "expand", "contract"}


def test_resnet_is_what_plain_modules_compute():
    torch.manual_seed(0)
    model = ResNet(2, 10, width=4, stages=(1, 1), shortcut="B")
    plain = ResNet(2, 10, width=4, stages=(1, 1), shortcut="B")
    plain.load_state_dict(model.state_dict())

    def norm(module, x):
        return F.batch_norm(x, None, None, module.weight, module.bias, training=True)

    images = torch.randn(3, 2, 8, 8)
    hidden = norm(plain.norm, plain.stem(images)).relu()
    for block in plain.blocks:
        inner = norm(block.norm2, block.conv2(norm(block.norm1, block.conv1(hidden)).relu()))
        projected = isinstance(block.shortcut, torch.nn.Sequential)
        shortcut = norm(block.shortcut[1], block.shortcut[0](hidden)) if projected else hidden
        hidden = (inner + shortcut).relu()
    expected = plain.head(hidden.mean((2, 3)))
    mine = model(images)
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)
    mine.logsumexp(1).sum().backward()
    expected.logsumexp(1).sum().backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4)


def test_attention_is_torchs():
    torch.manual_seed(0)
    layer = ViT(1, 8, 10, width=12, depth=1, heads=3).blocks[0].attention
    x = torch.randn(2, 5, 12)
    query, key, value = layer.qkv(x).view(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(2, 5, 12)
    torch.testing.assert_close(layer(x), layer.projection(mixed))


def test_padded_shortcut_keeps_channels_in_the_middle():
    shortcut = ResNet(1, 10, width=4, depth=8).blocks[1].shortcut
    x = torch.randn(2, 4, 8, 8)
    y = shortcut(x)
    assert y.shape == (2, 8, 4, 4)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert y[:, :2].abs().sum() == 0
    assert y[:, 6:].abs().sum() == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(1, 8, 10, depth=0), "depth must be at least 1"),
        (lambda: ResNet(1, 10, depth=10), "6n\\+2.*got 10"),
        (lambda: ResNet(1, 10, depth=8, stages=(2, 2)), "depth is 8 and stages \\(2, 2\\); expected one"),
        (lambda: ResNet(1, 10, stages=(2, 0)), "stages must be .*each at least 1, got \\(2, 0\\)"),
        (lambda: ResNet(1, 10, stages=()), "stages must be .*got \\(\\)"),
        (lambda: ResNet(1, 10, shortcut="C"), "shortcut must be one of .*got 'C'"),
        (lambda: ResNet(1, 10, stem="large"), "stem must be one of cifar, imagenet, got 'large'"),
        (lambda: resnet50(1, 8, 10, stem="large"), "stem must be one of cifar, imagenet, got 'large'"),
        (lambda: VGG16(1, 8, 10, hidden=-1), "hidden must be .*got -1"),
        (lambda: SimpleViT(1, 8, 10, width=18), "width must be a multiple of 4, at least 8.*got 18"),
        (lambda: SimpleViT(1, 9, 10), "patch must divide the image size 9, got patch 4"),
        (lambda: make_model("vit-b", 1, 8, 10), "patch must divide the image size 8, got patch 16"),
        (lambda: make_model("lenet", 1, 8, 10), "model must be one of mlp, .*got 'lenet'"),
        (lambda: ViT(1, 8, 10, width=30, heads=4), "width 30 and heads 4"),
        (lambda: ViT(1, 8, 10, patch=3), "patch must divide the image size 8, got patch 3"),
        (lambda: ViT(1, 8, 10, pooling="max"), "pooling must be one of .*got 'max'"),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
