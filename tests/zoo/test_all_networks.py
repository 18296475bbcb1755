"""Every torchvision CNN and one member of many timm families: at every depth, prefix then suffix is the network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from raycnn.models.batchnorm import set_mode
from raycnn.models.stages import Split, Stages, find
from raycnn.models.zoo import Network, build, names

pytestmark = pytest.mark.slow

TRANSFORMERS = ("vit_", "swin_", "maxvit_")
TORCHVISION = [f"torchvision/{name}" for name in names("torchvision") if not name.startswith(TRANSFORMERS)]
TIMM = [
    "convmixer_768_32", "convnext_atto", "convnextv2_atto", "cs3darknet_s", "cspresnet50", "densenet121",
    "dla46_c", "dpn48b", "eca_nfnet_l0", "ecaresnet26t", "efficientnet_lite0", "ese_vovnet19b_slim",
    "fasternet_t0", "fastvit_t8", "fbnetc_100", "focalnet_tiny_srf", "gernet_s", "ghostnet_050",
    "hardcorenas_a", "hgnetv2_b0", "hrnet_w18_small", "inception_next_atto", "inception_resnet_v2",
    "inception_v3", "inception_v4", "lcnet_050", "legacy_seresnet18", "legacy_xception", "mambaout_femto",
    "mixnet_s", "mnasnet_small", "mobilenetv2_050", "mobilenetv3_small_050", "mobilenetv4_conv_small",
    "mobileone_s0", "nf_resnet26", "pnasnet5large", "poolformer_s12", "rdnet_tiny", "regnetz_b16",
    "regnety_002", "repghostnet_050", "repvgg_a0", "res2net50_14w_8s", "resnest14d", "resnet10t",
    "resnetv2_50x1_bit", "rexnet_100", "selecsls42", "semnasnet_050", "seresnext26d_32x4d", "skresnet18",
    "spnasnet_100", "starnet_s050", "tf_efficientnet_lite0", "tinynet_e", "tresnet_m", "xception41p",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_lists_are_as_long_as_promised() -> None:
    assert len(TORCHVISION) == 68
    assert len(TIMM) >= 30


@pytest.mark.parametrize("name", [*TORCHVISION, *(f"timm/{name}" for name in TIMM)])
def test_prefix_then_suffix_is_the_network_at_every_depth(name: str) -> None:
    network = build(name, 5, seed=0)
    stages = find(network)
    assert stages.cuttable
    assert_covers_every_parameter_once(stages, network.module)
    images = smallest_images(network)
    calibrate(network.module, images)
    splits = [stages.split(depth) for depth in range(stages.num_stages)] + [stages.split("all")]
    for split in splits:
        assert_same_names(split, network.module)
    for mode in (False, True):
        for part in (network.module, *(m for split in splits for m in (split.prefix, split.suffix) if m is not None)):
            part.train(mode)
        whole = seeded(network.module, images)
        assert not torch.allclose(whole[0], whole[1], rtol=1e-3), "the logits say nothing"
        for split in splits:
            assert_equals_whole(split, images, whole)
    assert_prefix_stands_still(splits[0], images)


def assert_covers_every_parameter_once(stages: Stages, module: nn.Module) -> None:
    covered = [name for stage in (*stages.stages, stages.head) for name in stage.parameter_names]
    assert len(covered) == len(set(covered))
    assert set(covered) == {name for name, _ in module.named_parameters()}
    assert stages.num_stages >= 1
    assert all(stage.parameters > 0 for stage in (*stages.stages, stages.head))
    assert len({stage.name for stage in stages.stages}) == stages.num_stages


def assert_same_names(split: Split, module: nn.Module) -> None:
    prefix = {} if split.prefix is None else split.prefix.state_dict(keep_vars=True)
    suffix = split.suffix.state_dict(keep_vars=True)
    assert not prefix.keys() & suffix.keys()
    whole = module.state_dict(keep_vars=True)
    parts = prefix | suffix
    assert parts.keys() == whole.keys()
    assert all(parts[name] is whole[name] for name in whole)


def assert_equals_whole(split: Split, images: Tensor, whole: Tensor) -> None:
    def in_two(images: Tensor) -> Tensor:
        between = images if split.prefix is None else split.prefix(images)
        before = between.clone()
        logits = split.suffix(between)
        assert torch.equal(between, before), "the suffix writes to the prefix's output"
        return logits

    assert torch.equal(seeded(in_two, images), whole)


def assert_prefix_stands_still(split: Split, images: Tensor) -> None:
    """One training step of the head."""
    set_mode(split, "local")
    buffers = {name: buffer.clone() for name, buffer in split.prefix.named_buffers()}
    split.suffix(split.prefix(images)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in split.suffix.parameters())
    assert all(parameter.grad is None for parameter in split.prefix.parameters())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in split.prefix.named_buffers())


@torch.no_grad()
def seeded(call, images: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return call(images)


def smallest_images(network: Network) -> Tensor:
    """float32[2, 3, S, S], S the least that the network can train on."""
    for size in (32, 64, 96, 128):
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
        try:
            if seeded(network.module.train(), images).isfinite().all():
                return images
        except (RuntimeError, ValueError, AssertionError):
            continue
    raise AssertionError("no size works")


def calibrate(module: nn.Module, images: Tensor) -> None:
    """Fit BatchNorm's statistics to the images; random ones let the signal vanish in eval mode."""
    module.eval()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.reset_running_stats()
            layer.momentum = None  # a plain average
            layer.training = True
    seeded(module, images)
