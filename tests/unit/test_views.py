"""Several views of one decoding, and what lies at a cut as one vector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raycnn.data.decode import Limits
from raycnn.data.reader import PADDING, ImageReader
from raycnn.data.transforms import Preprocessing
from raycnn.data.views import ViewsReader, apart, distinct
from raycnn.models.pooling import pooled
from raycnn.storage.cache import Cache
from tests.support.feeds import World

SMALL = Preprocessing(24, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
LARGE = Preprocessing(40, 0.875, "bicubic", (0.4,) * 3, (0.2,) * 3)


def test_views_that_differ_in_mean_alone_are_one() -> None:
    again = replace(SMALL, mean=(0.1,) * 3)
    assert distinct([SMALL, LARGE, again, replace(LARGE, image_size=41)]) == (
        [SMALL, LARGE, replace(LARGE, image_size=41)],
        [0, 1, 0, 2],
    )


@pytest.mark.parametrize("views", [[SMALL], [SMALL, LARGE]], ids=["one", "two"])
def test_each_view_is_what_a_reader_of_its_own_reads(views: list[Preprocessing], tmp_path: Path, cache: Cache) -> None:
    table = World(tmp_path, cache, 1).task().table
    rows, epochs = np.array([0, PADDING, 3, 5]), np.zeros(4, np.int64)  # the third is broken
    limits = Limits(10**6, 10**6)
    together = ViewsReader(str(tmp_path), views[0], limits, others=tuple(views[1:])).read(table, rows, epochs)
    assert together.reasons == ["", "", "changed since it was indexed", ""]
    for view, images_NHWC in zip(views, apart(together.images_NHWC, views), strict=True):
        alone = ImageReader(str(tmp_path), view, limits).read(table, rows, epochs)
        assert np.array_equal(images_NHWC, alone.images_NHWC)
        assert alone.images_NHWC[0].any()


def test_an_image_is_fetched_and_decoded_once(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(
        "raycnn.data.reader.decode", lambda data, limits: opened.append(1) or Image.new("RGB", (50, 50))
    )
    table = World(tmp_path, cache, 1).task().table
    reader = ViewsReader(str(tmp_path), SMALL, Limits(10**6, 10**6), others=(LARGE, replace(LARGE, image_size=64)))
    reader.read(table, np.array([0, 1]), np.zeros(2, np.int64))
    assert len(opened) == 2


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((2, 5, 4, 3), (2, 3)), ((2, 7, 7, 5), (1, 2)), ((2, 5, 7, 7), (2, 3)), ((2, 6, 5), (1,)), ((2, 5), ())],
)
def test_places_are_averaged_wherever_they_stand(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    activations = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = activations.mean(axes) if axes else activations
    torch.testing.assert_close(pooled(activations), expected)
    assert pooled(activations.bfloat16()).dtype == torch.float32
