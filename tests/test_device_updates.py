"""Topology updates as a GPU makes them: nothing is waited for but one transfer, and nothing is left half-done."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_growth
import torch
from no_wait import NoWait
from test_growth import METHODS, OPTIMIZERS, random_layer, update_violations
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

import sparsekern
from sparsekern import SparseConv2d, SparseLinear
from sparsekern.backends.topology import numbers, reference
from sparsekern.growth import find_sparse_layers
from sparsekern.pattern import Pattern
from sparsekern.testing import forbid_dense

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def by_torch():
    with sparsekern.backend("reference"):
        yield


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        SparseConv2d(3, 8, 3, padding=1, density=0.2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        SparseConv2d(8, 6, 3, stride=2, groups=2, density=0.3),
        nn.Flatten(),
        SparseLinear(54, 20, density=0.2),
        nn.Tanh(),
        SparseLinear(20, 12, density=1.0),
    )


def images(seed=0):
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def momentum(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


# -- the same training


@pytest.mark.parametrize("method", METHODS)
def test_hundreds_of_updates_move_every_value_with_its_edge(method, by_torch):
    rng = torch.Generator().manual_seed(list(METHODS).index(method))
    torch.manual_seed(0)
    violations, replaced = [], 0
    for make in (OPTIMIZERS["adam"][0], OPTIMIZERS["momentum"][0]):
        for _ in range(4):
            layer, x = random_layer(rng)
            made = make(layer.parameters())
            growth = METHODS[method](layer, made, alpha=0.5, interval=1, end=10**6)
            for _ in range(8):  # 5 methods * 2 optimizers * 4 layers * 8 updates
                found, count = update_violations(layer, made, growth, x)
                violations += found
                replaced += count
    assert violations == []
    assert replaced > 0


@pytest.mark.parametrize("method", ["uniform", "rigl"])
def test_the_largest_gradients_grow(method, by_torch):
    test_growth.test_the_largest_gradients_grow(method)


def test_what_the_extensions_updates_are_tested_for(by_torch, monkeypatch):
    test_growth.test_all_tied_scores_and_weights_are_defined()
    test_growth.test_full_and_frozen_and_excluded_layers_keep_their_edges()
    test_growth.test_a_layer_without_backward_is_left_alone()
    test_growth.test_accumulated_gradients_equal_one_large_batch()
    test_growth.test_a_shared_layer_is_one_layer_whose_uses_add_up()
    test_growth.test_a_moving_average_follows()
    test_growth.test_draws_differ_by_seed_update_and_layer()
    test_growth.test_gamma_sets_the_number_of_candidates()
    test_growth.test_updates_under_autocast("graest")
    test_growth.test_wide_pointers_and_double("grabo", monkeypatch, torch.device("cpu"))


@pytest.mark.parametrize("method", ["grabo", "set"])
def test_resumed_runs_are_bit_equal(method, by_torch):
    test_growth.test_resumed_runs_are_bit_equal_wherever_they_stopped(method)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("method", ["uniform", "grabo", "graest", "rigl"])
def test_a_layer_with_gradients_that_are_not_finite_is_left_alone(method, bad, by_torch):
    test_growth.test_gradients_that_are_not_finite_skip_the_layer_with_a_warning(method, bad)


def test_an_update_replaces_what_the_extension_replaces():
    """With all places as candidates nothing is left to chance."""
    states = []
    for backend in ("cpu", "reference"):
        with sparsekern.backend("cpu"):
            model = network()
            optimizer = momentum(model)
            growth = sparsekern.GSE(model, optimizer, "uniform", gamma=20, interval=1, end=100)
            model(images()).square().mean().backward()
            optimizer.step()
        with sparsekern.backend(backend):
            states.append((growth.step(), model.state_dict(), optimizer.state_dict()["state"]))
    assert states[0][0] == states[1][0]
    assert any(update.replaced for update in states[0][0])
    for mine, theirs in zip(states[0][1:], states[1][1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_a_large_layer_is_updated_in_memory_of_its_edges(by_torch):
    layer = SparseLinear(2**18, 2**18, bias=False, density=2**-21)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    growth = sparsekern.GSE(layer, optimizer, "grabo", interval=1, end=100)
    with forbid_dense(layer):
        layer(torch.rand(1, 2**18)).sum().backward()
        optimizer.step()
        (update,) = growth.step()
    assert update.replaced == update.asked > 0
    layer.pattern.validate()


# -- waiting for the device


def prepared(method):
    """A network before an armed step, and its moving average."""
    model = network()
    average = AveragedModel(model)
    optimizer = momentum(model)
    growth = METHODS[method](model, optimizer, interval=2, end=100, followers=[average])
    model(images()).square().mean().backward()
    optimizer.step()
    assert growth.step() == []
    optimizer.zero_grad()
    return model, optimizer, growth, average


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no devices without contents",
)
def test_a_device_is_waited_for_once_in_an_update():
    """On tensors without contents, where an operator whose result or size depends on these raises."""
    script = Path(__file__).with_name("absent_device.py")
    methods = ["grabo", "graest", "set", "rigl"]
    paths = os.pathsep.join((str(script.parents[1]), str(script.parent)))
    done = subprocess.run(
        [sys.executable, script, *methods], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == methods
    for seen in found.values():
        assert seen["transfers"] == [0, 1]
        assert seen["layers"] == [[name, 1, ""] for name in ("0", "3", "5", "7")]
        assert seen["operators"] > 1000


@pytest.mark.parametrize("method", METHODS)
def test_no_contents_are_read_in_an_update_but_at_its_end(method, by_torch, monkeypatch):
    transfers = []
    transferred = numbers.transferred
    monkeypatch.setattr(numbers, "transferred", lambda values: transfers.append(values.numel()) or transferred(values))
    model, optimizer, growth, _ = prepared(method)
    find_sparse_layers(model)["0"].pattern.ensure_valid()
    before = {name: layer.pattern.clone() for name, layer in growth.layers.items()}
    for name in ("check_compressed", "check_transpose"):  # known to be good since they were made
        monkeypatch.setattr(reference, name, None)
    transfers.clear()
    with NoWait():
        model(images(1)).square().mean().backward()
        optimizer.step()
        updates = growth.step()
    monkeypatch.undo()
    assert len(transfers) == 1
    assert [update.replaced > 0 for update in updates] == [True, True, True, False]  # the last is full
    for name, layer in growth.layers.items():
        layer.pattern.validate()
        assert layer.pattern.equal(before[name]) == (name == "7")
        assert all(follower[name].pattern.equal(layer.pattern) for follower in growth.followers)


def test_waiting_is_seen():
    x = torch.arange(4.0)
    with NoWait():
        for wait in (
            lambda: x[0].item(),
            lambda: bool(x.sum() > 1),
            lambda: x.nonzero(),
            lambda: x[x > 1],
            lambda: x.unique(),
            lambda: torch.equal(x, x),
            lambda: torch.repeat_interleave(x, x.long()),
            lambda: x.masked_select(x > 1),
            lambda: x.long().bincount(),
            lambda: x.to("meta"),
        ):
            with pytest.raises(AssertionError, match=r"waits for the device|copies between"):
                wait()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu_only_the_end_of_an_update_waits(method, monkeypatch):
    transferred = numbers.transferred

    def allowed(values):
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        try:
            return transferred(values)
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    monkeypatch.setattr(numbers, "transferred", allowed)
    # Linear layers alone: the plain torch products of other layers read sizes.
    torch.manual_seed(0)
    model = nn.Sequential(SparseLinear(192, 64, density=0.1), nn.ReLU(), SparseLinear(64, 32, density=0.2)).cuda()
    average = AveragedModel(model)
    optimizer = momentum(model)
    growth = METHODS[method](model, optimizer, interval=1, end=100, followers=[average])
    x = torch.randn(16, 192, device="cuda")
    for step in range(4):
        optimizer.zero_grad()
        try:
            if step:  # the first one compiles kernels and checks the indices that came from elsewhere
                torch.cuda.set_sync_debug_mode("error")
            model(x).square().mean().backward()
            optimizer.step()
            updates = growth.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(update.replaced == update.asked > 0 for update in updates)
        for layer in growth.layers.values():
            layer.pattern.validate()


# -- out of memory


class Scarce(TorchDispatchMode):
    """Has the n-th operator that allocates find no memory."""

    def __init__(self, last):
        super().__init__()
        self.left = last

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func._schema.is_mutable:
            if self.left == 0:
                raise torch.OutOfMemoryError("no memory left")
            self.left -= 1
        return func(*args, **(kwargs or {}))


def contents(model, optimizer, growth):
    """Of each layer, all that an update may change."""
    followed = growth.followers[0]
    return {
        name: [
            tensor.clone()
            for tensor in (
                *layer.pattern.tensors(),
                layer.weight.detach(),
                layer.weight.grad,
                optimizer.state[layer.weight]["momentum_buffer"],
                *followed[name].pattern.tensors(),
                followed[name].weight.detach(),
            )
        ]
        for name, layer in growth.layers.items()
    }


def test_an_update_without_memory_leaves_no_layer_half_done(by_torch):
    def at_update():
        torch.manual_seed(0)
        model = nn.Sequential(SparseLinear(9, 8, density=0.3), nn.Tanh(), SparseLinear(8, 7, density=0.4))
        average = AveragedModel(model)
        optimizer = momentum(model)
        generator = torch.Generator().manual_seed(1)
        options = {"interval": 1, "end": 100, "followers": [average], "generator": generator}
        growth = sparsekern.GSE(model, optimizer, "grabo", **options)
        model(torch.ones(2, 9)).square().sum().backward()
        optimizer.step()
        return model, optimizer, growth

    def same(one, other):
        return all(map(torch.equal, one, other))

    whole = at_update()
    before = contents(*whole)
    with Scarce(-1):
        updates = whole[2].step()
    after = contents(*whole)
    assert [update.replaced for update in updates] == [5, 5]
    stages = []
    for last in range(10_000):
        state = at_update()
        try:
            with Scarce(last):
                state[2].step()
        except torch.OutOfMemoryError:
            found = contents(*state)
            assert all(same(found[name], before[name]) or same(found[name], after[name]) for name in found)
            stages.append([same(found[name], after[name]) for name in found])
            for layer in state[2].layers.values():
                layer.pattern.validate()
        else:
            break
    assert stages == sorted(stages)
    assert [stages.count(stage) > 0 for stage in ([False, False], [True, False])] == [True, True]
    assert last > 100


def test_candidates_whose_gradient_found_no_memory_do_not_grow(monkeypatch):
    layer = SparseLinear(9, 8, density=0.3)
    optimizer = momentum(layer)
    growth = sparsekern.GSE(layer, optimizer, interval=1, end=100)
    before = layer.pattern.clone()

    def scarce(*operands):
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(layer, "weight_grad_at", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        layer(torch.ones(2, 9)).square().sum().backward()
    optimizer.step()
    with pytest.warns(UserWarning, match="'' keeps its edges in this update: .* were not computed"):
        (update,) = growth.step()
    assert update.replaced == 0
    assert layer.pattern.equal(before)


def test_a_follower_with_other_edges_keeps_the_layer_as_it_is(by_torch):
    model, optimizer, growth, average = prepared("uniform")
    find_sparse_layers(average)["5"].set_pattern(Pattern.random((20, 54), 216))
    before = growth.layers["5"].pattern.clone()
    model(images(1)).square().mean().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="follower's layer '5' has other edges"):
        growth.step()
    assert growth.layers["5"].pattern.equal(before)
