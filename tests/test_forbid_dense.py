"""forbid_dense raises wherever a dense weight is made, and lets a sparse training step be."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsekern.growth import GSE, SET, RigL, Static
from sparsekern.nn import SparseConv2d, SparseLinear
from sparsekern.sparsify import sparsify
from sparsekern.testing import DenseTensorError, forbid_dense

BATCH = 37  # prime, and no divisor of any size below


def mlp(density=0.05):
    model = nn.Sequential(nn.Linear(200, 300), nn.BatchNorm1d(300), nn.ReLU(), nn.Linear(300, 64), nn.Linear(64, 10))
    sparsify(model, density)
    return model


def cnn(density=0.1):
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    sparsify(model, density)
    return model


def transformer(density=0.1):
    layer = nn.TransformerEncoderLayer(48, 4, 96, 0.1, batch_first=True)
    model = nn.Sequential(nn.Linear(12, 48), nn.TransformerEncoder(layer, 2), nn.Linear(48, 10))
    sparsify(model, density)
    return model


MODELS = [(mlp, (200,)), (cnn, (3, 8, 8)), (transformer, (9, 12))]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-4, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-3),
    "adamw for loop": lambda p: torch.optim.AdamW(p, 1e-3, foreach=False),
    "adamw fused": lambda p: torch.optim.AdamW(p, 1e-3, fused=True),
}


def step(model, optimizer, growth, shape):
    output = model(torch.randn(BATCH, *shape))
    loss = F.cross_entropy(output.flatten(0, -2), torch.zeros(output.shape[:-1].numel(), dtype=torch.long))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    growth.step()


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize(("make", "shape"), MODELS)
def test_a_sparse_training_step_passes(make, shape, optimizer_name, tmp_path):
    model = make()
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    growth = Static(model, optimizer)
    with forbid_dense(model):
        for _ in range(2):
            step(model, optimizer, growth, shape)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
        states = torch.load(tmp_path / "state.pt")
        model.load_state_dict(states[0])
        optimizer.load_state_dict(states[1])
        copy.deepcopy(model).eval()(torch.randn(BATCH, *shape))


@pytest.mark.parametrize("sampler", ["uniform", "grabo", "graest"])
@pytest.mark.parametrize(("make", "shape"), MODELS)
def test_a_gse_update_passes(make, shape, sampler):
    model = make()
    optimizer = torch.optim.Adam(model.parameters())
    growth = GSE(model, optimizer, sampler, interval=2, end=100)
    before = [layer.row_indices.clone() for layer in model.modules() if hasattr(layer, "row_indices")]
    with forbid_dense(model):
        for _ in range(3):
            step(model, optimizer, growth, shape)
        growth.load_state_dict(growth.state_dict())
    after = [layer.row_indices for layer in model.modules() if hasattr(layer, "row_indices")]
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(("make", "shape"), MODELS)
def test_a_set_update_passes(make, shape):
    model = make()
    optimizer = torch.optim.Adam(model.parameters())
    growth = SET(model, optimizer, interval=2, end=100)
    with forbid_dense(model):
        for _ in range(3):
            step(model, optimizer, growth, shape)


@pytest.mark.parametrize(("make", "shape"), MODELS)
def test_rigl_s_dense_gradient_raises(make, shape):
    model = make()
    optimizer = torch.optim.Adam(model.parameters())
    growth = RigL(model, optimizer, interval=2, end=100)
    with forbid_dense(model):
        step(model, optimizer, growth, shape)
        with pytest.raises(DenseTensorError):
            step(model, optimizer, growth, shape)


def to_dense(model):
    model[0].to_dense()


def materialise_flat(model):
    layer = model[0]
    rows, cols = (index.long() for index in layer.pattern.edges())
    torch.zeros(200 * 300).index_put((rows * 200 + cols,), layer.weight.detach())


def a_transposed_dense_mask(model):
    torch.zeros(200, 300, dtype=torch.bool)


def a_larger_tensor(model):
    torch.empty(301, 201)


def a_slice_of_a_larger_tensor(model):
    torch.randn(201, 301)[:2, :2].clone()


def an_optimizer_like_step(model):
    weight = model[0].weight
    with torch.no_grad():
        torch.sparse_coo_tensor(
            torch.stack([index.long() for index in model[0].pattern.edges()]), weight, (300, 200)
        ).to_dense().mul_(0.1)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    "action",
    [
        to_dense,
        materialise_flat,
        a_transposed_dense_mask,
        a_larger_tensor,
        a_slice_of_a_larger_tensor,
        an_optimizer_like_step,
    ],
)
def test_dense_tensors_raise(action):
    model = mlp()
    with forbid_dense(model):
        model(torch.randn(BATCH, 200))
        with pytest.raises(DenseTensorError, match=r"aten::\w+.* made a .*sparse layer '0'"):
            action(model)
    action(model)  # and only under the context


class DenseForward(nn.Module):
    """A sparse layer done wrong: its forward multiplies by the dense weight."""

    def __init__(self):
        super().__init__()
        self.layer = SparseLinear(200, 300, density=0.05)

    def forward(self, x):
        return F.linear(x, self.layer.to_dense(), self.layer.bias)


class _DenseBackward(torch.autograd.Function):
    """Its forward is sparse, its weight gradient dense, then picked."""

    @staticmethod
    def forward(ctx, x, weight, layer):
        ctx.save_for_backward(x)
        ctx.layer = layer
        return torch.ops.sparsekern.linear(x, weight, None, *layer.pattern.tensors())

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        rows, cols = (index.long() for index in ctx.layer.pattern.edges())
        return None, (grad.t() @ x)[rows, cols], None


class DenseBackward(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = SparseLinear(200, 300, density=0.05)

    def forward(self, x):
        return _DenseBackward.apply(x, self.layer.weight, self.layer)


def test_a_dense_forward_raises():
    model = DenseForward()
    with forbid_dense(model), pytest.raises(DenseTensorError, match="sparse layer 'layer'"):
        model(torch.randn(BATCH, 200))


def test_a_dense_backward_raises():
    model = DenseBackward()
    with forbid_dense(model):
        loss = model(torch.randn(BATCH, 200)).sum()
        with pytest.raises(DenseTensorError, match=r"aten::mm made a float32 tensor of shape \(300, 200\)"):
            loss.backward()


@pytest.mark.parametrize("shape", [(32, 16, 3, 3), (16, 3, 3, 32), (32, 144), (144, 32), (32, 16, 9), (2, 16, 144)])
def test_a_convolution_s_dense_forms_raise(shape):
    model = SparseConv2d(32, 32, 3, groups=2, density=0.05)
    with forbid_dense(model), pytest.raises(DenseTensorError, match="sparse layer 'the model'"):
        torch.zeros(shape)


def test_what_a_custom_operator_makes_inside_is_seen():
    @torch.library.custom_op("sparsekern_tests::row_sums", mutates_args=())
    def row_sums(weight: torch.Tensor) -> torch.Tensor:
        return torch.zeros(300, 200).sum(1) + weight.sum()

    model = mlp()
    with forbid_dense(model), pytest.raises(DenseTensorError, match=r"aten::zeros.*\(300, 200\)"):
        row_sums(model[0].weight.detach())


@pytest.mark.filterwarnings("ignore:Sparse")
def test_views_and_meta_tensors_and_sparse_tensors_pass():
    model = mlp()
    bias = model[0].bias.detach()
    with forbid_dense(model):
        bias[:, None].expand(300, 200)
        torch.empty(300, 200, device="meta")
        rows, cols = (index.long() for index in model[0].pattern.edges())
        torch.sparse_coo_tensor(torch.stack([rows, cols]), model[0].weight.detach(), (300, 200))
        model[0].to_sparse_csr()


def test_shapes_of_the_model_s_own_dense_parameters_pass():
    model = nn.ModuleDict({"sparse": SparseLinear(200, 300, density=0.05), "dense": nn.Embedding(300, 200)})
    with forbid_dense(model):
        torch.zeros_like(model["dense"].weight)


def test_activations_larger_than_a_weight_pass_and_other_large_tensors_do_not():
    model = mlp()
    with forbid_dense(model):
        model(torch.randn(BATCH, 200))
        torch.zeros(5 * BATCH, 400)
        torch.zeros(400, BATCH, 5)
        with pytest.raises(DenseTensorError, match="no smaller than its dense weight"):
            torch.zeros(5 * BATCH + 1, 401)
    with forbid_dense(model, batch_sizes=(41,)):
        torch.zeros(400, 41, 5)
        with pytest.raises(DenseTensorError, match=r"batch sizes seen: \[41\]"):
            torch.zeros(400, 5 * BATCH)


def test_the_dense_shape_raises_however_small_the_layer_and_whatever_the_batch():
    model = nn.ModuleDict({"large": SparseLinear(200, 300, density=0.05), "small": SparseLinear(20, 10, density=0.5)})
    with forbid_dense(model, batch_sizes=(10,)):
        torch.zeros(60)
        for shape in [(20, 10), (10, 1, 20)]:
            with pytest.raises(DenseTensorError, match="sparse layer 'small'"):
                torch.zeros(shape)
        with pytest.raises(DenseTensorError, match=r"has its dense size: sparse layer 'large'"):
            torch.zeros(60_000)
        torch.zeros(60_010)


def test_memory_counts_not_the_part_of_it_that_shows():
    with forbid_dense(mlp(), batch_sizes=(BATCH,)), pytest.raises(DenseTensorError, match=r"\(2, 2\) \(60,002 elem"):
        torch.empty_strided((2, 2), (60_000, 1))


def test_hooks_and_mode_are_gone_afterwards():
    model = mlp()
    with forbid_dense(model):
        pass
    assert not any(module._forward_pre_hooks for module in model.modules())
    torch.zeros(300, 200)


def test_a_model_without_sparse_layers_is_an_error():
    with pytest.raises(ValueError, match="no sparse layer"), forbid_dense(nn.Linear(3, 3)):
        pass
