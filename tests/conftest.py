import pytest
import torch

from sparsekern import _C


@pytest.fixture
def poisoned_memory():
    """torch.empty hands out NaN, so a kernel that leaves part of a result unwritten shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=_C.available_isas())
def isa(request):
    """Each instruction set that this machine runs, in turn."""
    before = _C.isa()
    _C.use_isa(request.param)
    yield request.param
    _C.use_isa(before)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def one_thread():
    """For many small calls: waking threads for each would take most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
