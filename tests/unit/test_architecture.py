from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = (
    {"errors", "secrecy", "config", "version", "scratch", "memory"},
    {"storage", "dashboard", "cluster"},
    {"data"},
    {"models"},
    {"training"},
    {"results"},
    {"searching"},
    {"", "verbs", "opening", "cli", "progress", "demo", "checks"},  # "" is raycnn/__init__.py, the verbs as functions
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
PURE = [
    "raycnn.data.plan",
    "raycnn.data.decode",
    "raycnn.data.transforms",
    "raycnn.models.stages",
    "raycnn.training.losses",
    "raycnn.training.metrics",
    "raycnn.training.optim",
    "raycnn.training.schedule",
]
LIGHT = ["raycnn", "raycnn.errors", "raycnn.config", "raycnn.cli"]
TRIAL = ["raycnn.searching.trial", "raycnn.searching.pack"]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / "raycnn").rglob("*.py"))}


def imports(source: str) -> set[str]:
    """The modules that the source imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "imports are absolute"
            assert node.level == 0, "imports are absolute"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = inside & MODULES.keys()  # from package import module
            found |= submodules if submodules == inside else submodules | {node.module}
    return found


def layer(module: str) -> int:
    name = (module + ".").split(".")[1]
    assert name in LAYER, f"{module} has no layer yet: give it one here"
    return LAYER[name]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def loads(modules: list[str], banned: set[str]) -> str:
    """Which of the banned packages a fresh interpreter holds after importing the modules."""
    return run(f"import sys, {', '.join(modules)}; print(*sorted({banned!r} & sys.modules.keys()))")


def test_imports_sees_every_form() -> None:
    source = """
import raycnn.config, os.path
from raycnn import errors, no_such_module
from raycnn.storage import base
def later():
    from raycnn.data.plan import Plan
"""
    expected = "os.path raycnn raycnn.config raycnn.errors raycnn.storage.base raycnn.data.plan"
    assert imports(source) == set(expected.split())


def test_imports_point_down() -> None:
    up = [
        f"{module} imports {target}"
        for module, path in MODULES.items()
        for target in imports(path.read_text())
        if target.split(".")[0] == "raycnn" and layer(target) > layer(module)
    ]
    assert up == []


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_name_neither_ray_nor_boto3(module: str) -> None:
    packages = {target.split(".")[0] for target in imports(MODULES[module].read_text())}
    assert not packages & {"ray", "boto3", "botocore"}


def test_pure_modules_load_neither_ray_nor_boto3() -> None:
    assert loads(PURE, {"ray", "boto3", "botocore"}) == ""


def test_the_command_line_and_the_config_load_nothing_heavy() -> None:
    assert loads(LIGHT, {"torch", "ray", "numpy", "boto3", "botocore", "pyarrow", "PIL"}) == ""


def test_a_trials_actor_starts_without_torch() -> None:
    assert loads(TRIAL, {"torch", "boto3"}) == ""


def test_who_finds_a_run_taken_needs_no_torch() -> None:
    needed = ["raycnn.training.run", "raycnn.data.manifest", "raycnn.cluster"]
    needed += ["raycnn.searching.settings", "raycnn.searching.former"]
    assert loads(needed, {"torch", "ray"}) == ""
