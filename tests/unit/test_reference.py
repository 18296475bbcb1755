from __future__ import annotations

import pytest
import torch

from raycnn.models.reference import NETWORKS
from raycnn.models.stages import find
from raycnn.models.zoo import build
from tests.unit.test_heads import seeded

RECURRENT = ("rows_lstm", "rows_gru")


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        # c1 3*6*25+6, c3 6*16*25+16, c5 16*120*25+120, f6 120*84+84, output 84*10+10
        ("lenet", 10, 62_006),
        ("conv4", 1, 3_453_121),  # as the book prints it
        ("conv3", 10, 122_570),  # as the tutorial prints it
        ("digits", 10, 1_199_882),
        ("rows_lstm", 10, 4 * (128 * (28 + 128) + 2 * 128) + 4 * (128 * 256 + 2 * 128) + 1_290),
        ("rows_gru", 10, 3 * (128 * (28 + 128) + 2 * 128) + 3 * (128 * 256 + 2 * 128) + 1_290),
    ],
)
def test_a_network_has_the_parameters_of_its_source(name: str, classes: int, parameters: int) -> None:
    assert sum(p.numel() for p in NETWORKS[name].build(num_classes=classes).parameters()) == parameters


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_cut_into_stages_at_any_size(name: str) -> None:
    network = build(f"reference/{name}", 3, seed=0)
    stages = find(network)
    assert stages.cuttable
    assert stages.head.name == "head"
    assert stages.num_stages == (1 if name in RECURRENT else len([n for n in stages.modules if "." not in n]))
    for size in (NETWORKS[name].image_size, 64):
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        for training in (False, True):
            whole = seeded(network.module.train(training), images)
            assert whole.shape == (2, 3)
            assert not torch.equal(whole[0], whole[1])
            split = stages.split(0)
            for part in (split.prefix, split.suffix):
                part.train(training)
            assert torch.equal(seeded(lambda x, split=split: split.suffix(split.prefix(x)), images), whole)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_pool_before_the_flattening_changes_nothing_at_the_native_size(name: str) -> None:
    module = build(f"reference/{name}", 3, seed=0).module.eval()
    size = NETWORKS[name].image_size
    images = torch.randn(2, 3, size, size)
    before = module(images)
    module.pool = torch.nn.Identity()
    assert torch.equal(module(images), before)


@pytest.mark.parametrize("name", RECURRENT)
def test_rows_are_read_in_order_to_the_last(name: str) -> None:
    module = build(f"reference/{name}", 3, seed=0).module.eval()
    images = torch.rand(1, 3, 28, 28)
    changed, flipped = images.clone(), images.flip(2)
    changed[:, :, -1] += 1
    logits, after_last, from_below = (module(each)[0] for each in (images, changed, flipped))
    assert not torch.allclose(logits, after_last, atol=1e-4)
    assert not torch.allclose(logits, from_below, atol=1e-4)
