"""Training gives the same bits in every process, at each number of threads."""

import json
import os
import subprocess
import sys

TRAIN = """
import hashlib, json, sys
import torch
from torch import nn
from sparsekern import GSE, SparseConv2d, SparseLinear

def train(sampler):
    torch.manual_seed(0)
    model = nn.Sequential(
        SparseConv2d(16, 64, 3, padding=1, density=0.6), nn.ReLU(), SparseConv2d(64, 32, 3, stride=2, density=0.1),
        nn.Flatten(), SparseLinear(32 * 9, 512, density=0.5), nn.ReLU(), SparseLinear(512, 10, density=0.3),
    )
    images, labels = torch.randn(70, 16, 8, 8), torch.randint(10, (70,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    growth = GSE(model, optimizer, sampler, interval=2, end=100)
    replaced = 0
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        replaced += sum(update.replaced for update in growth.step())
    assert replaced > 20_000
    digest = hashlib.sha256()
    for tensor in [*model.state_dict().values(), *(state["momentum_buffer"] for state in optimizer.state.values())]:
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()

hashes = {}
for threads in map(int, sys.argv[1:]):
    torch.set_num_threads(threads)
    for sampler in ("uniform", "grabo", "graest"):
        hashes[f"{sampler}, {threads} threads"] = train(sampler)
print(json.dumps(hashes))
"""


def test_fresh_processes_train_to_the_same_bits():
    threads = ["1", "2", str((os.cpu_count() or 1) + 3)]  # more threads than cores, too
    runs = [
        subprocess.run([sys.executable, "-c", TRAIN, *order], capture_output=True, text=True, check=False)
        for order in (threads, threads[::-1])
    ]
    assert [run.stderr for run in runs] == ["", ""]
    first, second = (json.loads(run.stdout) for run in runs)
    assert len(first) == 9
    assert first == second
    assert len({first[name] for name in first if name.endswith(", 1 threads")}) == 3  # the samplers differ
