from __future__ import annotations

import pytest
import torch

from raycnn.models.reference import NETWORKS, PREPROCESSING


def test_lenet_has_the_parameters_of_the_paper_for_three_channels() -> None:
    # c1 3*6*25+6, c3 6*16*25+16, c5 16*120*25+120, f6 120*84+84, output 84*10+10
    assert sum(p.numel() for p in NETWORKS["lenet"](num_classes=10).parameters()) == 62006


@pytest.mark.parametrize("size", [PREPROCESSING.image_size, 48])
def test_lenet_gives_logits(size: int) -> None:
    assert NETWORKS["lenet"](num_classes=3)(torch.zeros(2, 3, size, size)).shape == (2, 3)
