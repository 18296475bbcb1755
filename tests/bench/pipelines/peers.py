"""What a user would pick instead: torch's DataLoader over files, Ray Data, and three formats of shards.

Each as its own documentation writes it. The formats are written by their own writers to a folder, which the bench puts
into the object store; PIL decodes and torchvision transforms, in WORKERS processes.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import v2

from tests.bench.pipelines import BATCH, MEAN, SIZE, STD, WORKERS

TRANSFORM = v2.Compose(
    [
        v2.RandomResizedCrop(SIZE),
        v2.RandomHorizontalFlip(),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ]
)
_SHARD_BYTES = 64 << 20


def torch_loader(folder: str) -> Iterator[int]:
    """torchvision's ImageFolder."""
    from torchvision.datasets import ImageFolder

    loader = torch.utils.data.DataLoader(ImageFolder(folder, TRANSFORM), BATCH, shuffle=True, num_workers=WORKERS)
    yield from _sizes(images for images, _ in loader)


def ray_data(folder: str) -> Iterator[int]:
    """read_images, which has all to be of one size to become a batch, then the transforms."""
    import ray

    def views(batch: dict[str, Any]) -> dict[str, Any]:
        return {"image": torch.stack([TRANSFORM(Image.fromarray(image)) for image in batch["image"]]).numpy()}

    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, logging_level="error", log_to_driver=False)
    dataset = ray.data.read_images(folder, mode="RGB").map_batches(views, batch_size=BATCH)
    dataset.context.enable_progress_bars = False
    yield from _sizes(batch["image"] for batch in dataset.iter_torch_batches(batch_size=BATCH))


class Encoded:
    """Bytes of a JPEG to its view, for those formats that keep them."""

    def __call__(self, sample: Any) -> torch.Tensor:
        data = sample["jpg"] if isinstance(sample, dict) else sample
        view: torch.Tensor = TRANSFORM(Image.open(io.BytesIO(data)).convert("RGB"))
        return view


def litdata(address: str) -> Iterator[int]:
    """LitData's StreamingDataset, chunks cached on the node."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import downloader

    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # the bench's server has no TLS
    with tempfile.TemporaryDirectory(prefix="raycnn-bench-") as cache:
        options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
        dataset = StreamingDataset(address, cache, shuffle=True, storage_options=options, transform=Encoded())
        yield from _sizes(StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS))


def webdataset(address: str) -> Iterator[int]:
    """WebDataset over addresses that anyone may read for an hour."""
    import boto3
    import webdataset as wds

    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")["Contents"]]
    sign = client.generate_presigned_url
    urls = [f"pipe:curl -s '{sign('get_object', Params={'Bucket': bucket, 'Key': key})}'" for key in keys]
    dataset = wds.WebDataset(urls, shardshuffle=len(urls)).shuffle(1000).map(Encoded())
    yield from _sizes(wds.WebLoader(dataset, batch_size=BATCH, num_workers=WORKERS))


def mosaic(address: str) -> Iterator[int]:
    """MosaicML Streaming, shards cached on the node."""
    from streaming import StreamingDataset

    class Views(StreamingDataset):
        def __getitem__(self, at: Any) -> torch.Tensor:
            return Encoded()(super().__getitem__(at))

    os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
    with tempfile.TemporaryDirectory(prefix="raycnn-bench-") as cache:
        dataset = Views(remote=address, local=cache, shuffle=True, batch_size=BATCH)
        yield from _sizes(torch.utils.data.DataLoader(dataset, BATCH, num_workers=WORKERS))


def write_litdata(files: list[Path], target: str) -> None:
    from litdata import optimize

    optimize(Path.read_bytes, files, target, chunk_bytes=_SHARD_BYTES, num_workers=WORKERS, verbose=False)


def write_webdataset(files: list[Path], target: str) -> None:
    import webdataset as wds

    Path(target).mkdir()
    with wds.ShardWriter(f"{target}/%05d.tar", maxsize=_SHARD_BYTES, verbose=0) as writer:
        for number, path in enumerate(files):
            writer.write({"__key__": f"{number:06}", "jpg": path.read_bytes()})


def write_mosaic(files: list[Path], target: str) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=target, columns={"jpg": "bytes"}, size_limit=_SHARD_BYTES) as writer:
        for path in files:
            writer.write({"jpg": path.read_bytes()})


WRITERS: dict[str, Callable[[list[Path], str], None]] = {
    "litdata": write_litdata, "webdataset": write_webdataset, "mosaic": write_mosaic,
}  # fmt: skip


def _sizes(batches: Any) -> Iterator[int]:
    for batch in batches:
        yield len(batch)
