"""What this machine has of GPUs, and what it lacks."""

from __future__ import annotations

import shutil
import subprocess

import torch

from raycnn.training.device import DeviceFacts, choose_compiled, choose_precision


def missing() -> str:
    """Why there is no GPU to check; empty if there is one."""
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if shutil.which("nvidia-smi") is None:
        return "this machine has no NVIDIA driver (no nvidia-smi)"
    return f"torch {torch.__version__} sees none; compare nvidia-smi, the driver's version and CUDA_VISIBLE_DEVICES"


def gpus() -> list[str]:
    """A line for each: name, memory, driver; and what raycnn chooses for it."""
    found = []
    for number in range(torch.cuda.device_count()):
        device, facts = torch.device("cuda", number), torch.cuda.get_device_properties(number)
        chosen = choose_compiled("auto", DeviceFacts.of(device))
        precision = str(choose_precision("auto", device)).removeprefix("torch.")
        memory = f"{facts.total_memory / 2**30:.0f} GiB, compute capability {facts.major}.{facts.minor}"
        found.append(f"GPU {number}: {facts.name}, {memory}; precision {precision}, compiled: {chosen}")
    return found


def driver() -> str:
    """Versions of the driver, and of what torch was built with."""
    built = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    if shutil.which("nvidia-smi") is None:
        return f"{built}; no nvidia-smi"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return f"{built}; driver {lines[0] if lines else 'unknown'}"
