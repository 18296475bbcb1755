"""Images that are damaged on their way, changed, or gone: read again, then a verdict of their own."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from raycnn.data.decode import Limits
from raycnn.data.index import build_index
from raycnn.data.manifest import Index
from raycnn.data.reader import ImageReader
from raycnn.data.transforms import Preprocessing
from raycnn.errors import DataError, StorageError
from raycnn.storage.s3 import S3Store
from raycnn.training.badrows import BadRows
from raycnn.training.state import NetworkFacts, TrainState
from tests.faults.kit.http_faults import Cut, Fault, Flip
from tests.faults.kit.operations import config_of
from tests.faults.kit.proxy import Proxy, Rule
from tests.faults.kit.scenarios import Seen
from tests.support.images import encode, pixels

PREPROCESSING = Preprocessing(16, 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
LIMITS = Limits(10**6, 10**6)
DAMAGE: dict[str, Fault] = {
    "flipped": Flip(-9),  # in the middle of a BMP's pixels, where no decoder notices
    "cut": Cut(100),
    "cut with the right length": Cut(100, honest=True),
}


@pytest.fixture
def images(store: S3Store) -> S3Store:
    """Six images in two class folders."""
    for number in range(6):
        store.put(f"images/{('cat', 'dog')[number % 2]}/{number}.bmp", encode(pixels(number, 20, 20), "BMP"))
    return store.child("images")


def table(images: S3Store, *, known: bool = True) -> pa.Table:
    """The rows of a manifest; known: with what was seen of the bytes when they were indexed."""
    rows = []
    for number, entry in enumerate(images.list()):
        digest = hashlib.sha256(images.get(entry.key)).digest() if known else None
        rows.append(
            {"key": entry.key, "offset": 0, "length": entry.size, "sha256": digest, "key_hash": number, "alias": None}
        )
    schema = {"key": pa.string(), "offset": pa.int64(), "length": pa.int64(), "sha256": pa.binary(32)}
    return pa.Table.from_pylist(rows, pa.schema([*schema.items(), ("key_hash", pa.uint64()), ("alias", pa.string())]))


def read(images: S3Store, rows: pa.Table) -> tuple[bytes, list[str]]:
    got = ImageReader(images.uri, PREPROCESSING, LIMITS).read(rows, np.arange(6), np.zeros(6, np.int64))
    return got.images_NHWC.tobytes(), got.reasons


def index(images: S3Store, storage: S3Store) -> Index:
    return build_index(config_of(f"{storage.uri}/run", images.uri), storage, lambda done, total: None)


@pytest.mark.scenario("body truncated, short or flipped")
@pytest.mark.parametrize("kind", DAMAGE)
def test_of_every_image_once(kind: str, proxy: Proxy, images: S3Store, seen: Seen) -> None:
    rows = table(images)
    clean = read(images, rows)
    proxy.rules = [Rule(DAMAGE[kind], "GET", f"*/{number}.bmp") for number in range(6)]
    assert read(images, rows) == clean
    assert clean[1] == [""] * 6
    assert len(proxy.faults()) == 6
    seen.what = "read again, the same pixels"


@pytest.mark.scenario("body truncated, short or flipped")
@pytest.mark.parametrize("kind", ["flipped", "cut with the right length"])
def test_of_one_image_always(kind: str, proxy: Proxy, images: S3Store, seen: Seen) -> None:
    rows = table(images)
    proxy.rules = [Rule(DAMAGE[kind], "GET", "*/dog/3.bmp", count=None)]
    assert read(images, rows)[1] == ["", "", "", "", "changed since it was indexed", ""]
    assert len(proxy.faults()) == 2
    seen.what = "two reads agree: it alone is bad"


@pytest.mark.scenario("body truncated, short or flipped")
def test_of_an_image_of_which_nothing_is_known(proxy: Proxy, images: S3Store) -> None:
    rows = table(images, known=False)
    clean = read(images, rows)
    proxy.rules = [Rule(Cut(100, honest=True), "GET", "*/1.bmp"), Rule(Flip(0), "GET", "*/2.bmp")]
    assert read(images, rows) == clean
    assert len(proxy.faults()) == 2


@pytest.mark.scenario("body truncated, short or flipped")
@pytest.mark.parametrize("kind", DAMAGE)
def test_while_indexing(kind: str, proxy: Proxy, images: S3Store, seen: Seen) -> None:
    storage = S3Store(images.bucket, f"{images.prefix}-storage")
    clean = index(images, storage.child("clean"))
    proxy.rules = [Rule(DAMAGE[kind], "GET", f"*/{number}.bmp") for number in range(6)]
    found = index(images, storage.child("once"))
    assert replace(found, path=clean.path) == clean
    assert len(proxy.faults()) == 6
    seen.what = "read again, the same index"


@pytest.mark.scenario("body truncated, short or flipped")
def test_while_indexing_always(proxy: Proxy, images: S3Store, seen: Seen) -> None:
    proxy.rules = [Rule(Cut(100, honest=True), "GET", "*/4.bmp", count=None)]
    storage = S3Store(images.bucket, f"{images.prefix}-storage")
    with pytest.raises(DataError, match=r"1 of 6 images cannot be used.*cat/4.bmp: changed while it was read"):
        index(images, storage)
    seen.what = "quarantined; above the budget code 3 with its key"


@pytest.mark.scenario("object changed or gone in mid-run")
def test_others_are_not_lost_with_it(proxy: Proxy, images: S3Store, seen: Seen) -> None:
    rows = table(images)
    images.put("cat/2.bmp", encode(pixels(99, 20, 20), "BMP"))
    images.delete(["dog/5.bmp"])
    pixels_seen, reasons = read(images, rows)
    assert reasons == ["", "changed since it was indexed", "", "", "", "missing"]
    assert pixels_seen.count(bytes(16 * 16 * 3)) == 2
    failures = [(row, reason) for row, reason in enumerate(reasons) if reason]
    state = TrainState(NetworkFacts("n", ("cat", "dog"), PREPROCESSING, 2))
    within = BadRows(rows, num_rows := 6, 0, budget=2 / num_rows).count(state, failures)
    assert within.bad_rows == {"cat/2.bmp": "changed since it was indexed", "dog/5.bmp": "missing"}
    with pytest.raises(DataError, match=r"2 of 6 images.*cat/2.bmp \(changed.*dog/5.bmp \(missing\)"):
        BadRows(rows, num_rows, 0, budget=0.3).count(state, failures)
    seen.what = "each its own verdict, counted; above the budget code 3 with the keys"


@pytest.mark.scenario("S3 down past the deadline")
def test_a_store_that_is_down_is_no_verdict_on_images(
    proxy: Proxy, images: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = table(images)
    proxy.down()
    monkeypatch.setattr("raycnn.data.reader.open_rows", lambda uri: S3Store(images.bucket, images.prefix, 0.5))
    with pytest.raises(StorageError, match="no answer"):
        read(images, rows)
