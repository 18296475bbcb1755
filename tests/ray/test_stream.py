import numpy as np
import pyarrow as pa
import pytest

from raycnn.data.dataset import ScanOrder, stream
from raycnn.data.decode import Limits
from raycnn.data.reader import ImageReader, Images
from raycnn.data.transforms import Preprocessing
from raycnn.errors import StorageError
from raycnn.training.transfer import one_ahead

PREP = Preprocessing(8, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
TABLE = pa.table({"key": [f"k{n}" for n in range(40)]})


def test_an_error_of_the_store_in_a_task_comes_out_as_itself(local_ray):
    class Failing(ImageReader):
        def read(self, table, rows, epochs):
            raise StorageError("the store is down", where="s3://b")

    batches = stream(Failing("/x", PREP, Limits(1, 1)), TABLE, ScanOrder(40, 4, 2), task_cpus=0.5)
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
