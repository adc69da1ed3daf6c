import pytest
import torch

from sparsekern.models import MLP, ResNet, ViT

CASES = {
    "mlp": lambda: MLP(1, 8, 10, width=32, depth=2),
    "resnet-A": lambda: ResNet(1, 10, width=4, depth=8, shortcut="A"),
    "resnet-B": lambda: ResNet(1, 10, width=4, depth=14, shortcut="B"),
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
        (lambda: ResNet(1, 10, shortcut="C"), "shortcut must be one of .*got 'C'"),
        (lambda: ViT(1, 8, 10, width=30, heads=4), "width 30 and heads 4"),
        (lambda: ViT(1, 8, 10, patch=3), "patch must divide the image size 8, got patch 3"),
        (lambda: ViT(1, 8, 10, pooling="max"), "pooling must be one of .*got 'max'"),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
