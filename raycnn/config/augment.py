"""How training images are varied: what each may look like, and what several of them are mixed to."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raycnn.config.base import LATER, Section

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


class AugmentConfig(Section):
    """Random views of the training images, keyed by (seed, epoch, image)."""

    crop_scale: tuple[Share, Share] | None = (0.35, 1.0)
    """Share of the image's area that a random resized crop keeps, [low, high]; null: the evaluation crop."""
    crop_ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    """Aspect ratio (width / height) of the random crop, [low, high]."""
    hflip: Probability = 0.5
    """Probability of mirroring left to right."""
    vflip: Probability = 0.0
    """Probability of mirroring top to bottom."""
    rotate: Annotated[float, Field(ge=0, le=180), LATER] = 0.0
    """Largest angle of a random rotation, in degrees either way; the corners get the network's mean colour."""
    brightness: Annotated[Probability, LATER] = 0.0
    """Colour jitter: a factor from [1 - x, 1 + x]."""
    contrast: Annotated[Probability, LATER] = 0.0
    """Colour jitter: a factor from [1 - x, 1 + x]."""
    saturation: Annotated[Probability, LATER] = 0.0
    """Colour jitter: a factor from [1 - x, 1 + x]."""
    hue: Annotated[float, Field(ge=0, le=0.5), LATER] = 0.0
    """Colour jitter: a turn of the colour wheel, from [-x, x] of it."""
    policy: Annotated[Literal["none", "randaugment", "trivialaugment"], LATER] = "none"
    """randaugment: policy_ops of 14 distortions one after the other, at strength policy_magnitude; trivialaugment: one
    of them, at any strength up to very strong."""
    policy_ops: Annotated[int, Field(ge=1, le=4), LATER] = 2
    """randaugment: distortions per image."""
    policy_magnitude: Annotated[int, Field(ge=0, le=30), LATER] = 9
    """randaugment: their strength."""
    erase: Annotated[Probability, LATER] = 0.0
    """Probability that a random rectangle is replaced by the network's mean colour (random erasing)."""
    erase_scale: Annotated[tuple[Share, Share], LATER] = (0.02, 0.33)
    """Share of the view's area that the rectangle takes, [low, high]."""
    erase_ratio: Annotated[tuple[Positive, Positive], LATER] = (0.3, 3.3)
    """Aspect ratio (width / height) of the rectangle, [low, high]."""
    mixup: Annotated[float, Field(ge=0, le=100), LATER] = 0.0
    """MixUp: each image is blended with its neighbour in the batch, and so is the loss, by a share drawn from
    Beta(x, x); 0: not at all. Needs an even number of rows per worker and step
    (with data.neighbours a multiple of 2, 4, ... of those)."""
    cutmix: Annotated[float, Field(ge=0, le=100), LATER] = 0.0
    """CutMix: each image gets a rectangle of its neighbour in the batch, whose area is drawn by Beta(x, x); 0: not at
    all. With mixup too, each image has one or the other by even chance."""
    views: Annotated[int, Field(ge=1, le=64), LATER] = 1
    """Repeated augmentation: each image stands in its batch so many times, in different views; an epoch has that many
    times as many steps. A divisor of train.global_batch."""

    @property
    def random(self) -> bool:
        """Whether an image looks different from epoch to epoch."""
        return self.decoded is not None or self.on_device

    @property
    def decoded(self) -> AugmentConfig | None:
        """What of it decoding tasks do; None if nothing: then every epoch has the same pixels."""
        jitter = self.brightness + self.contrast + self.saturation + self.hue
        if self.crop_scale is None and not self.rotate and not jitter and self.policy == "none":
            return None
        elsewhere = {"hflip": 0.0, "vflip": 0.0, "erase": 0.0, "mixup": 0.0, "cutmix": 0.0, "views": 1}
        return self.model_copy(update=elsewhere)

    @property
    def on_device(self) -> bool:
        """Whether some of it is done by the device, on whole batches: flips, erasing, mixing."""
        return self.hflip > 0 or self.vflip > 0 or self.erase > 0 or self.mixes

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others."""
        return self.mixup > 0 or self.cutmix > 0

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        for name in ("crop_scale", "crop_ratio", "erase_scale", "erase_ratio"):
            pair = getattr(self, name)
            if pair is not None and pair[0] > pair[1]:
                raise ValueError(f"{name} must be [low, high] with low <= high")
        return self
