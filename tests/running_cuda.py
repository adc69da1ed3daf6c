"""Run by test_cuda.py in a process of its own: the CUDA kernels against their twins, thread by thread on the CPU."""

import pytest
import torch

from sparsekern.backends.cuda.extension import kernels


@pytest.fixture(params=[0, 1])
def queue(request):
    """Of a GPU that is not there, whose threads run in one order or in another."""
    kernels().emulate(order_seed=request.param)
    return kernels().Queue(0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (33, 70), (64, 5), (0, 3)])
def test_transpose(queue, shape, dtype):
    rows, columns = shape
    padded = -(-rows // 16) * 16
    wide = torch.randn(rows, columns + 3).to(dtype)
    out = torch.full((columns, padded), float("nan"), dtype=dtype)
    kernels().transpose(
        queue, wide.data_ptr(), rows, columns, wide.stride(0), out.data_ptr(), padded, wide.element_size()
    )
    assert torch.equal(out[:, :rows], wide[:, :columns].t())
    assert not out[:, rows:].any()
