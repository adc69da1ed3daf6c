"""What a section ran on: the GPU, its driver and compilers, beside what every measurement says."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import torch

from benchmarks import machine


def device_of(name: str) -> torch.device:
    """The device of a name that can be used.

    Raises:
        RuntimeError: there is no GPU, or no torch that could use it.
    """
    if name == "cuda" and not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        raise RuntimeError(
            f"no GPU can be used: torch {torch.__version__} is {built}, and finds "
            f"{torch.cuda.device_count()} devices. `--device cpu --smoke` rehearses without one"
        )
    return torch.device("cuda", 0) if name == "cuda" else torch.device("cpu")


def describe(device: torch.device, commit: str | None) -> dict[str, Any]:
    """As `benchmarks.machine.describe`, with "gpu": None on the CPU."""
    found = machine.describe()
    return found | {"commit": commit or found["commit"], "gpu": _gpu(device) if device.type == "cuda" else None}


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": round(getattr(properties, "L2_cache_size", 0) / 2**20, 1),
        "driver": _asked("driver_version"),
        "clock_mhz": _asked("clocks.max.sm"),
        "cuda": torch.version.cuda,
        "nvcc": nvcc_version(),
    }


def _asked(field: str) -> str | None:
    """A field of nvidia-smi's; None where it does not answer."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def nvcc_version() -> str | None:
    if shutil.which("nvcc") is None:
        return None
    try:
        text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"release ([\d.]+)", text)
    return found[1] if found else None


def where(place: dict[str, Any]) -> str:
    """A paragraph's part that names the machine."""
    gpu, versions = place["gpu"], ", ".join(f"{name} {version}" for name, version in place["versions"].items())
    if gpu is None:
        return f"{place['processor']} (a rehearsal: no GPU), Python {place['python']}, {versions}"
    return (
        f"{gpu['name']} ({gpu['multiprocessors']} multiprocessors, {gpu['memory_gib']:g} GiB, "
        f"L2 {gpu['l2_mib']:g} MiB, sm_{gpu['capability'].replace('.', '')}), "
        f"driver {gpu['driver']}, CUDA {gpu['cuda']}, nvcc {gpu['nvcc']}, Python {place['python']}, {versions}"
    )
