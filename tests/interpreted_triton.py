"""Run by test_triton.py in the interpreter: that what kernels read or write outside of their tensors is refused."""

import pytest
import torch
import triton
import triton.language as tl
import triton_bounds

triton_bounds.watch()


@triton.jit
def copy_kernel(out, x, size, room, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    part = tl.load(x + place, mask=place < size, other=0.0)
    tl.store(out + place, part, mask=place < room)


@triton.jit
def add_kernel(out, size, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.atomic_add(out + place, 1.0, mask=place < size)


def test_reads_and_writes_outside_of_tensors():
    # Views of one storage: what a kernel is not given is outside of its tensors, though there is memory.
    x, out = torch.arange(16.0)[4:12], torch.zeros(32)[8:16]
    copy_kernel[(1,)](out, x, 8, 8, SIZE=16)
    assert torch.equal(out, x)
    with pytest.raises(Exception, match="reads 1 elements outside"):
        copy_kernel[(1,)](out, x, 9, 8, SIZE=16)
    with pytest.raises(Exception, match="writes 2 elements outside"):
        copy_kernel[(1,)](out, x, 8, 10, SIZE=16)
    with pytest.raises(Exception, match="reads 8 elements outside"):
        copy_kernel[(1,)](out, x[:0], 8, 8, SIZE=16)
    with pytest.raises(Exception, match="reads 3 elements outside"):
        copy_kernel[(1,)](out, x[::2], 10, 8, SIZE=16)
    add_kernel[(1,)](out, 8, SIZE=16)
    assert torch.equal(out, x + 1)
    with pytest.raises(Exception, match="changes 8 elements outside"):
        add_kernel[(1,)](out, 16, SIZE=16)
