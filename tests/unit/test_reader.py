import hashlib
import io
import time

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raycnn.config import AugmentConfig
from raycnn.data import reader as reading
from raycnn.data.decode import Limits
from raycnn.data.keeping import Keeper
from raycnn.data.plan import Plan, lying
from raycnn.data.reader import PADDING, ImageReader
from raycnn.data.transforms import Preprocessing
from raycnn.errors import StorageError
from raycnn.storage.cache import Cache
from raycnn.storage.local import LocalStore
from tests.support.caches import flip

PREP = Preprocessing(16, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
ZEROS = np.zeros(4, np.int64)


@pytest.fixture
def table(tmp_path):
    """Four images, one behind the other in a single object, as in a shard."""
    rows, shard = [], b""
    for number in range(4):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        data = buffer.getvalue()
        place = {"key": "shard.tar", "offset": len(shard), "length": len(data)}
        rows.append({**place, "sha256": hashlib.sha256(data).digest(), "key_hash": number})
        shard += data
    (tmp_path / "shard.tar").write_bytes(shard)
    return pa.Table.from_pylist(rows)


def reader(tmp_path, **changes):
    return ImageReader(str(tmp_path), PREP, Limits(10**6, 10**6), **changes)


def test_a_row_is_a_byte_range_and_its_view_does_not_depend_on_its_neighbours(table, tmp_path):
    everything = {"rotate": 20, "brightness": 0.3, "hue": 0.1, "policy": "randaugment"}
    views = reader(tmp_path, augment=AugmentConfig.model_validate(everything), seed=3)
    read = views.read(table, np.arange(4), ZEROS)
    together = read.images_NHWC
    assert read.reasons == [""] * 4
    assert together.shape == (4, 16, 16, 3)
    for row in range(4):
        alone = views.read(table, np.array([row]), np.zeros(1, np.int64)).images_NHWC
        assert np.array_equal(alone[0], together[row])
    assert not np.array_equal(views.read(table, np.arange(4), ZEROS + 1).images_NHWC, together)
    other_seed = reader(tmp_path, augment=AugmentConfig(), seed=4)
    assert not np.array_equal(other_seed.read(table, np.arange(4), ZEROS).images_NHWC, together)


def test_padding_and_bad_rows_are_black_and_good_ones_beside_them_are_not(table, tmp_path):
    shard = tmp_path / "shard.tar"
    data = bytearray(shard.read_bytes())
    data[table["offset"][2].as_py() + 60] ^= 1
    shard.write_bytes(data)
    read = reader(tmp_path).read(table, np.array([0, PADDING, 2, 3]), ZEROS)
    assert read.reasons == ["", "", "changed since it was indexed", ""]
    assert [bool(image.any()) for image in read.images_NHWC] == [True, False, False, True]


@pytest.fixture
def keeper(table, cache):
    found = Keeper.of(cache, table)
    yield found
    found.close()


def test_kept_bytes_are_fetched_once_and_give_the_same_images(table, tmp_path, keeper):
    augment = AugmentConfig()
    plain, ours = reader(tmp_path, augment=augment), reader(tmp_path, augment=augment, keeper=keeper)
    expected = [plain.read(table, np.arange(4), ZEROS + epoch).images_NHWC for epoch in range(2)]
    first = ours.read(table, np.array([2, PADDING, 0, 2]), ZEROS)
    assert first.kept <= 1  # of a row that is there twice
    assert ours.read(table, np.arange(4), ZEROS).kept == 2
    (tmp_path / "shard.tar").unlink()
    again = ours.read(table, np.arange(4), ZEROS + 1)
    assert (again.kept, again.reasons) == (4, [""] * 4)
    assert np.array_equal(first.images_NHWC[0], expected[0][2])
    assert np.array_equal(again.images_NHWC, expected[1])


def test_kept_bytes_that_differ_are_fetched_again(table, tmp_path, keeper, cache):
    ours = reader(tmp_path, keeper=keeper)
    expected = ours.read(table, np.arange(4), ZEROS).images_NHWC
    (rows,) = cache.folder.glob("*/*/rows")
    flip(rows, 40)
    read = ours.read(table, np.arange(4), ZEROS)
    assert (read.kept, read.reasons) == (3, [""] * 4)
    assert np.array_equal(read.images_NHWC, expected)
    assert ours.read(table, np.arange(4), ZEROS).kept == 4


def test_what_changed_in_the_store_is_not_kept(table, tmp_path, keeper):
    shard = tmp_path / "shard.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:40] + b"?" + data[41:])
    ours = reader(tmp_path, keeper=keeper)
    assert ours.read(table, np.arange(4), ZEROS).reasons == ["changed since it was indexed", "", "", ""]
    shard.write_bytes(data)
    read = ours.read(table, np.arange(4), ZEROS)
    assert (read.kept, read.reasons) == (3, [""] * 4)


def test_where_nothing_can_be_kept_images_are_fetched(table, tmp_path):
    (tmp_path / "file").touch()
    ours = reader(tmp_path, keeper=Keeper.of(Cache(tmp_path / "file", 10**6), table))
    for _ in range(2):
        read = ours.read(table, np.arange(4), ZEROS)
        assert (read.kept, read.reasons) == (0, [""] * 4)


def test_a_missing_object_is_a_verdict(table, tmp_path):
    (tmp_path / "shard.tar").unlink()
    assert reader(tmp_path).read(table, np.arange(4), ZEROS).reasons == ["missing"] * 4


def test_a_failing_store_is_an_error(table, tmp_path, monkeypatch):
    def refuse(self, *_):
        raise StorageError("down")

    monkeypatch.setattr("raycnn.storage.local.LocalStore.get", refuse)
    with pytest.raises(StorageError):
        reader(tmp_path).read(table, np.arange(4), ZEROS)


@pytest.mark.parametrize("slow", ["fetch", "decode"])
def test_the_seconds_say_whether_bytes_or_decoding_took_them(table, tmp_path, monkeypatch, slow):
    now, (place, name) = [0.0], {"fetch": (LocalStore, "get"), "decode": (reading, "decode")}[slow]
    whole = getattr(place, name)

    def slowly(*given):
        now[0] += 1
        return whole(*given)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(place, name, slowly)
    read = reader(tmp_path, fetch_threads=1).read(table, np.arange(4), ZEROS)
    assert (read.fetch_s, read.decode_s) == ((1, 0) if slow == "fetch" else (0, 4))  # one request for the four


def test_neighbours_of_a_shard_come_with_one_request_for_each_group(tmp_path, monkeypatch):
    rows, shard = [], b""
    for number in range(64):
        pixels = np.random.default_rng(number).integers(0, 256, (80, 100, 3), np.uint8)
        Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
        place = {"key": "shard.tar", "offset": len(shard), "length": len(buffer.getvalue())}
        rows.append(place | {"sha256": hashlib.sha256(buffer.getvalue()).digest(), "key_hash": number})
        shard += buffer.getvalue()
    (tmp_path / "shard.tar").write_bytes(shard)
    table, gets, get = pa.Table.from_pylist(rows), [], LocalStore.get
    monkeypatch.setattr(LocalStore, "get", lambda self, *place: gets.append(place) or get(self, *place))
    requests = {}
    for neighbours in (1, 8):
        plan = Plan(64, 16, 0, neighbours=neighbours, lying=lying(table))
        gets.clear()
        for step in range(12):
            read = reader(tmp_path).read(table, *plan.share(step))
            assert read.reasons == [""] * 16
        requests[neighbours] = len(gets)
    assert requests[8] <= 12 * 3 + 3  # two groups a step, three where an epoch ends inside of it
    assert requests[1] > 12 * 6
