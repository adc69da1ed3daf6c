import os
import re

import pytest
import torch

from sparsekern import _C

DEVICES = ["cpu"]
if torch.cuda.is_available():
    DEVICES.append(pytest.param("cuda", marks=pytest.mark.gpu))
# What the Python of a GPU machine may lack. What needs one of these is skipped there, and says so.
OPTIONAL = re.compile(r"ModuleNotFoundError: No module named '(hypothesis|psutil|rich|safetensors|tyro)\b")

# Few tests that take minutes each: where files are dealt to processes, at the end all but one would wait for them.
LONGEST = ("test_cuda", "test_triton")


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: runs on a GPU, where there is one")


@pytest.hookimpl(hookwrapper=True)
def pytest_collection_modifyitems(items):
    """Marks tests and puts the longest first; of those selected, leaves the ones that .ci/gpu.py gives this process."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    for item in items:
        if "on_the_gpu" in item.name:  # in a process of its own, which a mark would not reach
            item.add_marker(pytest.mark.gpu)
    yield
    number, processes = map(int, os.environ.get("SPARSEKERN_TESTS", "1/1").split("/"))
    items[:] = items[number - 1 :: processes][int(os.environ.get("SPARSEKERN_TESTS_DONE", "0")) :]


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    outcome = yield
    skip_without_package(outcome.get_result(), str(collector.path))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    outcome = yield
    report = outcome.get_result()
    skip_without_package(report, str(item.path))
    if report.outcome == "failed" and gpu_is_lost():
        item.session.shouldfail = f"the GPU's context is lost in {item.nodeid}"


def gpu_is_lost():
    """Whether a kernel's fault has left this process without a GPU: whatever ran there now would fail."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def skip_without_package(report, path):
    missing = OPTIONAL.search(str(report.longrepr)) if report.outcome == "failed" else None
    if missing:
        report.outcome, report.longrepr = "skipped", (path, 0, f"Skipped: {missing[1]} is not installed")


@pytest.fixture(params=DEVICES)
def device(request):
    """The CPU, and a GPU where there is one."""
    return torch.device(request.param)


@pytest.fixture
def default_device(device):
    """The same; what a test makes without saying where lies there. Dense float32 convolutions are exact."""
    if device.type == "cpu":
        yield device
        return
    with device, torch.backends.cudnn.flags(enabled=False):
        yield device


@pytest.fixture
def poisoned_memory():
    """torch.empty hands out NaN, so a kernel that leaves part of a result unwritten shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def large_gpu():
    """An emulated GPU as it is by default, before a test and after: for those that emulate another."""
    from gpu_backend import emulate

    emulate()
    yield
    emulate()


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
