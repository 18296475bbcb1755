import numpy as np
import pyarrow as pa
import pytest
import ray
import torch

from raycnn.data import here as reading_here
from raycnn.data.dataset import ScanOrder, blocks, stream
from raycnn.data.decode import Limits
from raycnn.data.reader import ImageReader, Images
from raycnn.data.transforms import Preprocessing
from raycnn.errors import StorageError
from raycnn.storage.cache import Cache
from raycnn.training.transfer import one_ahead
from tests.support.feeds import World

PREP = Preprocessing(8, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
TABLE = pa.table({"key": [f"k{n}" for n in range(40)]})


@pytest.mark.parametrize("here", [False, True])
def test_an_error_of_the_store_comes_out_as_itself(here, local_ray):
    class Failing(ImageReader):
        def read(self, table, rows, epochs):
            raise StorageError("the store is down", where="s3://b")

    batches = stream(Failing("/x", PREP, Limits(1, 1)), TABLE, ScanOrder(40, 4, 2), task_cpus=0.5, here=here)
    with pytest.raises(StorageError, match="the store is down"):
        next(batches)


@pytest.mark.parametrize("threaded", [False, True])
def test_batches_come_in_the_order_planned(threaded, local_ray):
    class Blank(ImageReader):
        def read(self, table, rows, epochs):
            return Images(np.zeros((len(rows), 8, 8, 3), np.uint8), [""] * len(rows), 0, 0)

    batches = stream(Blank("/x", PREP, Limits(1, 1)), TABLE, ScanOrder(40, 4, 2), task_cpus=0.5)
    if threaded:
        batches = one_ahead(batches, lambda batch: None)
    assert np.concatenate([batch.rows for batch in batches]).tolist() == list(range(40))


@pytest.mark.parametrize("world", [1, 4])
def test_training_and_validation_of_all_ranks_fill_half_of_the_object_store_at_most(world, local_ray):
    order = ScanOrder(40, 4, 2, 0, world)
    dataset = blocks(ImageReader("/x", PREP, Limits(1, 1)), TABLE, order, task_cpus=0.5, first=0, last=1)
    limit = dataset.context.execution_options.resource_limits.object_store_memory
    assert 2 * world * limit == pytest.approx(ray.cluster_resources()["object_store_memory"] / 2)


def test_a_pack_keeps_the_same_of_images_that_are_read_here_and_through_ray(local_ray, tmp_path, monkeypatch):
    taps = []
    for bytes_here in (reading_here.FEW_BYTES, 0):
        monkeypatch.setattr(reading_here, "FEW_BYTES", bytes_here)
        world = World(tmp_path, Cache(tmp_path / f"cache-{bytes_here}", 10**8), total=5)
        feed = world.reusing(world.task(), {0: "activations"})
        feed.prepare(0, 5)
        taps.append([feed.batch(step).taps[0] for step in range(5)])
        feed.close()
    assert all(torch.equal(one, other) for one, other in zip(*taps, strict=True))
