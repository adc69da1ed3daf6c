"""SparseLinear and SparseConv2d beside their dense twins, and in the hands of the rest of torch."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparsekern as sk

CONVS = [
    dict(),
    dict(stride=2, padding=1),
    dict(stride=5, padding=(2, 0)),
    dict(stride=(2, 3), padding=(0, 2), dilation=(2, 1)),
    dict(groups=4),
    dict(groups=2, bias=False, dilation=2, padding="same"),
    dict(padding="valid"),
    dict(kernel_size=(2, 4), padding="same"),
    dict(kernel_size=2, padding="same", padding_mode="reflect"),
    dict(padding=2, padding_mode="circular"),
    dict(padding=(1, 2), padding_mode="replicate", stride=2),
    dict(out_channels=4, groups=4),
    dict(kernel_size=1),
    dict(kernel_size=1, stride=3),
]


def dense_twin(layer):
    """The dense module with the same values."""
    if isinstance(layer, sk.SparseLinear):
        twin = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, dtype=layer.weight.dtype)
    else:
        sizes = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding
        rest = layer.dilation, layer.groups, layer.bias is not None, layer.padding_mode
        twin = nn.Conv2d(*sizes, *rest, dtype=layer.weight.dtype)
    with torch.no_grad():
        twin.weight.copy_(layer.to_dense())
        if layer.bias is not None:
            twin.bias.copy_(layer.bias)
    return twin


def assert_twins(layer, x, tolerance=2e-5):
    """Same output, input gradient and gradients at the edges."""
    twin = dense_twin(layer)
    layer.zero_grad()
    mine, other = x.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    y, expected = layer(mine), twin(other)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, atol=tolerance, rtol=tolerance)
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(mine.grad, other.grad, atol=tolerance, rtol=tolerance)
    at_edges = twin.weight.grad.reshape(layer.matrix_shape)[layer.pattern.edges()]
    torch.testing.assert_close(layer.weight.grad, at_edges, atol=10 * tolerance, rtol=10 * tolerance)
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, twin.bias.grad, atol=10 * tolerance, rtol=10 * tolerance)


def make_conv(**changes):
    arguments = dict(in_channels=4, out_channels=8, kernel_size=3, density=0.4) | changes
    return sk.SparseConv2d(**arguments)


def make_layers():
    return [sk.SparseLinear(12, 9, density=0.3), make_conv()]


def example(layer):
    return torch.randn(3, 12) if isinstance(layer, sk.SparseLinear) else torch.randn(3, 4, 9, 8)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 3, 12), (2, 1, 3, 12), (0, 12), (2, 0, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_its_dense_twin(shape, bias, default_device):
    assert_twins(sk.SparseLinear(12, 9, bias, density=0.3), torch.randn(shape))


@pytest.mark.parametrize("arguments", CONVS, ids=str)
def test_conv2d_equals_its_dense_twin(arguments, default_device):
    layer = make_conv(**arguments)
    assert_twins(layer, torch.randn(3, 4, 11, 10))
    assert_twins(layer, torch.randn(4, 11, 10))
    assert_twins(layer, torch.randn(2, 4, 10, 11).to(memory_format=torch.channels_last))
    assert layer(torch.randn(0, 4, 11, 10)).shape[0] == 0


@pytest.mark.parametrize("density", [0.01, 0.5, 1.0])
def test_densities(density, default_device):
    for layer in (sk.SparseLinear(40, 30, density=density), make_conv(density=density)):
        rows, columns = layer.matrix_shape
        assert layer.nnz == max(1, round(density * rows * columns)) == layer.weight.numel()
        assert layer.density == layer.nnz / (rows * columns)
        assert f"nnz={layer.nnz}" in repr(layer)
    assert_twins(sk.SparseLinear(40, 30, density=density), torch.randn(5, 40))


def test_strided_inputs(default_device):
    layer = sk.SparseLinear(12, 9, density=0.3)
    x = torch.randn(12, 7)
    torch.testing.assert_close(layer(x.t()), layer(x.t().contiguous()))
    x = torch.randn(4, 5, 24)[:, ::2, ::2]
    torch.testing.assert_close(layer(x), layer(x.contiguous()))
    conv = make_conv()
    x = torch.randn(3, 8, 9, 16)[:, ::2, :, ::2]
    torch.testing.assert_close(conv(x), conv(x.contiguous()))


def test_initial_values_follow_the_fan_in(default_device):
    layer = sk.SparseLinear(400, 300, density=0.1)
    fan_in = layer.pattern.fan_in()
    rows, _ = layer.pattern.edges()
    bound = (3.0 / fan_in.clamp(min=1)).sqrt()
    assert (layer.weight.detach().abs() <= bound[rows] * (1 + 1e-6)).all()
    assert (layer.bias.detach().abs() <= bound * (1 + 1e-6)).all()
    scaled = layer.weight.detach() / bound[rows]
    assert abs(scaled.var().item() - 1 / 3) < 0.02
    before = layer.weight.detach().clone()
    layer.reset_parameters()
    assert not torch.equal(before, layer.weight)


def test_same_seed_same_layer():
    first, second = (sk.SparseLinear(30, 20, density=0.2, generator=torch.Generator().manual_seed(7)) for _ in "ab")
    assert first.pattern.equal(second.pattern)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype, default_device):
    for layer in make_layers():
        x = example(layer)
        exact = layer(x)
        cast = copy.deepcopy(layer).to(dtype)
        assert cast.weight.dtype == dtype
        assert cast.row_indices.dtype == torch.int32
        y = cast(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), exact, atol=0.1, rtol=0.1)
        y.sum().backward()
        assert cast.weight.grad.dtype == dtype
    assert sk.SparseLinear(5, 5, density=0.5, dtype=dtype).weight.dtype == dtype


def test_from_dense_keeps_the_largest(default_device):
    dense = nn.Linear(10, 6)
    layer = sk.SparseLinear.from_dense(dense, density=0.25)
    assert layer.nnz == 15
    kept = dense.weight.detach().flatten().abs().sort(descending=True).values[:15]
    torch.testing.assert_close(layer.weight.detach().abs().sort(descending=True).values, kept)
    assert torch.equal(layer.bias, dense.bias)
    mask = layer.to_dense() != 0
    torch.testing.assert_close(layer.to_dense(), dense.weight * mask)


def test_from_dense_with_a_mask(default_device):
    dense = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False, padding_mode="reflect").double().eval()
    dense.weight.requires_grad_(False)
    mask = torch.rand_like(dense.weight) < 0.3
    layer = sk.SparseConv2d.from_dense(dense, mask=mask)
    assert layer.nnz == int(mask.sum())
    assert not layer.training
    assert not layer.weight.requires_grad
    torch.testing.assert_close(layer.to_dense(), dense.weight * mask)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    dense.weight.mul_(mask)
    torch.testing.assert_close(layer(x), dense(x))
    empty = sk.SparseLinear.from_dense(nn.Linear(4, 3), mask=torch.zeros(3, 4))
    torch.testing.assert_close(empty(torch.randn(2, 4)), empty.bias.expand(2, -1))


def test_to_dense_and_to_sparse_csr_are_the_same_matrix():
    for layer in make_layers():
        csr = layer.to_sparse_csr()
        torch.testing.assert_close(csr.to_dense(), layer.to_dense().reshape(layer.matrix_shape))
        csr.values().sum().backward()
        assert torch.equal(layer.weight.grad, torch.ones_like(layer.weight))
        layer.weight.grad = None
        layer.to_dense().square().sum().backward()
        torch.testing.assert_close(layer.weight.grad, 2 * layer.weight.detach())


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_steps_as_on_a_masked_dense_layer(name, default_device):
    """A sparse layer's values move as the dense twin's do at the same places when the rest is held at zero."""
    layer = sk.SparseLinear(12, 9, bias=False, density=0.3, dtype=torch.float64)
    twin = dense_twin(layer)
    mask = layer.pattern.to_mask()
    x, target = torch.randn(20, 12, dtype=torch.float64), torch.randn(20, 9, dtype=torch.float64)
    for model, optimizer in ((m, OPTIMIZERS[name](m.parameters())) for m in (layer, twin)):
        for _ in range(5):

            def closure(model=model, optimizer=optimizer):
                optimizer.zero_grad()
                loss = F.mse_loss(model(x), target)
                loss.backward()
                if model is twin:
                    twin.weight.grad.mul_(mask)
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                return loss

            optimizer.step(closure)
    torch.testing.assert_close(layer.to_dense(), twin.weight.detach() * mask)


def test_ema(default_device):
    layer = sk.SparseLinear(12, 9, density=0.3)
    ema = torch.optim.swa_utils.AveragedModel(layer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    ema.update_parameters(layer)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(1.0)
    ema.update_parameters(layer)
    torch.testing.assert_close(ema.module.weight, before + 0.5)
    assert ema(torch.randn(2, 12)).shape == (2, 9)


def test_copies_are_independent():
    for layer in make_layers():
        x = example(layer)
        layer.watcher = lambda *_: None
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(twin(x), layer(x))
            assert twin.watcher is None
            twin.set_pattern(sk.Pattern.random(twin.matrix_shape, twin.nnz))
            assert not twin.pattern.equal(layer.pattern)


def test_whole_model_through_torch_save():
    for layer in make_layers():
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        x = example(layer)
        assert torch.equal(loaded(x), layer(x))


def test_state_dict_holds_values_and_topology_alone():
    layer = sk.SparseLinear(12, 9, density=0.3)
    assert list(layer.state_dict()) == ["weight", "bias", "ccol_indices", "row_indices"]


@pytest.mark.parametrize("density", [0.3, 0.1, 0.9])
def test_load_another_topology_and_nnz(density):
    for make in (lambda d: sk.SparseLinear(12, 9, density=d), lambda d: make_conv(density=d)):
        source, target = make(density), make(0.3)
        parameter = target.weight
        x = example(source)
        target(x)
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        assert not target.load_state_dict(torch.load(file)).missing_keys
        assert target.weight is parameter
        assert target.nnz == source.nnz
        assert torch.equal(target(x), source(x))
        optimizer = torch.optim.Adam(target.parameters())
        target(x).sum().backward()
        optimizer.step()


def test_a_bad_checkpoint_is_refused_and_changes_nothing():
    layer = sk.SparseLinear(12, 9, density=0.3)
    x = torch.randn(2, 12)
    before = layer(x)
    good = {name: tensor.clone() for name, tensor in layer.state_dict().items()}

    def spoiled(name, change):
        state = {key: tensor.clone() for key, tensor in good.items()}
        state[name] = change(state[name])
        return state

    def set_at(place, value):
        def change(tensor):
            tensor[place] = value
            return tensor

        return change

    for state, word in (
        (spoiled("row_indices", set_at(0, 9)), "row_indices"),
        (spoiled("row_indices", set_at(0, -1)), "row_indices"),
        (spoiled("ccol_indices", set_at(-1, 10**6)), "ccol_indices"),
        (spoiled("ccol_indices", set_at(3, 10**6)), "ccol_indices"),
        (spoiled("row_indices", lambda t: t[:-1]), "ccol_indices"),
        (spoiled("weight", lambda t: t[:-1]), "weight"),
        (spoiled("row_indices", lambda t: t.float()), "row_indices"),
        (sk.SparseLinear(13, 9, density=0.3).state_dict(), "ccol_indices"),
    ):
        with pytest.raises(RuntimeError, match=word):
            layer.load_state_dict(state)
        assert torch.equal(layer(x), before)
    missing = {name: tensor for name, tensor in good.items() if name != "row_indices"}
    with pytest.raises(RuntimeError, match="row_indices"):
        layer.load_state_dict(missing)


def test_meta_layers():
    for make in (
        lambda **k: sk.SparseLinear(12, 9, density=0.3, **k),
        lambda **k: make_conv(**k),
    ):
        with torch.device("meta"):
            by_context = make()
        layer = make(device="meta")
        for meta in (layer, by_context):
            assert meta.weight.is_meta
            assert meta.row_indices.is_meta
        real = make()
        assert layer(example(real).to("meta")).shape == real(example(real)).shape
        layer = layer.to_empty(device="cpu")
        with pytest.raises(ValueError):
            layer(example(real))
        layer.reset_parameters()
        layer.pattern.validate()
        assert layer(example(real)).isfinite().all()
        by_context.load_state_dict(real.state_dict(), assign=True)
        x = example(real)
        assert torch.equal(by_context(x), real(x))


def test_set_pattern():
    layer = sk.SparseLinear(12, 9, density=0.3)
    pattern = sk.Pattern.random((9, 12), 50)
    values = torch.randn(50)
    layer.set_pattern(pattern, values)
    assert torch.equal(layer.weight, values)
    assert_twins(layer, torch.randn(4, 12))
    with pytest.raises(ValueError, match="pattern has shape"):
        layer.set_pattern(sk.Pattern.random((12, 9), 50))
    with pytest.raises(ValueError, match="weight has shape"):
        layer.set_pattern(pattern, values[1:])
    mine = layer.pattern
    layer.set_pattern(mine)
    assert layer.pattern.equal(pattern)


def test_the_layer_owns_its_indices():
    """Two layers made from one pattern do not share it."""
    pattern = sk.Pattern.random((9, 12), 30)
    first, second = (sk.SparseLinear(12, 9, pattern=pattern) for _ in "ab")
    first.set_pattern(sk.Pattern.random((9, 12), 30))
    assert second.pattern.equal(pattern)


def test_watcher_sees_input_and_output_gradient():
    for layer in make_layers():
        seen = []
        layer.watcher = lambda *args, seen=seen: seen.append(args)
        x = example(layer)
        y = layer(x)
        weights = torch.randn_like(y)
        (y * weights).sum().backward()
        ((who, kept, grad),) = seen
        assert who is layer
        assert torch.equal(kept, x)
        torch.testing.assert_close(grad, weights)
        everywhere = sk.Pattern.from_mask(torch.ones(layer.matrix_shape, dtype=torch.bool))
        scores = layer.weight_grad_at(grad, kept, everywhere)
        dense = layer.dense_weight_grad(grad, kept)
        torch.testing.assert_close(scores, dense[everywhere.edges()], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(dense[layer.pattern.edges()], layer.weight.grad, atol=1e-4, rtol=1e-4)
        with torch.no_grad():
            layer(x)
        assert len(seen) == 1


def test_changed_indices_raise():
    layer = sk.SparseLinear(12, 9, density=0.3)
    layer(torch.randn(2, 12))
    layer.row_indices[0] = 100
    with pytest.raises(ValueError, match="row_indices"):
        layer(torch.randn(2, 12))


@pytest.mark.parametrize("density", [0, 0.0, -0.1, 1.01, float("nan"), None, "half", True])
def test_bad_density(density):
    with pytest.raises(ValueError, match="density"):
        sk.SparseLinear(4, 4, density=density)


@pytest.mark.parametrize(
    "arguments",
    [
        dict(groups=3),
        dict(groups=0),
        dict(kernel_size=0),
        dict(stride=0),
        dict(padding=-1),
        dict(dilation=0),
        dict(padding="full"),
        dict(padding="same", stride=2),
        dict(padding_mode="mirror"),
        dict(kernel_size=(3, 3, 3)),
        dict(in_channels=0),
    ],
    ids=str,
)
def test_bad_conv2d_arguments(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        make_conv(**arguments)


def test_bad_inputs():
    with pytest.raises(ValueError, match="in_features is 0"):
        sk.SparseLinear(0, 4, density=0.5)
    layer, conv = make_layers()
    with pytest.raises(ValueError, match="input has shape"):
        layer(torch.randn(3, 11))
    with pytest.raises(ValueError, match="input has shape"):
        conv(torch.randn(3, 5, 9, 8))
    with pytest.raises(ValueError, match="input has shape"):
        conv(torch.randn(4, 9))
    with pytest.raises(ValueError, match="smaller than the kernel"):
        conv(torch.randn(1, 4, 2, 2))
    with pytest.raises(TypeError, match="dtype"):
        layer(torch.randn(3, 12).double())
    with pytest.raises(ValueError, match="pattern has shape"):
        sk.SparseLinear(12, 9, pattern=sk.Pattern.random((12, 9), 5))
    with pytest.raises(ValueError, match="one of the two"):
        sk.SparseLinear(12, 9, density=0.5, pattern=sk.Pattern.random((9, 12), 5))
    with pytest.raises(ValueError, match="exactly one"):
        sk.SparseLinear.from_dense(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="mask has shape"):
        sk.SparseLinear.from_dense(nn.Linear(3, 4), mask=torch.ones(3, 4))
