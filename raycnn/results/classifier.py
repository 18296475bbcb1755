"""A trained network as a module of its own, with its preprocessing and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from raycnn.config import Given
from raycnn.config.given import NOTHING
from raycnn.data.decode import Limits, decode
from raycnn.data.transforms import eval_view
from raycnn.models.weights import load_state
from raycnn.training.calibration import Calibration
from raycnn.training.device import Normalize, choose_precision, in_chunks, to_device
from raycnn.training.serialize import decode_weights
from raycnn.training.setup import network_of
from raycnn.training.state import NetworkFacts


class Classifier(nn.Module):
    """uint8 images to logits (or numbers in standard deviations, see problem), in eval mode.

    Args:
        network: the trained network, normalised images_NCHW to logits_NK.
        facts: its name, classes and preprocessing.
        precision: of autocast.
    """

    def __init__(self, network: nn.Module, facts: NetworkFacts, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network, self.facts, self.precision = network, facts, precision
        self.normalize = Normalize(facts.preprocessing)
        self.classes, self.problem = facts.classes, facts.problem
        self.calibration = Calibration()
        self.preprocessing = facts.preprocessing
        self.eval()

    @classmethod
    def load(
        cls, weights: bytes, facts: NetworkFacts, precision: str, device: torch.device, given: Given = NOTHING
    ) -> Classifier:
        """From the bytes of a checkpoint."""
        network = network_of(facts, given).module
        load_state(network, decode_weights(weights), where="weights.safetensors")
        network.to(memory_format=torch.channels_last)
        return cls(network, facts, choose_precision(precision, device)).to(device)

    def forward(self, images_NHWC: Tensor) -> Tensor:
        """uint8[N, S, S, 3] to float32[N, K], in the chunks that training evaluated with."""
        enabled = self.precision is not torch.float32
        with torch.autocast(images_NHWC.device.type, dtype=self.precision if enabled else None, enabled=enabled):
            logits_NK: Tensor = in_chunks(self.network, self.normalize(images_NHWC), self.facts.chunk)
        return logits_NK.float()

    @torch.inference_mode()
    def logits(self, images_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The same from and to numpy."""
        device = self.normalize.mean.device
        return np.asarray(self(to_device(images_NHWC, device)).cpu().numpy())

    def predict(self, image: bytes | Path | Image.Image) -> dict[str, float]:
        """Probability of each class, or {value: the number}, for one image.

        Args:
            image: a file's path, its bytes, or an RGB PIL image.

        Raises:
            BadImage: the bytes are not a readable image.
        """
        if isinstance(image, Path):
            image = image.read_bytes()
        if isinstance(image, bytes):
            image = decode(image, Limits(max_pixels=2**31, max_bytes=2**31))
        outputs_1K = self.logits(eval_view(image, self.preprocessing)[None])
        return self.problem.named(outputs_1K, self.classes, self.calibration)[0]
