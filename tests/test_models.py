import pytest
import torch
import torch.nn.functional as F

from sparsekern.models import MLP, ResNet, ViT

CASES = {
    "mlp": lambda: MLP(1, 8, 10, width=32, depth=2),
    "resnet-A": lambda: ResNet(1, 10, width=4, depth=8, shortcut="A"),
    "resnet-B": lambda: ResNet(1, 10, width=4, depth=14, shortcut="B"),
    "resnet-stages": lambda: ResNet(1, 10, width=4, stages=(1, 2, 1), shortcut="B"),
    "vit-mean": lambda: ViT(1, 8, 10, width=16, depth=2, heads=2, patch=2, pooling="mean"),
    "vit-cls": lambda: ViT(1, 8, 10, width=16, depth=1, heads=4, patch=4, pooling="cls"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [1, 5])
def test_forward_and_backward(name, batch):
    torch.manual_seed(0)
    model = CASES[name]()
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
        (lambda: ViT(1, 8, 10, width=30, heads=4), "width 30 and heads 4"),
        (lambda: ViT(1, 8, 10, patch=3), "patch must divide the image size 8, got patch 3"),
        (lambda: ViT(1, 8, 10, pooling="max"), "pooling must be one of .*got 'max'"),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
