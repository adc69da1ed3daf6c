"""docs/distributed.md: its loop runs under torchrun, and its callbacks in the libraries that they are for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsekern

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs" / "distributed.md").read_text(), re.MULTILINE | re.DOTALL)
LOOP, *CALLBACKS = [block for language, block in BLOCKS if language == "python"]


def defined(word):
    """What the block that has this word defines."""
    (block,) = [block for block in CALLBACKS if word in block]
    assert block.count("\n") < 40
    scope = {"sparsekern": sparsekern}
    exec(compile(block, "docs/distributed.md", "exec"), scope)
    return scope


def make_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 3))
    sparsekern.sparsify(model, density=0.3)
    return model


def edges(model):
    return model[0].pattern.edges()


def assert_same(model, other):
    for mine, theirs in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def moved(model):
    return any(not torch.equal(mine, theirs) for mine, theirs in zip(edges(model), edges(make_model()), strict=True))


def test_every_block_has_a_test():
    assert [language for language, _ in BLOCKS] == ["sh", *["python"] * 4]


def test_the_loop_runs_under_torchrun(tmp_path):
    (tmp_path / "train.py").write_text(LOOP + "\nassert growth.steps == 20 and len(growth.ranks) == 2\n")
    torchrun(tmp_path, "train.py")


def torchrun(folder, *words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = make_model()

    def forward(self, inputs, labels):
        logits = self.net(inputs)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def samples(count):
    generator = torch.Generator().manual_seed(0)
    return [
        {"inputs": torch.randn(6, generator=generator), "labels": torch.randint(3, (), generator=generator)}
        for _ in range(count)
    ]


def test_hugging_face_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    Callback = defined("TrainerCallback")["SparseCallback"]

    def train(steps, folder, resumed=None):
        arguments = transformers.TrainingArguments(
            output_dir=tmp_path / folder,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            max_steps=steps,
            report_to=[],
            save_steps=4,
            use_cpu=True,
            disable_tqdm=True,
            lr_scheduler_type="constant",
        )
        model, callback = Classifier(), Callback(interval=2, end=100)
        trainer = transformers.Trainer(model, arguments, train_dataset=samples(64), callbacks=[callback])
        trainer.train(resume_from_checkpoint=resumed)
        return model.net, callback.growth.steps

    whole, steps = train(6, "whole")
    assert steps == 6
    assert moved(whole)
    # Into another folder: the checkpoint has all that is needed.
    resumed, steps = train(6, "resumed", str(tmp_path / "whole" / "checkpoint-4"))
    assert steps == 6
    assert_same(resumed, whole)


def test_accelerate(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    Growth = defined("AcceleratedGrowth")["AcceleratedGrowth"]

    def train(micro_batches, saved=None, loaded=None):
        accelerator = accelerate.Accelerator(gradient_accumulation_steps=2, cpu=True)
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        wrapped, optimizer = accelerator.prepare(model, optimizer)
        growth = Growth(accelerator, wrapped, optimizer, interval=2, end=100)
        if loaded is not None:
            accelerator.load_state(loaded)
        for number in micro_batches:
            with accelerator.accumulate(wrapped):
                generator = torch.Generator().manual_seed(number)
                loss = wrapped(torch.randn(4, 6, generator=generator)).square().mean()
                accelerator.backward(loss)
                optimizer.step()
                growth.step()
                optimizer.zero_grad()
        if saved is not None:
            accelerator.save_state(saved)
        assert growth.growth.steps == micro_batches.stop // 2
        return model

    whole = train(range(8))
    assert moved(whole)
    train(range(4), saved=tmp_path / "state")
    assert_same(train(range(4, 8), loaded=tmp_path / "state"), whole)


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = make_model()

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.net(batch["inputs"]), batch["labels"])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    Callback = defined("lightning.Callback")["SparseLightning"]
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)

    def train(epochs, resumed=None):
        callback, module = Callback(interval=2, end=100), Module()
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accumulate_grad_batches=2,
            accelerator="cpu",
            callbacks=[callback],
            default_root_dir=tmp_path,
            **quiet,
        )
        trainer.fit(module, torch.utils.data.DataLoader(samples(16), batch_size=4), ckpt_path=resumed)
        assert callback.growth.steps == callback.state_dict()["steps"] == 2 * epochs
        return trainer, module.net

    whole = train(3)[1]
    assert moved(whole)
    saved = str(tmp_path / "two epochs.ckpt")
    train(2)[0].save_checkpoint(saved)
    assert_same(train(3, saved)[1], whole)

    # A checkpoint before the first step, and one of what was loaded to be tested only.
    assert Callback(interval=2, end=100).state_dict() == {}
    loaded = Callback(interval=2, end=100)
    loaded.load_state_dict({"steps": 3})
    assert loaded.state_dict() == {"steps": 3}
