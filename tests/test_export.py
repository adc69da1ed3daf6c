import subprocess
import sys
import warnings
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file
from test_training import make_config
from torch import nn

import sparsekern
from sparsekern.cli import main
from sparsekern.export import export_program, to_csr, to_dense, write_onnx, write_program
from sparsekern.models import make_model
from sparsekern.nn import SparseLayer
from sparsekern.training.folder import RunFolder
from sparsekern.training.load import load_trained
from sparsekern.training.run import build

NETWORKS = {
    "mlp": {"width": 40},
    "resnet": {"width": 4, "depth": 8},
    "vit": {"width": 16, "depth": 2, "heads": 2},
}
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta"),
]
needs_onnx = pytest.mark.skipif(
    not (find_spec("onnxruntime") and find_spec("onnxscript")),
    reason="onnx, onnxscript or onnxruntime is not installed",
)


def make(name, seed=0):
    """A sparse network, its norms with statistics and an affine map as after training; and images for it."""
    torch.manual_seed(seed)
    model = make_model(name, 1, 8, 10, **NETWORKS[name])
    sparsekern.sparsify(model, density=0.2)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model.eval(), torch.randn(5, 1, 8, 8)


def outputs(model, *inputs):
    with torch.no_grad():
        return model(*inputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_dense_copy_computes_the_same(name):
    model, images = make(name)
    dense = to_dense(model)
    assert not any(isinstance(module, SparseLayer) for module in dense.modules())
    assert any(isinstance(module, SparseLayer) for module in model.modules())
    torch.testing.assert_close(outputs(dense, images), outputs(model, images), atol=1e-5, rtol=1e-5)
    plain = make_model(name, 1, 8, 10, **NETWORKS[name]).eval()
    plain.load_state_dict(dense.state_dict())
    torch.testing.assert_close(outputs(plain, images), outputs(model, images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_csr_copy_computes_the_same(name, tmp_path):
    model, images = make(name)
    csr = to_csr(model)
    assert any(parameter.layout == torch.sparse_csr for parameter in csr.parameters())
    torch.testing.assert_close(outputs(csr, images), outputs(model, images), atol=1e-5, rtol=1e-5)
    torch.save(csr.state_dict(), tmp_path / "csr.pt")
    plain = make_model(name, 1, 8, 10, **NETWORKS[name]).eval()
    plain.load_state_dict(torch.load(tmp_path / "csr.pt"), assign=True)
    torch.testing.assert_close(outputs(plain, images), outputs(model, images), atol=1e-5, rtol=1e-5)


def test_the_copy_keeps_modes_grads_and_shared_layers():
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Conv1d(1, 1, 1))
    sparsekern.sparsify(model, density=0.5)
    model[0].weight.requires_grad_(False)
    model.eval()
    dense = to_dense(model)
    assert dense[0] is dense[2]
    assert dense[3] is not model[3]
    assert not dense[0].training
    assert not dense[0].weight.requires_grad
    assert dense[0].bias.requires_grad
    assert torch.equal(dense[0].weight, model[0].to_dense())
    with torch.no_grad():
        dense[0].bias.add_(1)
    assert not torch.equal(dense[0].bias, model[0].bias)


@pytest.mark.parametrize("geometry", [{}, {"stride": 2, "padding": 1, "groups": 2}, {"padding_mode": "reflect"}])
def test_convolutions_keep_their_geometry(geometry):
    conv = nn.Conv2d(4, 6, 3, **({"padding": 2, "dilation": 2} | geometry))
    model = nn.Sequential(conv)
    sparsekern.sparsify(model, density=0.3)
    images = torch.randn(2, 4, 9, 11)
    torch.testing.assert_close(outputs(to_dense(model), images), outputs(model, images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"kdim": 6, "vdim": 10}, {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True}],
)
def test_attention_becomes_torchs(options):
    holder = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2, **options)})
    sparsekern.sparsify(holder, density=0.4)
    dense = to_dense(holder)["attention"].eval()
    sparse = holder["attention"].eval()
    assert type(dense) is nn.MultiheadAttention
    query = torch.randn(3, 3, 8)
    key, value = torch.randn(3, 3, options.get("kdim", 8)), torch.randn(3, 3, options.get("vdim", 8))
    for mine, theirs in zip(outputs(dense, query, key, value), outputs(sparse, query, key, value), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_decoder_attention_that_is_not_packed():
    layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
    model = nn.ModuleDict({"layer": layer}).eval()
    sparsekern.sparsify(model, density=0.4)
    target, memory = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    dense = to_dense(model)
    assert isinstance(dense["layer"].multihead_attn, nn.MultiheadAttention)
    expected = outputs(model["layer"], target, memory)
    torch.testing.assert_close(outputs(dense["layer"], target, memory), expected, atol=1e-5, rtol=1e-5)


def run_alone(path, images, expected, before=""):
    """Runs a saved program in a process that has torch alone."""
    torch.save((images, expected), path.with_suffix(".io"))
    code = f"""
import sys
{before}
import torch
images, expected = torch.load({str(path.with_suffix(".io"))!r})
found = torch.export.load({str(path)!r}).module()(images)
torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
assert {bool(before)} or "sparsekern" not in sys.modules
"""
    process = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("name", NETWORKS)
def test_programs(name, tmp_path):
    model, images = make(name)
    model.train()
    expected = outputs(model.eval(), images)
    model.train()
    sizes = []
    for sparse in (False, True):
        path = tmp_path / f"{sparse}.pt2"
        write_program(path, export_program(model, images[: 1 + sparse], sparse=sparse))
        assert all(module.training for module in model.modules())
        sizes.append(path.stat().st_size)
        if name == "vit":  # the one with all of the library's operators
            run_alone(path, images, expected, "import sparsekern" if sparse else "")
        found = torch.export.load(path).module()(images)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_program_of_sparse_operators_is_small(tmp_path):
    model = nn.Sequential(nn.Linear(400, 400))
    sparsekern.sparsify(model, density=0.01)
    for sparse in (False, True):
        write_program(tmp_path / f"{sparse}.pt2", export_program(model, torch.zeros(2, 400), sparse=sparse))
    assert (tmp_path / "True.pt2").stat().st_size < 0.2 * (tmp_path / "False.pt2").stat().st_size


def test_examples_that_are_no_batch():
    model, images = make("mlp")
    with pytest.raises(ValueError, match="at least one"):
        export_program(model, ())
    with pytest.raises(ValueError, match=r"\[3, 5\]"):
        export_program(model, (images, images[:3]))
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        to_dense(images)


@needs_onnx
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx(name, tmp_path):
    import onnxruntime

    model, images = make(name)
    path = tmp_path / "network.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_onnx(path, model, images[:2])
    assert [each.name for each in tmp_path.iterdir()] == ["network.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(["output_0"], {"input_0": images.numpy()})
    torch.testing.assert_close(torch.as_tensor(found), outputs(model, images), atol=1e-5, rtol=1e-5)


def test_onnx_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("sparsekern.export.onnx_file.find_spec", lambda name: None)
    model, images = make("mlp")
    with pytest.raises(ImportError, match="pip install"):
        write_onnx(tmp_path / "network.onnx", model, images)


def test_the_command(tmp_path, capsys, monkeypatch):
    pytest.importorskip("sklearn")
    run = tmp_path / "run"
    quick = ["--model", "mlp", "--width", "30", "--epochs", "1", "--no-plots", "--threads", "1"]
    assert main(["train", *quick, "--output", str(run)]) == 0
    # No data set is needed to leave.
    monkeypatch.setattr("sparsekern.training.trainer.build_data", lambda config: pytest.fail("the data set was read"))
    model, (channels, height, width) = load_trained(run)
    images = torch.randn(3, channels, height, width)
    expected = outputs(model, images)
    plain = make_model("mlp", channels, height, 10, width=30).eval()
    assert main(["export", str(run)]) == 0
    assert "model.safetensors" in capsys.readouterr().out
    plain.load_state_dict(load_file(run / "model.safetensors"))
    torch.testing.assert_close(outputs(plain, images), expected, atol=1e-5, rtol=1e-5)
    assert main(["export", str(run), "--format", "csr"]) == 0
    plain.load_state_dict(torch.load(run / "model.pt"), assign=True)
    torch.testing.assert_close(outputs(plain, images), expected, atol=1e-5, rtol=1e-5)
    assert main(["export", str(run), "--format", "pt2", "--output", str(tmp_path / "new" / "own.pt2")]) == 0
    found = torch.export.load(tmp_path / "new" / "own.pt2").module()(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for arguments, problem in (
        ([str(run)], "exists"),
        ([str(run), "--format", "csr", "--sparse"], "--sparse goes with"),
        ([str(tmp_path / "gone")], "no run"),
    ):
        assert main(["export", *arguments]) == 1
        assert problem in capsys.readouterr().err


@needs_onnx
def test_convolutions_in_float64_leave_as_onnx_in_float32(tmp_path):
    import onnxruntime

    config = make_config("resnet", run={"dtype": "float64", "output": tmp_path / "run"})
    RunFolder.create(config).save(build(config))
    run = tmp_path / "run"
    assert main(["export", str(run), "--format", "onnx"]) == 0
    model, image = load_trained(run)
    images = torch.randn(3, *image, dtype=torch.float64)
    (found,) = onnxruntime.InferenceSession(run / "model.onnx").run(None, {"input_0": images.float().numpy()})
    torch.testing.assert_close(torch.from_numpy(found).double(), outputs(model, images), atol=1e-5, rtol=1e-5)
