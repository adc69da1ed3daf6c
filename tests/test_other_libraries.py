"""sparsify on torchvision's, timm's and transformers' own models, where these are installed. Nothing is downloaded."""

import importlib
import os

import pytest
import torch
from torch import nn

from sparsekern.counting import count_model
from sparsekern.growth import GSE
from sparsekern.nn import SparseLayer, SparseMultiheadAttention
from sparsekern.sparsify import sparsify
from sparsekern.testing import forbid_dense

BATCH = 7  # no divisor of the layers' sizes below
_libraries = []  # their definitions last as long as the objects


@pytest.fixture(scope="module")
def torchvision():
    """torchvision, whose wheel for CUDA lacks two operators' schemas on a torch for the CPU."""
    try:
        return importlib.import_module("torchvision")
    except ImportError:
        pytest.skip("torchvision is not installed")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
    return importlib.import_module("torchvision")


@pytest.fixture(scope="module")
def timm(torchvision):
    return pytest.importorskip("timm")


@pytest.fixture(scope="module")
def transformers():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("transformers")


def check(model, forward, tmp_path, sampler="grabo"):
    """Sparse, two steps with a topology update under forbid_dense, saved and loaded, counted. Returns the table."""
    before = sum(parameter.numel() for parameter in model.parameters())
    table = sparsify(model, 0.1)
    assert table.nnz == round(0.1 * table.size)
    kept = sum(parameter.numel() for parameter in model.parameters())
    assert kept == before - table.size + table.nnz
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    growth = GSE(model, optimizer, sampler, interval=2, end=100)
    replaced = 0
    with forbid_dense(model, batch_sizes=(BATCH,)):
        for _ in range(2):
            loss = forward(model).float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            replaced += sum(update.replaced for update in growth.step())
        torch.save(model.state_dict(), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt")
        model.load_state_dict(state)
    assert replaced > 0
    assert all(p.grad is not None for m in model.modules() if isinstance(m, SparseLayer) for p in [m.weight])
    model.eval()
    with torch.no_grad():
        torch.manual_seed(0)
        first = forward(model)
        for layer in model.modules():
            if isinstance(layer, SparseLayer):
                layer.reset_parameters()
        torch.manual_seed(0)
        assert not torch.equal(forward(model), first)
        model.load_state_dict(state)
        torch.manual_seed(0)
        assert torch.equal(forward(model), first)
    return table


def images(size):
    return lambda model: model(torch.randn(BATCH, 3, size, size))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit_b_16", "convnext_tiny"])
def test_torchvision(torchvision, name, tmp_path):
    options = {"image_size": 32} if name == "vit_b_16" else {}
    model = getattr(torchvision.models, name)(weights=None, num_classes=11, **options)
    table = check(model, images(32), tmp_path)
    assert all(row.reason == "is no nn.Linear or nn.Conv2d" for row in table.kept)
    if name == "vit_b_16":
        assert sum(isinstance(module, SparseMultiheadAttention) for module in model.modules()) == 12
        assert len(table.replaced) == 2 + 4 * 12
    assert count_model(model, (3, 32, 32)).flops > 0


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "vgg16_bn", "vit_b_16"])
def test_ours_have_the_sizes_of_torchvisions(torchvision, name):
    from sparsekern.models import make_model

    ours = {"mobilenet_v2": "mobilenetv2", "vgg16_bn": "vgg16", "vit_b_16": "vit-b"}.get(name, name)
    with torch.device("meta"):
        theirs, mine = getattr(torchvision.models, name)(weights=None), make_model(ours, 3, 224, 1000)
    assert sum(p.numel() for p in mine.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert sum(b.numel() for b in mine.buffers()) == sum(b.numel() for b in theirs.buffers())
    mine, theirs = (count_model(model, (3, 224, 224)) for model in (mine, theirs))
    assert mine.flops == theirs.flops


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg16_bn", "resnet50"])
def test_ours_compute_what_torchvisions_do(torchvision, name):
    from sparsekern.models import make_model

    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(weights=None, num_classes=11)
    ours = {"mobilenet_v2": "mobilenetv2", "vgg16_bn": "vgg16"}.get(name, name)
    mine = make_model(ours, 3, 64, 11, stem="imagenet")
    parameters = list(zip(mine.parameters(), theirs.parameters(), strict=True))
    assert all(one.shape == other.shape for one, other in parameters)
    with torch.no_grad():
        for to, given in parameters:
            to.copy_(given)
        x = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(mine.eval()(x), theirs.eval()(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_timm(timm, name, tmp_path):
    size = 64 if "swin" in name else 32
    options = {"img_size": size} if name.startswith(("vit", "swin")) else {}
    model = timm.create_model(name, pretrained=False, num_classes=11, **options)
    # The others' statistics of a depthwise convolution's inputs are as many as its weights.
    table = check(model, images(size), tmp_path, "uniform" if name.startswith("convnext") else "grabo")
    assert all(row.reason == "is no nn.Linear or nn.Conv2d" for row in table.kept)
    if name.startswith("vit"):
        assert model.blocks[0].attn.qkv.weight.dim() == 1


def tokens(transformers, cls, config):
    ids = torch.randint(config.vocab_size, (BATCH, 9))
    return getattr(transformers, cls)(config), lambda model: model(input_ids=ids).logits


TINY = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 48, "intermediate_size": 96}


def test_transformers_bert(transformers, tmp_path):
    config = transformers.BertConfig(vocab_size=101, **TINY)
    model, forward = tokens(transformers, "BertForMaskedLM", config)
    table = check(model, forward, tmp_path)
    assert len(table.replaced) == 6 * 2 + 1
    assert any("shares its weight" in row.reason for row in table.kept)


def test_transformers_llama(transformers, tmp_path):
    config = transformers.LlamaConfig(vocab_size=101, num_key_value_heads=2, **TINY)
    model, forward = tokens(transformers, "LlamaForCausalLM", config)
    assert len(check(model, forward, tmp_path).replaced) == 7 * 2 + 1


def test_transformers_vit(transformers, tmp_path):
    config = transformers.ViTConfig(image_size=16, patch_size=4, num_labels=11, **TINY)
    model = transformers.ViTForImageClassification(config)
    table = check(model, lambda m: m(pixel_values=torch.randn(BATCH, 3, 16, 16)).logits, tmp_path)
    assert len(table.replaced) == 6 * 2 + 2


def test_transformers_gpt2(transformers, tmp_path):
    config = transformers.GPT2Config(vocab_size=101, n_positions=32, n_embd=48, n_layer=2, n_head=4)
    model, forward = tokens(transformers, "GPT2LMHeadModel", config)
    table = check(model, forward, tmp_path)
    assert [row.kind for row in table.replaced] == ["Conv1D"] * 8
    assert table.replaced[0].shape == (144, 48)
    assert model.generate(torch.tensor([[1, 2]]), max_new_tokens=3, do_sample=False).shape == (1, 5)


def test_a_kept_gpt2_computes_the_same(transformers):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=101, n_positions=32, n_embd=48, n_layer=2, n_head=4)
    model, forward = tokens(transformers, "GPT2LMHeadModel", config)
    model.eval()
    with torch.no_grad():
        expected = forward(model)
        sparsify(model, 1.0, keep_weights=True)
        torch.testing.assert_close(forward(model), expected, atol=1e-5, rtol=1e-5)


def test_torchvisions_vit_computes_the_same_when_all_weights_are_kept(torchvision):
    torch.manual_seed(0)
    vit = torchvision.models.VisionTransformer(32, 8, 2, 4, 48, 96, num_classes=11).eval()
    nn.init.normal_(vit.heads.head.weight)
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = vit(x)
        sparsify(vit, 1.0, keep_weights=True)
        torch.testing.assert_close(vit(x), expected, atol=1e-5, rtol=1e-5)


def test_torchvisions_swin_reads_weights_past_their_layers_which_is_an_error_and_can_be_excluded(torchvision):
    swin = torchvision.models.swin_transformer.SwinTransformer([4, 4], 24, [1, 1], [2, 2], [2, 2], num_classes=11)
    x = torch.randn(2, 3, 32, 32)
    sparsify(swin, 0.2, exclude="*.attn")
    swin(x).sum().backward()
    sparsify(swin, 0.2)
    with pytest.raises(RuntimeError):
        swin(x)


def test_a_transformers_model_on_the_meta_device_says_what_it_lacks(transformers):
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=101, **TINY))
    with pytest.raises(ValueError, match=r"no reset_parameters.*\n(.*\n)*.*LlamaRMSNorm\): weight"):
        sparsify(model, 0.1, device="cpu")
