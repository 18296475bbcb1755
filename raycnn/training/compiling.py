"""torch.compile, so that two processes that compile the same get the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from raycnn.errors import ConfigError

BACKEND: Final = "inductor"

_LONGEST: Final = 300


def compiled(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The module's forward by kernels made for it at its first call, and again for other shapes, dtypes and modes.

    The module itself and the names in its state_dict stay as they are.

    Raises:
        ConfigError: by the call, when the backend fails.
    """
    fast: Callable[[Tensor], Tensor] = torch.compile(module, backend=BACKEND, dynamic=False, options=_options())

    def run(inputs: Tensor) -> Tensor:
        from torch._dynamo.exc import TorchDynamoException  # takes a second to import

        try:
            return fast(inputs)
        except TorchDynamoException as error:
            reason = str(error).strip().partition("\n\n")[0]  # after that comes advice on how to debug torch
            what = f"torch.compile failed: {type(error).__name__}: {reason[:_LONGEST]}"
            raise ConfigError(what, where="train.compile", fix="use none") from error

    return run


def _options() -> dict[str, Any] | None:
    """No timing of kernels against each other: which one wins may change from process to process, and with it bits."""
    from torch._inductor import config

    return {"deterministic": True} if BACKEND == "inductor" and hasattr(config, "deterministic") else None
