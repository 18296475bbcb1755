"""When something that happens every so often is due."""

from __future__ import annotations

from raycnn.data.plan import Plan


def due(step: int, every: int, total: int) -> bool:
    """After `step` steps are done: at each multiple of `every`, and at the end."""
    return step == total or step % every == 0


def evaluation_due(step: int, every_epochs: float, plan: Plan, total: int) -> bool:
    """After `step` steps are done: at the first step that completes another `every_epochs`, and at the end."""
    passed = int(plan.epochs(step) / every_epochs + 1e-9)
    return step == total or passed > int(plan.epochs(step - 1) / every_epochs + 1e-9)
