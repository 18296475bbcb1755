"""What this machine has: packages, processors, files, disk, shared memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from packaging.requirements import Requirement

from raycnn.checks.check import GIB, Check


def versions() -> Check:
    """Whether the installed packages are those that raycnn asks for."""
    told = f"Python {platform.python_version()}, " + ", ".join(
        f"{name} {_installed(name) or 'missing'}" for name in ("ray", "torch", "torchvision", "timm")
    )
    try:
        wrong = unmet(importlib.metadata.requires("raycnn") or [], _installed)
    except importlib.metadata.PackageNotFoundError:
        return Check("versions", None, f"{told}; raycnn is not an installed package", "pip install it")
    return Check("versions", not wrong, "; ".join([told, *wrong]), "pip install -U raycnn" if wrong else "")


def unmet(requirements: Iterable[str], installed: Callable[[str], str | None]) -> list[str]:
    """One line for each requirement (PEP 508; those of extras left out) that is not met."""
    lines = []
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            lines.append(f"{requirement.name} is {version or 'missing'}, needs {requirement.specifier}")
    return lines


def processors(workers: int, num_cpus: int, num_gpus: int) -> Check:
    """Whether each worker has a GPU, or a CPU core where there is no GPU."""
    enough = workers <= (num_gpus or num_cpus)
    detail = f"{num_cpus} CPUs and {num_gpus} GPUs for train.workers {workers}"
    return Check("processors", enough or None, detail, "" if enough else "lower train.workers or add nodes")


def open_files() -> Check:
    """Whether enough files and sockets may be open at once; Ray raises its soft limit to the hard one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    enough = hard == resource.RLIM_INFINITY or hard >= 8192
    detail = "no limit" if hard == resource.RLIM_INFINITY else f"at most {hard}"
    return Check("open files", enough or None, detail, "" if enough else "ulimit -n 65536")


def disk_space(name: str, path: Path) -> Check:
    """Whether the disk of `path` has room: below 1 GiB is a fault, below 10 GiB a remark."""
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    detail = f"{free / GIB:.1f} GiB free at {path}"
    if free >= 10 * GIB:
        return Check(name, True, detail)
    return Check(name, False if free < GIB else None, detail, "free some space or use another disk")


def shared_memory(path: Path = Path("/dev/shm")) -> Check:
    """Whether Ray's object store fits into shared memory; otherwise Ray works from the disk, slowly."""
    if not path.exists():
        return Check("shared memory", None, f"no {path} on this system")
    free = shutil.disk_usage(path).free
    fix = "" if free >= GIB else "enlarge it (Docker: --shm-size=4g)"
    return Check("shared memory", free >= GIB or None, f"{free / GIB:.1f} GiB free at {path}", fix)


def graphics(drivers: Path = Path("/proc/driver/nvidia/gpus")) -> Check:
    """Whether torch can use every GPU that the machine has."""
    import torch

    there = len(list(drivers.iterdir())) if drivers.is_dir() else 0
    usable = torch.cuda.device_count()
    if there <= usable:
        return Check("GPU", True, f"{usable} usable by torch {torch.__version__}")
    detail = f"{there} in this machine, {usable} usable by torch {torch.__version__}"
    return Check("GPU", False, detail, "install a CUDA build of torch that the driver knows, see CUDA_VISIBLE_DEVICES")


def own_processors() -> tuple[int, int]:
    """CPUs and GPUs of this machine."""
    import torch

    return os.cpu_count() or 1, torch.cuda.device_count()


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
