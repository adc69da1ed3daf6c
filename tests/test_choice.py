"""Which backend computes a product, and how to say which."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

import sparsekern
from sparsekern import SparseConv2d, SparseLinear
from sparsekern.backends import choice, cpu, cuda, reference

has_triton = find_spec("triton") is not None


@pytest.fixture
def counted(monkeypatch):
    """The calls of the reference's products, by name."""
    calls = []
    twins = {name: getattr(reference, name) for name in ("linear", "linear_backward", "conv2d", "conv2d_backward")}

    def counting(name):
        def product(*args):
            calls.append(name)
            return twins[name](*args)

        return product

    for name in twins:
        monkeypatch.setattr(reference, name, counting(name))
    return calls


def test_tensors_on_the_cpu_go_through_its_kernels(counted):
    layer = SparseLinear(6, 5, density=0.5)
    layer(torch.rand(3, 6)).sum().backward()
    assert sparsekern.backend_of(layer) == sparsekern.backend_of(torch.rand(3)) == "cpu"
    assert counted == []
    assert choice.cpu_products.linear is cpu.linear


def test_another_backend_within_the_block(counted):
    linear, conv = SparseLinear(6, 5, density=0.5), SparseConv2d(3, 4, 3, density=0.5)
    x, images = torch.rand(3, 6, requires_grad=True), torch.rand(2, 3, 5, 5, requires_grad=True)
    expected = linear(x), conv(images)
    with sparsekern.backend("reference"):
        assert sparsekern.backend_of(linear) == sparsekern.backend_of(conv) == "reference"
        results = linear(x), conv(images)
        results[0].sum().backward()
        results[1].sum().backward()
        with torch.no_grad():
            linear(x)
            linear(x)  # what the CPU's short way would take
    assert counted == ["linear", "conv2d", "linear_backward", "conv2d_backward", "linear", "linear"]
    for y, twin in zip(results, expected, strict=True):
        torch.testing.assert_close(y, twin)
    linear(x)
    assert len(counted) == 6


def test_blocks_nest_and_end_with_an_error():
    layer = SparseLinear(6, 5, density=0.5)
    with sparsekern.backend("reference"):
        with sparsekern.backend("auto"):
            assert sparsekern.backend_of(layer) == "cpu"
        with pytest.raises(ValueError, match="input has shape"), sparsekern.backend("auto"):
            layer(torch.rand(3, 7))
        assert sparsekern.backend_of(layer) == "reference"
    assert sparsekern.backend_of(layer) == "cpu"
    assert choice.linear_direct is cpu.linear_direct


def test_wrong_names():
    with pytest.raises(ValueError, match="name is 'gpu'; expected one of auto, reference, cpu, triton, cuda"):
        sparsekern.backend("gpu").__enter__()
    with pytest.raises(TypeError, match="served is a str; expected a SparseLinear, a SparseConv2d or a tensor"):
        sparsekern.backend_of("cpu")
    with pytest.raises(ValueError, match="no backend computes products on device 'meta'"):
        sparsekern.backend_of(torch.empty(3, device="meta"))


def test_what_other_devices_are_given(monkeypatch):
    device = torch.device("cuda")
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    monkeypatch.setattr(choice.cuda, "is_built", lambda: False)
    assert choice.chosen("linear", torch.float32, device) == "reference"
    monkeypatch.setattr(choice, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    # A device of its own each: what one can do is asked once.
    assert choice.chosen("linear", torch.float16, torch.device("cuda", 90)) == "triton"
    assert choice.chosen("linear", torch.float64, torch.device("cuda", 90)) == "reference"
    assert choice.chosen("conv2d", torch.float16, torch.device("cuda", 90)) == "triton"
    assert choice.chosen("conv2d", torch.float64, torch.device("cuda", 90)) == "reference"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choice.chosen("linear", torch.float16, torch.device("cuda", 75)) == "reference"
    assert choice.chosen("conv2d", torch.float16, torch.device("cuda", 75)) == "reference"
    with sparsekern.backend("cpu"):
        with pytest.raises(ValueError, match="'cpu' cannot take tensors on cuda"):
            choice.chosen("linear", torch.float32, device)
        with pytest.raises(ValueError, match="'cpu' cannot take tensors on cuda"):
            choice.cuda_products.linear(None)


def test_the_cuda_kernels_where_triton_is_not(monkeypatch):
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    monkeypatch.setattr(choice.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    # Devices that no other test asks about: what one can do is asked once.
    with sparsekern.backend("auto"):
        assert choice.cuda_products.linear is cuda.linear
        assert choice.chosen("linear", torch.float16, torch.device("cuda", 91)) == "cuda"
    with sparsekern.backend("cuda"):
        assert choice.chosen("linear", torch.bfloat16, torch.device("cuda", 91)) == "cuda"
        assert choice.chosen("linear", torch.float64, torch.device("cuda", 91)) in ("triton", "reference")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choice.chosen("linear", torch.float16, torch.device("cuda", 76)) == "reference"


@pytest.mark.parametrize("with_triton", [True, False])
def test_matrices_that_the_cuda_kernels_leave_to_others(monkeypatch, with_triton):
    monkeypatch.setattr(choice.cuda, "is_built", lambda: True)
    monkeypatch.setattr(cuda.served, "find_spec", lambda name: name if with_triton else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    device = torch.device("cuda", 92)
    with sparsekern.backend("cuda"):
        for extent, expected in (
            (cuda.Extent(4096, 1024, 4096), "cuda"),
            (cuda.Extent(4096, 1024, 4095), "triton" if with_triton else "cuda"),
            (cuda.Extent(1, 2**31, 2**30), "triton" if with_triton else "reference"),
        ):
            assert choice.chosen("linear", torch.bfloat16, device, extent) == expected


@pytest.mark.skipif(cuda.is_emulated(), reason="the CUDA kernels run on the CPU here")
def test_the_cuda_kernels_take_no_tensors_on_the_cpu(monkeypatch):
    layer = SparseLinear(4, 3, density=0.5)
    monkeypatch.setattr(choice.cuda, "is_built", lambda: True)
    with sparsekern.backend("cuda"):
        for ask in (lambda: layer(torch.randn(2, 4)), lambda: sparsekern.backend_of(layer)):
            with pytest.raises(ValueError, match="'cuda' cannot take tensors on the CPU; expected 'auto', 'cpu'"):
                ask()


def test_cuda_kernels_that_were_not_built(monkeypatch):
    monkeypatch.setattr(choice.cuda, "is_built", lambda: False)
    with pytest.raises(ImportError, match=r"this build has no CUDA kernels: .*SPARSEKERN_CUDA=1"):
        sparsekern.backend("cuda").__enter__()


@pytest.mark.skipif(not has_triton, reason="triton is not installed")
def test_triton_refuses_tensors_on_the_cpu_without_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    layer = SparseLinear(4, 3, density=0.5)
    refusal = r"'triton' cannot take tensors on the CPU.*TRITON_INTERPRET=1"
    with sparsekern.backend("triton"):
        with pytest.raises(ValueError, match=refusal):
            layer(torch.randn(2, 4))
        with pytest.raises(ValueError, match=refusal), torch.no_grad():
            layer(torch.randn(2, 4))
        with pytest.raises(ValueError, match=refusal):
            sparsekern.backend_of(layer)


@pytest.mark.skipif(has_triton, reason="triton is installed")
def test_triton_that_is_not_installed():
    with pytest.raises(ImportError, match="not installed: pip install"):
        sparsekern.backend("triton").__enter__()


def imported(variable, code=""):
    environment = {**os.environ, choice.VARIABLE: variable}
    command = [sys.executable, "-c", f"import sparsekern; {code}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_environment_variable():
    process = imported("reference", "print(sparsekern.backend_of(sparsekern.SparseLinear(3, 3, density=1.0)))")
    assert process.stdout == "reference\n", process.stderr
    error = imported("fast").stderr
    assert "ValueError: SPARSEKERN_BACKEND is 'fast'; expected one of auto, reference, cpu, triton, cuda" in error
