"""What a caller from Python gives beside the config: a network and a loss of its own. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from raycnn.errors import CheckpointError, ConfigError

PYTHON: Final = "python/"
"""What names of given networks and losses begin with."""


@dataclass(frozen=True)
class Given:
    """It goes with the config to whoever builds the network, as an argument of Ray's calls, and is never stored.

    Args:
        model: number of outputs -> torch module, or a module.
        name: of the model, as model.name.
        loss: (logits_NK, targets) -> float[N].
        call: tells this call from all others: what code it runs nobody can know from its name.
    """

    model: Any = None
    name: str = ""
    loss: Any = None
    call: str = ""

    def require(self, name: str) -> None:
        """Whether it has the network of this name, if that is one that has to be given.

        Raises:
            ConfigError: none was given.
            CheckpointError: another one was.
        """
        if not name.startswith(PYTHON) or name == self.name:
            return
        if self.model is None:
            fix = "give it again, from Python: raycnn.train(config, model=...), and so for evaluate, predict, load"
            raise ConfigError(f"{name} is a network that was given from Python", where="model.name", fix=fix)
        fix = "give the one that the run was started with"
        raise CheckpointError(f"the run has {name}, and {self.name} is given", where="model", fix=fix)


NOTHING: Final = Given()
"""Given where nothing is."""
