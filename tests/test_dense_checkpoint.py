import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import sparsekern
from sparsekern import SparseLinear
from sparsekern.cli import main
from sparsekern.export import to_dense
from sparsekern.growth import find_sparse_layers
from sparsekern.masks import load_dense, magnitude, random_mask
from sparsekern.models import make_model

pytestmark = pytest.mark.usefixtures("one_thread")


def dense_model(seed=0):
    torch.manual_seed(seed)
    return make_model("resnet", 1, 8, 10, width=4, depth=8)


def assert_holds(model, dense):
    """That each sparse layer has the dense one's values at its edges, and all else is the dense model's."""
    state = dense.state_dict()
    for name, layer in find_sparse_layers(model).items():
        weight = state[f"{name}.weight"]
        assert torch.equal(layer.to_dense(), weight * layer.pattern.to_mask().view(weight.shape))
    others = {
        name: value for name, value in model.state_dict().items() if name in state and value.shape == state[name].shape
    }
    assert others
    assert all(torch.equal(value, state[name]) for name, value in others.items())


def saved(kind, state, folder):
    if kind == "mapping":
        return state
    path = folder / ("dense.safetensors" if kind == "safetensors" else "dense.pt")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"epoch": 3, "state_dict": state} if kind == "wrapped" else state, path)
    return path


@pytest.mark.parametrize("kind", ["mapping", "safetensors", "saved", "wrapped"])
def test_a_sparse_model_keeps_its_edges(kind, tmp_path):
    dense, model = dense_model(1), dense_model(2)
    sparsekern.sparsify(model, density=0.2)
    before = {name: layer.pattern.clone() for name, layer in find_sparse_layers(model).items()}
    load_dense(model, saved(kind, dense.state_dict(), tmp_path))
    assert_holds(model, dense)
    assert all(layer.pattern.equal(before[name]) for name, layer in find_sparse_layers(model).items())


@pytest.mark.parametrize("begin", ["dense", "sparse", "meta"])
def test_masks_give_the_edges(begin):
    dense = dense_model(1)
    masks = magnitude(dense, 0.1)
    if begin == "meta":
        with torch.device("meta"):
            model = dense_model()
    else:
        model = dense_model(2)
    if begin == "sparse":
        sparsekern.sparsify(model, density=0.3)
    load_dense(model, dense.state_dict(), masks, device="cpu" if begin == "meta" else None)
    layers = find_sparse_layers(model)
    assert all(layers[name].pattern.equal(pattern) for name, pattern in masks.items())
    assert_holds(model, dense)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 6, "vdim": 10}, {"add_bias_kv": True}])
def test_attention(options):
    dense = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2, **options)})
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.normal_()
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2, **options)})
    sparsekern.sparsify(model, density=1.0)
    load_dense(model, dense.state_dict())
    state = dense.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in to_dense(model).state_dict().items())


def test_attention_that_is_not_packed():
    def decoder():
        return nn.ModuleDict({"layer": nn.TransformerDecoderLayer(8, 2, 16)})

    dense, model = decoder(), decoder()
    sparsekern.sparsify(model, density=1.0)
    load_dense(model, dense.state_dict())
    state = dense.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in to_dense(model).state_dict().items())


def test_transposed_weights():
    model = nn.Sequential(SparseLinear(5, 3, density=0.5), SparseLinear(3, 3, density=0.5))
    state = {
        "0.weight": torch.randn(5, 3),
        "0.bias": torch.randn(3),
        "1.weight": torch.randn(3, 3),
        "1.bias": torch.ones(3),
    }
    with pytest.raises(ValueError, match=r"'0\.weight' has shape \(5, 3\); expected \(3, 5\) \(transposed"):
        load_dense(model, state)
    load_dense(model, state, transposed="*")
    for layer, name in zip(model, ("0.weight", "1.weight"), strict=True):
        assert torch.equal(layer.to_dense(), state[name].t() * layer.pattern.to_mask())
    with pytest.raises(ValueError, match="'head', which matches no sparse layer"):
        load_dense(model, state, transposed=("*", "head"))


def test_what_does_not_fit(tmp_path):
    dense, model = dense_model(1), dense_model(2)
    sparsekern.sparsify(model, density=0.2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = dense.state_dict()
    name = next(name for name in state if name.endswith("weight") and state[name].dim() == 4)
    for wrong, problem in (
        ({key: value for key, value in state.items() if key != name}, f"has no '{name}'"),
        ({f"module.{key}": value for key, value in state.items()}, ", and has 'module."),
        ({**state, "extra.weight": torch.zeros(1)}, "'extra.weight', which the model does not have"),
        ({**state, name: state[name][:1]}, f"'{name}' has shape"),
    ):
        with pytest.raises(ValueError, match=problem):
            load_dense(model, wrong)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_dense(model, tmp_path / "gone.pt")
    for damaged in ("dense.pt", "dense.safetensors"):
        (tmp_path / damaged).write_bytes(b"nothing of the kind")
        with pytest.raises(ValueError, match=r"checkpoint .*dense"):
            load_dense(model, tmp_path / damaged)
    other = random_mask(make_model("mlp", 1, 8, 10), 0.1)
    with pytest.raises(ValueError, match="the masks"):
        load_dense(model, state, other)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_run_begins_with_them(tmp_path, capsys):
    pytest.importorskip("sklearn")
    from sparsekern.commands.train import new_config
    from sparsekern.training.run import build

    save_file(dense_model(5).state_dict(), tmp_path / "dense.safetensors")
    network = ["--model", "resnet", "--width", "4", "--depth", "8", "--threads", "1"]
    options = [*network, "--weights", str(tmp_path / "dense.safetensors")]
    for more in ([], ["--dense"]):
        assert_holds(build(new_config([*options, *more])).model, dense_model(5))
    command = ["train", *options, "--epochs", "1", "--no-plots", "--output", str(tmp_path / "run")]
    assert main([*command, "--stop-after", "2"]) == 0
    (tmp_path / "dense.safetensors").unlink()
    assert main(["train", "--resume", str(tmp_path / "run"), "--stop-after", "3"]) == 0
    capsys.readouterr()
    assert main([*command[:-1], str(tmp_path / "other")]) == 1
    assert "no checkpoint at" in capsys.readouterr().err
