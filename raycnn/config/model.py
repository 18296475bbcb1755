"""The settings of the network: which, from which weights, how much of it trains."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from raycnn.config.base import LATER, Fraction, Section

NAMES: Final = r"^((torchvision|timm|reference)/[A-Za-z0-9_.\-]+|python/[A-Za-z0-9_.\-]+@[0-9a-f]{12})$"

Depth = Annotated[int, Field(ge=0)] | Literal["all"] | Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.\w+)*$")]
"""What trains beside the head: a number of stages counted from it, `all`, or from the module of this path on."""


class Phase(Section):
    """Some epochs at one unfreezing depth."""

    depth: Depth
    """What trains beside the head, as in model.unfreeze."""
    epochs: Annotated[float, Field(gt=0)]
    """Length of the phase; the last phase goes on to the end of the run."""


class HeadConfig(Section):
    """What stands in the place of the network's class layer; it always trains."""

    kind: Annotated[Literal["linear", "mlp"], LATER] = "linear"
    """linear: one layer; mlp: a hidden layer with ReLU before it."""
    width: Annotated[int, Field(ge=1), LATER] = 256
    """Of the hidden layer."""
    dropout: Annotated[Fraction, LATER] | None = None
    """Probability right before the class layer; null: the network's own."""
    replaces: Annotated[Literal["layer", "classifier"], LATER] = "layer"
    """The class layer alone, or all of a classifier of several layers (VGG, AlexNet, MobileNet)."""


class ModelConfig(Section):
    """Which network, from which weights, and how much of it trains."""

    name: Annotated[str, Field(pattern=NAMES)]
    """torchvision/NAME, timm/NAME or reference/NAME; of a network that is given from Python python/NAME@DIGEST, which
    is set by itself."""
    weights: str = "default"
    """none | default (the zoo's own) | a file or s3:// path (.safetensors or .pth) | run:NAME (with a slash
    in it: the uri of a run elsewhere)."""
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Refuse a weight file with another digest."""
    unfreeze: Depth | Literal["lp-ft"] | tuple[Phase, ...] = "all"
    """What trains beside the head: a number of stages, `all`, from a module of this path on (finer than stages, e.g.
    blocks.6), or a list of phases {depth, epochs}. gradual: one stage more every model.unfreeze_epochs; lp-ft: nothing
    for so many epochs, then all."""
    unfreeze_epochs: Annotated[float, Field(gt=0), LATER] = 1.0
    """gradual, lp-ft: length of each phase but the last."""
    head: HeadConfig = HeadConfig()
    batchnorm: Literal["frozen", "local", "sync"] = "frozen"
    """Statistics of the BatchNorm layers that train: frozen at the pretrained ones, per rank, or over all ranks."""
    recalibrate: Annotated[str, Field(min_length=1), LATER] = "none"
    """Before step 0 take all BatchNorm layers' statistics anew, from one pass over images: none | train (the training
    rows) | a folder, bucket prefix or manifest of images without labels, e.g. of the domain that is to be predicted."""

    @property
    def unfreeze_text(self) -> str:
        """A text that tells one unfreeze from another."""
        return str(self.model_dump(mode="json")["unfreeze"])

    @model_validator(mode="after")
    def _some_phase(self) -> ModelConfig:
        if self.unfreeze == ():
            raise ValueError("unfreeze: a list of phases needs at least one")
        return self
