"""No dense weight, ever: whole runs of every model under forbid_dense, and a layer of 256 GiB dense."""

import subprocess
import sys
from dataclasses import replace

import pytest

from sparsekern.testing import forbid_dense
from sparsekern.training.checkpoint import load_checkpoint, save_checkpoint
from sparsekern.training.config import DataConfig, GrowthConfig, ModelConfig, SparsityConfig, TrainConfig
from sparsekern.training.trainer import Trainer

MODELS = {
    "mlp": ModelConfig("mlp", width=128, depth=2),
    "resnet": ModelConfig("resnet", width=16, depth=8, shortcut="B"),
    "vit": ModelConfig("vit", width=64, depth=2),
}
# No divisor of a layer's size: forbid_dense can then tell a weight from an activation.
BATCH = 37


@pytest.mark.parametrize("growth", ["gse-uniform", "gse-grabo", "gse-graest"])
@pytest.mark.parametrize("model", MODELS)
def test_training_saving_and_loading_make_nothing_dense(model, growth, tmp_path):
    pytest.importorskip("sklearn")
    config = TrainConfig(
        model=MODELS[model],
        data=DataConfig(batch_size=BATCH),
        sparsity=SparsityConfig(density=0.05),
        growth=GrowthConfig(growth, interval=2, end=1.0),
    )
    config = replace(config, run=replace(config.run, epochs=1))
    trainer, other = Trainer(config), Trainer(config)
    replaced = 0
    with forbid_dense(trainer.model, batch_sizes=(BATCH,)):
        for step, (images, labels) in enumerate(trainer.loader, start=1):
            replaced += sum(row["replaced"] for row in trainer.train_step(images, labels))
            if step == 5:
                break
        trainer.evaluate()
        save_checkpoint(tmp_path / "state.safetensors", trainer.state_dict())
        other.load_state_dict(load_checkpoint(tmp_path / "state.safetensors"))
    assert replaced > 0


HUGE = """
import resource, sys
import torch
import sparsekern as sk

WIDTH, EDGES, BATCH = 262_144, 2_000_000, 32
imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
torch.manual_seed(0)
layer = sk.SparseLinear(WIDTH, WIDTH, density=EDGES / WIDTH**2)
optimizer = torch.optim.Adam(layer.parameters())
gse = sk.GSE(layer, optimizer, sampler=sys.argv[1], interval=8, end=100)
x, target = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)
replaced, losses = [], []
with sk.testing.forbid_dense(layer):
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(layer(x), target)
        loss.backward()
        optimizer.step()
        replaced += [update.replaced for update in gse.step()]
        losses.append(loss.item())
assert layer.nnz == EDGES
assert len(replaced) == 2 and min(replaced) > 100_000, replaced
assert losses[-1] < losses[0]
layer.pattern.validate()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - imports) / 2**20)
"""


@pytest.mark.parametrize("sampler", ["uniform", "grabo", "graest"])
def test_a_layer_of_256_gib_dense_trains_in_little_memory(sampler):
    """262,144 x 262,144 with 2 million edges: 20 Adam steps with two GSE updates in 1.5 GiB above the imports."""
    result = subprocess.run(
        [sys.executable, "-c", HUGE, sampler], capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 1.5
