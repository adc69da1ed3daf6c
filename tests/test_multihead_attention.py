"""SparseMultiheadAttention against torch's own, with the same weights, in everything that forward can be asked."""

import copy
import pickle

import pytest
import torch
from torch import nn

from sparsekern.nn import SparseMultiheadAttention
from sparsekern.sparsify import sparsify
from sparsekern.testing import forbid_dense

EMBED, HEADS, L, S, N = 12, 3, 5, 7, 4

CONSTRUCTIONS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False, "batch_first": True},
    "other features": {"kdim": 8, "vdim": 10},
    "extra tokens": {"add_bias_kv": True, "add_zero_attn": True},
    "zero token": {"add_zero_attn": True, "batch_first": True},
}


def twins(**options):
    """A dense attention with random biases, and the sparse one that keeps all of its weights."""
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(EMBED, HEADS, **options)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.normal_(std=0.4)
    return dense, SparseMultiheadAttention.from_dense(dense, 1.0)


def inputs(dense, crossing, batched=True):
    query = torch.randn(L, EMBED) if not batched else torch.randn(L, N, EMBED)
    keys = S if crossing else L
    if not crossing:
        tensors = (query,) * 3
    elif batched:
        tensors = query, torch.randn(keys, N, dense.kdim), torch.randn(keys, N, dense.vdim)
    else:
        tensors = query, torch.randn(keys, dense.kdim), torch.randn(keys, dense.vdim)
    if batched and dense.batch_first:
        swapped = {id(x): x.transpose(0, 1).contiguous() for x in tensors}
        tensors = tuple(swapped[id(x)] for x in tensors)
    return tensors, keys


def assert_same(dense, sparse, tensors, **options):
    expected, mine = dense(*tensors, **options), sparse(*tensors, **options)
    torch.testing.assert_close(mine[0], expected[0], atol=1e-5, rtol=1e-4)
    assert (mine[1] is None) == (expected[1] is None)
    if expected[1] is not None:
        torch.testing.assert_close(mine[1], expected[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("mask", [None, "bool", "float", "each head", "padding", "both", "causal"])
@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_results_are_torchs(name, mask, need_weights):
    dense, sparse = twins(**CONSTRUCTIONS[name])
    for crossing in (True, False) if dense._qkv_same_embed_dim else (True,):
        tensors, keys = inputs(dense, crossing)
        options = {"need_weights": need_weights}
        hidden = torch.rand(L, keys) < 0.3
        hidden[:, 0] = False
        padding = torch.zeros(N, keys, dtype=torch.bool)
        padding[1, 2:] = True
        if mask == "bool":
            options["attn_mask"] = hidden
        elif mask == "float":
            options["attn_mask"] = torch.randn(L, keys)
        elif mask == "each head":
            options |= {"attn_mask": torch.randn(N * HEADS, L, keys), "average_attn_weights": False}
        elif mask == "padding":
            options["key_padding_mask"] = padding
        elif mask == "both":
            options |= {"attn_mask": hidden, "key_padding_mask": padding}
        elif mask == "causal":
            options |= {"attn_mask": torch.ones(L, keys, dtype=torch.bool).triu(1), "is_causal": True}
            if not need_weights and (dense.add_zero_attn or dense.bias_k is not None):
                # torch takes the hint for the extra tokens' columns too, against the mask.
                options["is_causal"] = False
        assert_same(dense, sparse, tensors, **options)
        assert_same(dense.eval(), sparse.eval(), tensors, **options)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_the_hint_of_a_causal_mask_changes_nothing(name, padded):
    """torch's own attention leaves out the extra tokens under it."""
    dense, sparse = twins(**CONSTRUCTIONS[name])
    tensors, keys = inputs(dense, crossing="kdim" in CONSTRUCTIONS[name])
    options = {"attn_mask": torch.ones(L, keys, dtype=torch.bool).triu(1), "need_weights": False}
    if padded:
        options["key_padding_mask"] = torch.zeros(N, keys, dtype=torch.bool)
        options["key_padding_mask"][1, 2:] = True
    plain, hinted = (sparse(*tensors, is_causal=hint, **options)[0] for hint in (False, True))
    torch.testing.assert_close(hinted, plain, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("crossing", [False, True])
def test_without_a_batch(crossing, need_weights):
    dense, sparse = twins(batch_first=True)
    tensors, keys = inputs(dense, crossing, batched=False)
    for options in ({}, {"key_padding_mask": torch.arange(keys) > 3}, {"attn_mask": torch.randn(HEADS, L, keys)}):
        assert_same(dense, sparse, tensors, need_weights=need_weights, **options)


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_gradients_are_torchs(name):
    dense, sparse = twins(**CONSTRUCTIONS[name])
    (query, key, value), _ = inputs(dense, crossing=True)
    grads = []
    for module in (dense, sparse):
        leaves = [x.clone().requires_grad_() for x in (query, key, value)]
        module(*leaves, need_weights=False)[0].square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(grads[1], grads[0], atol=1e-4, rtol=1e-4)
    if dense.out_proj.bias is not None:
        torch.testing.assert_close(sparse.out_proj.bias.grad, dense.out_proj.bias.grad)
    weights = dense.in_proj_weight if sparse.in_proj is not None else dense.k_proj_weight
    layer = sparse.in_proj if sparse.in_proj is not None else sparse.k_proj
    rows, columns = layer.pattern.edges()
    torch.testing.assert_close(layer.weight.grad, weights.grad[rows, columns], atol=1e-4, rtol=1e-4)


def test_dropout_falls_on_the_weights_in_training_only():
    _, sparse = twins(dropout=0.5, batch_first=True)
    x = torch.randn(N, 40, EMBED)
    _, weights = sparse(x, x, x, average_attn_weights=False)
    assert 0.4 < (weights == 0).float().mean() < 0.6
    assert not torch.equal(sparse(x, x, x, need_weights=False)[0], sparse(x, x, x, need_weights=False)[0])
    sparse.eval()
    assert torch.equal(sparse(x, x, x, need_weights=False)[0], sparse(x, x, x, need_weights=False)[0])


def test_what_torchs_encoder_layers_read():
    dense, sparse = twins(batch_first=True)
    for name in ("embed_dim", "num_heads", "head_dim", "kdim", "vdim", "batch_first", "dropout", "add_zero_attn"):
        assert getattr(sparse, name) == getattr(dense, name)
    assert sparse._qkv_same_embed_dim
    assert torch.equal(sparse.in_proj_bias, dense.in_proj_bias)
    dense, sparse = twins(kdim=8, bias=True)
    assert torch.equal(sparse.in_proj_bias, dense.in_proj_bias)
    assert twins(kdim=8, bias=False)[1].in_proj_bias is None


def test_state_dict_copies_and_pickles():
    _, sparse = twins(add_bias_kv=True)
    other = SparseMultiheadAttention(EMBED, HEADS, add_bias_kv=True, density=0.5)
    assert {key.split(".")[0] for key in sparse.state_dict()} == {"in_proj", "out_proj", "bias_k", "bias_v"}
    other.load_state_dict(sparse.state_dict())
    x = torch.randn(L, N, EMBED)
    for twin in (other, copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        assert torch.equal(twin(x, x, x)[0], sparse(x, x, x)[0])


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_torchs_transformer_gives_the_same_when_all_weights_are_kept(first, masked):
    torch.manual_seed(1)
    dense = nn.Transformer(EMBED, HEADS, 2, 2, 16, 0.0, batch_first=True, norm_first=first)
    sparse = copy.deepcopy(dense)
    table = sparsify(sparse, 1.0, keep_weights=True)
    assert not table.kept
    source, target = torch.randn(N, S, EMBED), torch.randn(N, L, EMBED)
    options = {}
    if masked:
        padding = torch.arange(S).expand(N, S) > 4
        options = {
            "src_key_padding_mask": padding,
            "memory_key_padding_mask": padding,
            "tgt_mask": nn.Transformer.generate_square_subsequent_mask(L),
            "tgt_is_causal": True,
        }
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            mine, expected = sparse(source, target, **options), dense(source, target, **options)
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-4)
        dense.eval()
        sparse.eval()


def test_a_training_step_makes_nothing_dense():
    model = nn.Transformer(48, 4, 1, 1, 96, batch_first=True)
    sparsify(model, 0.05)
    optimizer = torch.optim.AdamW(model.parameters())
    with forbid_dense(model):
        model(torch.randn(37, 9, 48), torch.randn(37, 5, 48)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"embed_dim": 10, "num_heads": 3, "density": 0.5},
            "embed_dim is 10; expected a positive multiple of num_heads",
        ),
        ({"embed_dim": 8, "num_heads": 2}, "density is None and projections are missing"),
        ({"embed_dim": 8, "num_heads": 2, "density": 0.5, "kdim": 4, "packed": True}, "packed is True, with kdim 4"),
        ({"embed_dim": 8, "num_heads": 2, "projections": {}}, "projections are {}; expected {'in_proj': \\(24, 8\\)"),
    ],
)
def test_bad_constructions(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparseMultiheadAttention(**arguments)


def test_bad_masks():
    sparse = SparseMultiheadAttention(EMBED, HEADS, density=0.5)
    x = torch.randn(L, N, EMBED)
    for error, options, message in [
        (ValueError, {"is_causal": True}, "attn_mask, which is None"),
        (ValueError, {"attn_mask": torch.zeros(L, L + 1)}, r"attn_mask has shape \(5, 6\); expected \(5, 5\)"),
        (
            ValueError,
            {"key_padding_mask": torch.zeros(L, N)},
            r"key_padding_mask has shape \(5, 4\); expected \(4, 5\)",
        ),
        (TypeError, {"attn_mask": torch.zeros(L, L, dtype=torch.int64)}, "attn_mask has dtype torch.int64"),
    ]:
        with pytest.raises(error, match=message):
            sparse(x, x, x, **options)
