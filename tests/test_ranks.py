"""Growth on several ranks: gloo processes on this machine."""

import contextlib
import copy
import datetime
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rank_pool import RankPool
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sparsekern
from sparsekern.growth.ranks import RanksDiffer, digest

BATCH = 12  # 2, 3 and 4 ranks have parts of one size
METHODS = ["set", "rigl", "uniform", "grabo", "graest"]


@pytest.fixture(scope="module")
def ranks():
    pool = RankPool()
    yield pool
    pool.stop()


def make_model(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 20),
        nn.ReLU(),
        nn.Linear(20, 5),
    ).to(dtype)
    sparsekern.sparsify(model, density=0.2)
    return model


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def make_growth(method, model, optimizer, seed=0, **options):
    options = dict(interval=1, end=10**6, generator=torch.Generator().manual_seed(seed)) | options
    if method == "set":
        return sparsekern.SET(model, optimizer, **options)
    if method == "rigl":
        return sparsekern.RigL(model, optimizer, **options)
    return sparsekern.GSE(model, optimizer, method, **options)


def make_batch(step, dtype=torch.float64):
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH, 2, 4, 4, dtype=torch.float64, generator=generator).to(dtype)
    return images, torch.randint(5, (BATCH,), generator=generator)


def part(tensor, rank):
    """A rank's rows of a batch, all of them for None."""
    if rank is None:
        return tensor
    return tensor.tensor_split(dist.get_world_size())[rank]


def world():
    return dist.get_world_size()


def hashes(growth):
    return [digest(layer.ccol_indices, layer.row_indices) for layer in growth.layers.values()]


def train(model, optimizer, growth, rank, steps):
    """(losses, a list of topology hashes for each step)."""
    losses, topologies = [], []
    for step in range(steps):
        images, labels = (part(each, rank) for each in make_batch(step))
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        updates = growth.step()
        assert all(update.replaced for update in updates)
        losses.append(loss.item())
        topologies.append(hashes(growth))
    return losses, topologies


def in_parallel(rank, method, steps, grown_first):
    """Training in DDP, of ranks that are seeded differently; then on the first rank the same on a single one."""
    model = make_model(seed=rank)
    optimizer = make_optimizer(model)
    if grown_first:
        growth = make_growth(method, model, optimizer, seed=rank)
        parallel = DistributedDataParallel(model)
    else:
        parallel = DistributedDataParallel(model)
        growth = make_growth(method, parallel, optimizer, seed=rank)
    start = copy.deepcopy(model)
    done = train(parallel, optimizer, growth, rank, steps)
    assert not parallel.modules_buffers  # no indices are sent
    alone = None
    if rank == 0:
        optimizer = make_optimizer(start)
        growth = make_growth(method, start, optimizer, process_group="alone")
        alone = train(start, optimizer, growth, None, steps)
    dist.barrier()
    return done, alone


@pytest.mark.parametrize(
    ("count", "method", "steps"),
    [(2, "grabo", 200), (3, "grabo", 20), (3, "graest", 20), (4, "graest", 40), *((2, each, 12) for each in METHODS)],
)
def test_ranks_train_as_one_does(ranks, count, method, steps):
    found = ranks(count, in_parallel, method, steps, count == 2)
    alone_losses, alone_topologies = found[0][1]
    for (_, topologies), _ in found:
        assert topologies == alone_topologies
    assert len({tuple(each) for each in alone_topologies}) == steps  # and it changes at each step
    losses = torch.tensor([losses for (losses, _), _ in found], dtype=torch.float64).mean(0)
    torch.testing.assert_close(losses, torch.tensor(alone_losses, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def change_edges(layer):
    layer.set_pattern(sparsekern.Pattern.random(layer.matrix_shape, layer.nnz), layer.weight.detach())


def inject(rank, method):
    """What the ranks say of a layer whose edges one of them changes between two updates."""
    model = make_model()
    optimizer = make_optimizer(model)
    parallel = DistributedDataParallel(model)
    growth = make_growth(method, parallel, optimizer)
    train(parallel, optimizer, growth, rank, 1)
    if rank == 1:
        change_edges(growth.layers["3"])
    with pytest.raises(RanksDiffer) as caught:
        train(parallel, optimizer, growth, rank, 1)
    return str(caught.value)


def test_an_injected_difference_is_named(ranks):
    for method in ("set", "grabo"):
        for message in ranks(4, inject, method):
            assert "at the update of step 2, layer '3' has other edges on rank 1 than on ranks 0, 2, 3" in message


def begin_apart(rank):
    """What a growth says of models that differ, and how those fare that are meant to."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    sparsekern.sparsify(model, density=0.5 if rank == 0 else 0.25)
    with pytest.raises(RanksDiffer) as sizes:
        make_growth("set", model, make_optimizer(model))
    with pytest.raises(RanksDiffer) as intervals:
        make_growth("set", make_model(), make_optimizer(make_model()), interval=1 + rank, exclude=["*"])
    alone = make_growth("set", model, make_optimizer(model), process_group="alone")
    assert alone.ranks is None
    for group, kind in (("all", ValueError), (1.5, TypeError), (dist.GroupMember.NON_GROUP_MEMBER, ValueError)):
        with pytest.raises(kind, match="process_group is"):
            make_growth("set", model, make_optimizer(model), process_group=group)
    return str(sizes.value), str(intervals.value)


def test_models_that_differ_are_refused(ranks):
    for sizes, intervals in ranks(2, begin_apart):
        assert "sparse layers' 0 is (4, 6), nnz=10 on rank 0 and (4, 6), nnz=5 on rank 1" in sizes
        assert "growth's interval is 1 on rank 0 and 2 on rank 1" in intervals


def in_a_subgroup(rank):
    """Two models, each trained by two ranks."""
    group, _ = dist.new_subgroups(2)
    model = make_model(seed=rank)
    optimizer = make_optimizer(model)
    parallel = DistributedDataParallel(model, process_group=group)
    growth = make_growth("grabo", parallel, optimizer, seed=rank)
    for step in range(3):
        images, labels = make_batch(step + 10 * rank)
        F.cross_entropy(parallel(images), labels).backward()
        optimizer.step()
        growth.step()
        optimizer.zero_grad()
    dist.barrier()
    return growth.ranks.members, hashes(growth)


def test_ranks_of_a_subgroup(ranks):
    found = ranks(4, in_a_subgroup)
    assert [members for members, _ in found] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    topologies = [topology for _, topology in found]
    assert topologies[0] == topologies[1] != topologies[2] == topologies[3]


class Branches(nn.Module):
    """All rows take one way, those that are asked for another one too."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 12)
        self.some = nn.Linear(12, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x, some):
        x = self.stem(x).relu()
        if some:
            x = torch.cat([x[:some] + self.some(x[:some]), x[some:]])
        return self.head(x)


def uneven(rank, method, case):
    """Ranks that have no rows at all, or none at some layer, or in some micro-batch; and a single one in their place.

    Losses are sums over rows, so that DistributedDataParallel's mean is half of the single rank's.
    """
    torch.manual_seed(0)
    model = Branches().double()
    sparsekern.sparsify(model, density=0.4, exclude=["stem", "head"] if case == "dense" else [])
    single = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    parallel = DistributedDataParallel(model, find_unused_parameters=True)
    # Rows of each rank, and how many of them take the other way too; two micro-batches.
    plans = {
        "empty": [([8, 0], [8, 0]), ([4, 4], [4, 4])],
        "unreached": [([4, 4], [2, 0]), ([4, 4], [2, 0])],
        "late": [([4, 4], [0, 0]), ([4, 4], [0, 3])],
        "dense": [([4, 4], [2, 0]), ([4, 4], [2, 0])],  # the second rank reaches no sparse layer at all
    }[case]
    found = []
    for net, whole in ((parallel, False), (single, True)):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-2 if whole else 2e-2)
        growth = make_growth(method, net, optimizer, process_group="alone" if whole else None)
        generator.manual_seed(1)
        for _ in range(6):
            for at, (rows, some) in enumerate(plans):
                x = torch.randn(sum(rows), 6, dtype=torch.float64, generator=generator)
                first = at == 0 and not whole
                with net.no_sync() if first else contextlib.nullcontext():
                    if not whole:
                        net(x.split(rows)[rank], some[rank]).square().sum().backward()
                        continue
                    # Rank by rank: which rows take the other way too decides nothing but their order.
                    order = [k for r in (0, 1) for k in range(some[r]) for k in [sum(rows[:r]) + k]]
                    rest = [k for k in range(sum(rows)) if k not in order]
                    net(x[order + rest], len(order)).square().sum().backward()
            optimizer.step()
            growth.step()
            optimizer.zero_grad()
        found.append((hashes(growth), [layer.weight.detach().clone() for layer in growth.layers.values()]))
    (topologies, weights), (alone_topologies, alone_weights) = found
    torch.testing.assert_close(weights, alone_weights, rtol=1e-9, atol=1e-12)
    return topologies, alone_topologies


@pytest.mark.parametrize("case", ["empty", "unreached", "late", "dense"])
def test_ranks_without_rows_add_nothing(ranks, case):
    for method in ("grabo", "rigl"):
        for topologies, alone in ranks(2, uneven, method, case, group_timeout=20):
            assert topologies == alone


def skip_steps(rank):
    """A GradScaler skips a step because of one rank's gradient; later one rank's optimizer steps alone."""
    model = make_model(dtype=torch.float32)
    optimizer = make_optimizer(model)
    parallel = DistributedDataParallel(model)
    growth = make_growth("grabo", parallel, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    updates = []
    for step in range(4):
        images, labels = (part(each, rank) for each in make_batch(step, torch.float32))
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(parallel(images), labels)
        loss = loss * torch.inf if step == 1 and rank == 1 else loss
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        updates.append(sum(update.replaced for update in growth.step()))
    assert growth.steps == 3
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    if rank == 0:
        optimizer.step()
    with pytest.raises(RanksDiffer, match="stepped after 3 steps on rank 0, and did not step after 3 on rank 1"):
        growth.step()
    return updates, hashes(growth)


def test_skipped_steps(ranks):
    (first, topology), other = ranks(2, skip_steps)
    assert (first, topology) == other
    assert first[1] == 0
    assert min(first[0], *first[2:]) > 0


def shard_the_state(rank, steps):
    """Weights and edges after training with the optimizer's state on one rank each, and with all of it on all."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    found = []
    for sharded in (True, False):
        model = make_model()
        parallel = DistributedDataParallel(model)
        if sharded:
            optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=1e-2)
        else:
            optimizer = make_optimizer(model)
        growth = make_growth("grabo", parallel, optimizer)
        train(parallel, optimizer, growth, rank, steps)
        held = optimizer.optim.state if sharded else optimizer.state
        found.append(([each.detach() for each in model.parameters()], hashes(growth), len(held)))
    (weights, topology, held), (wanted, wanted_topology, all_of_them) = found
    torch.testing.assert_close(weights, wanted, rtol=0, atol=0)
    assert topology == wanted_topology
    return held, all_of_them


def test_sharded_optimizer_state_moves_with_its_edges(ranks):
    held = ranks(2, shard_the_state, 8)
    assert sum(mine for mine, _ in held) == held[0][1]
    assert all(0 < mine < every for mine, every in held)


def compile_models(rank):
    """Topologies of a model as it is, compiled inside of DDP, and compiled with it."""
    found = []
    for compiled in ("no", "inside", "around"):
        torch._dynamo.reset()
        model = make_model()[3:]
        optimizer = make_optimizer(model)
        if compiled == "inside":
            parallel = DistributedDataParallel(torch.compile(model, backend="aot_eager"))
        else:
            parallel = DistributedDataParallel(model)
        if compiled == "around":
            parallel = torch.compile(parallel, backend="aot_eager")
        growth = make_growth("grabo", parallel, optimizer, interval=2)
        for step in range(4):
            images, labels = (part(each, rank) for each in make_batch(step))
            optimizer.zero_grad()
            F.cross_entropy(parallel(images.repeat(1, 3, 1, 1).flatten(1)), labels).backward()
            optimizer.step()
            growth.step()
        found.append(hashes(growth))
    return found


def test_compiled_models(ranks):
    (plain, inside, around), other = ranks(2, compile_models)
    assert plain == inside == around
    assert other == [plain] * 3


def shard_the_weights(rank):
    """A sparse model in FSDP2: outputs with and without, and what a growth says of it."""
    from torch.distributed.fsdp import fully_shard

    model = make_model()
    wanted = copy.deepcopy(model)
    mesh = dist.device_mesh.init_device_mesh("cpu", (world(),))
    fully_shard(model, mesh=mesh)
    images, labels = make_batch(0)
    optimizer = make_optimizer(model)
    with pytest.raises(TypeError, match="is sharded"):
        make_growth("grabo", model[3:], optimizer)
    plain = make_optimizer(wanted)
    for net, stepped in ((model, optimizer), (wanted, plain)):
        for _ in range(2):
            stepped.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            stepped.step()
    torch.testing.assert_close(model(images), wanted(images), rtol=1e-9, atol=1e-12)
    late = make_model()
    growth = make_growth("set", late, make_optimizer(late))
    fully_shard(late, mesh=mesh)
    with pytest.raises(TypeError, match="is sharded"):
        growth.step()
    with pytest.raises(TypeError) as caught:
        make_growth("grabo", model, optimizer)
    return str(caught.value)


def test_sharded_weights_are_refused(ranks):
    for message in ranks(2, shard_the_weights):
        assert "weight of layer '0' is sharded" in message
        assert "DistributedDataParallel" in message


def buffers_on_the_wire(rank):
    """Which buffers DDP sends at each forward: a norm's statistics, not the edges."""
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    sparsekern.sparsify(model, density=0.5)
    growth = make_growth("set", model, make_optimizer(model), interval=5)
    parallel = DistributedDataParallel(model)
    versions = [layer.row_indices._version for layer in growth.layers.values()]
    sent = []
    for _ in range(3):
        parallel(torch.randn(4, 6))
        sent.append(len(parallel.modules_buffers))
    last = [layer.row_indices._version for layer in growth.layers.values()]
    return sent, [b - a for a, b in zip(versions, last, strict=True)], model[1].running_mean.tolist()


def test_indices_are_not_sent(ranks):
    found = ranks(2, buffers_on_the_wire)
    for sent, written, _ in found:
        assert sent == [3, 3, 3]
        assert max(written) <= 1  # the forward at which a growth made before DDP sees it
    assert found[0][2] != found[1][2]  # each rank's own batch, until the first one's are sent at the next forward


def send(rank):
    """Bytes that a rank sends in a step, dense, at 5% and at 2%."""
    from benchmarks.options import Wire
    from benchmarks.wire import traffic

    options = Wire(widths=(256, 512, 64), steps=3)
    return traffic(None, "grabo", options), traffic(0.05, "grabo", options), traffic(0.02, "rigl", options)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="the kernel's counters are Linux's")
def test_bytes_on_the_wire(ranks):
    for dense, sparse, rigl in ranks(2, send):
        weights = 256 * 512 + 512 * 64 + 512 + 64  # float32: two ranks send half of all twice
        assert 4 * weights < dense["plain"] < 4.1 * weights
        assert sparse["plain"] < 2 * 0.05 * dense["plain"]
        # Sums of rows and columns in float64, one gradient for each edge, hashes and what says where a rank is.
        sums, edges = 256 + 512 + 512 + 64, round(0.05 * (weights - 512 - 64))
        assert 8 * sums + 4 * edges < sparse["update"] - sparse["plain"] < 8 * sums + 4 * edges + 4000
        assert rigl["update"] - rigl["plain"] < 0.4 * dense["plain"]


def train_and_resume(rank):
    """A run's parameters, buffers and generators at its end, and those of one that was saved and loaded on the way."""
    from sparsekern.training.config import DataConfig, GrowthConfig, ModelConfig, RunConfig, TrainConfig
    from sparsekern.training.progress import StopAsked
    from sparsekern.training.trainer import Trainer

    config = TrainConfig(
        ModelConfig(name="resnet", width=4, depth=8),
        DataConfig(batch_size=51),
        growth=GrowthConfig(name="gse-graest", interval=2),
        run=RunConfig(epochs=1),
    )
    ends = []
    for saved in (False, True):
        trainer = Trainer(config)
        for images, labels in trainer.loader:
            assert len(images) == 26 - rank
            trainer.train_step(images, labels)
            if saved and trainer.step == 3:
                state = trainer.state_dict()
                break
            if trainer.step == 6:
                break
        if saved:
            trainer = Trainer(config, restoring=True)
            trainer.load_state_dict(copy.deepcopy(state))
            for images, labels in trainer.loader:
                trainer.train_step(images, labels)
                if trainer.step == 6:
                    break
        ends.append((trainer.model.state_dict(), torch.get_rng_state(), trainer.totals, trainer.evaluate()))

    def ask_the_first():  # the only one that has images of this small a test
        if rank == 0:
            raise StopAsked

    with pytest.raises(StopAsked):
        trainer.evaluate("test", ask_the_first)
    assert trainer.model.training
    (model, generator, totals, accuracy), (resumed, theirs, their_totals, same) = ends
    torch.testing.assert_close(resumed, model, rtol=0, atol=0)
    assert torch.equal(generator, theirs)
    assert (totals.loss, totals.correct, accuracy) == (their_totals.loss, their_totals.correct, same)
    return generator.tolist(), accuracy, model["stem.weight"].tolist() if "stem.weight" in model else None


def test_a_run_on_two_ranks_resumes_bit_for_bit(ranks):
    pytest.importorskip("sklearn")
    first, second = ranks(2, train_and_resume)
    assert first[0] != second[0]  # dropout is a process's own
    assert first[1:] == second[1:]


def wait_for_one_that_hangs(rank, path):
    """What a rank says whose group has a timeout of a second, while the other one is elsewhere."""
    model = make_model()
    growth = make_growth("grabo", model, make_optimizer(model))
    own = growth.ranks._group
    assert own._get_backend(torch.device("cpu")).options._timeout == datetime.timedelta(seconds=123)
    dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=1), own)
    if rank == 1:
        while not path.exists():
            time.sleep(0.05)
        return None
    with pytest.raises(RuntimeError) as caught:
        growth.step()
    path.touch()
    return str(caught.value)


def test_a_rank_that_hangs_is_an_error_after_the_timeout(ranks, tmp_path):
    message, _ = ranks(2, wait_for_one_that_hangs, tmp_path / "done", group_timeout=123)
    assert "rank 0 waited after the optimizer's step" in message
    assert "imed out" in message


def save_slowly(rank, path):
    """Whether the first rank's file is there once this one has saved; and what a failing save raises."""
    from sparsekern.training.folder import RunFolder
    from sparsekern.training.ranks import FirstFailed, processes

    def write(state, step, keep):
        if step == 2:
            raise OSError("no space")
        time.sleep(0.3)
        (path / "written").touch()

    folder = RunFolder(path)
    folder.checkpoints.save = write
    trainer = SimpleNamespace(model=nn.Identity(), state_dict=dict, processes=processes(), step=1)
    trainer.config = SimpleNamespace(run=SimpleNamespace(keep=1))
    folder.save(trainer)
    is_there = (path / "written").exists()
    trainer.step = 2
    with pytest.raises(FirstFailed if rank else OSError):
        folder.save(trainer)
    return is_there


def test_all_ranks_wait_until_a_checkpoint_is_written(ranks, tmp_path):
    """torchrun ends those that are still at work once one has ended."""
    assert ranks(2, save_slowly, tmp_path) == [True, True]


def stay_alone(rank):
    model = make_model()
    optimizer = make_optimizer(model)
    parallel = DistributedDataParallel(model)
    growth = make_growth("grabo", parallel, optimizer)
    train(parallel, optimizer, growth, rank, 2)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    train(parallel, optimizer, growth, rank, 1)


def test_a_rank_that_is_killed_is_an_error_of_the_others(ranks):
    (kind, content), other = ranks.outcomes(2, stay_alone, timeout=240, group_timeout=20)
    assert kind == "raised"
    assert "RuntimeError" in content
    assert other == ("ended", -signal.SIGKILL)


def test_a_single_process_has_no_ranks():
    model = make_model()
    assert make_growth("grabo", model, make_optimizer(model)).ranks is None
    assert not model._forward_pre_hooks
