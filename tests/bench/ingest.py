"""Images a second into the training loop: raycnn, what else a user might pick, and the limit, in turn in one run."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3

from raycnn.demo.server import ObjectServer
from tests.bench.command import Row, config_of, timed
from tests.bench.pictures import write_tree
from tests.bench.pipelines import SIZE

ROUNDS = 3
NUM_IMAGES = 5000
PACE = 0.9
"""Of the rate that the stream reaches."""
BUCKET = "bench"
PEERS = Path(".venv-peers/bin/python")
"""Where LitData, WebDataset and MosaicML Streaming are installed; `make peers`."""
FORMATS = {"litdata": "LitData", "webdataset": "WebDataset", "mosaic": "MosaicML Streaming"}

Side = tuple[str, str]
"""A pipeline's name and its source."""


def ingest(root: Path) -> list[Row]:
    """Medians of ROUNDS, the sides by turns."""
    write_tree(root / "photos", NUM_IMAGES)
    with ObjectServer(root / "objects") as server:
        os.environ.update(server.environment)
        server.make_bucket(BUCKET)
        upload(root / "photos", "photos")
        files, objects = str(root / "photos"), f"s3://{BUCKET}/photos"
        index, remote = index_of(files, root), index_of(objects, root)
        small, kept = (index_of(shards_of(objects, root, *flags), root) for flags in ((), ("--keep-bytes",)))
        sides: dict[str, Side] = {
            "raycnn": ("raycnn", index),
            "threads": ("threads", index),
            "limit": ("limit", files),
            "DataLoader": ("torch_loader", files),
            "Ray Data": ("ray_data", files),
            "objects": ("raycnn", remote),
            "shards": ("neighbours", small),
            "kept": ("neighbours", kept),
        }
        for peer in FORMATS if PEERS.exists() else ():
            run("write", peer, files, str(root / peer))
            upload(root / peer, peer)
            sides[peer] = (peer, f"s3://{BUCKET}/{peer}")
        found = by_turns(sides)
        paced = starving(index, PACE * found["raycnn"])
    return [*rows_of(found), paced]


def rows_of(found: dict[str, float]) -> list[Row]:
    """What is held against what."""
    compared = [
        ("ingest from files", "raycnn", "DataLoader", "torch DataLoader, 2 workers", ">= 2"),
        ("ingest from files", "raycnn", "Ray Data", "Ray Data read_images, map_batches", ">= 4"),
        ("decode path in bare threads", "threads", "limit", "simplejpeg alone, the limit", ">= 0.8"),
        ("ingest from files", "raycnn", "threads", "the decode path in bare threads", ">= 0.75"),
        *(("ingest from S3, kept bytes", "kept", peer, f"{name}'s format", ">= 1.2") for peer, name in FORMATS.items()),
        ("ingest from S3, tar shards", "shards", "objects", "one object each", ">= 1.8"),
    ]
    return [_row(*each, found) for each in compared if each[2] in found]


def _row(what: str, ours: str, theirs: str, label: str, goal: str, found: dict[str, float]) -> Row:
    mine, other = found[ours], found[theirs]
    return f"{what}, images/s", f"{mine:.0f}", f"{label} {other:.0f}", f"{mine / other:.2f}", goal


def starving(index: str, rate: float) -> Row:
    """Whether one that takes a little less than the stream can give ever waits for it."""
    runs = [json.loads(run("paced", index, str(rate))) for _ in range(ROUNDS)]
    steady, waited = (statistics.median(each[name] for each in runs) for name in ("steady", "waited"))
    name, ours = f"taken at {PACE:g} of the rate from files, images/s", f"{steady:.0f} ({waited:.1%} of steps waited)"
    return name, ours, f"no wait at all {rate:.0f}", f"{steady / rate:.3f}", ">= 0.99"


def by_turns(sides: dict[str, Side]) -> dict[str, float]:
    """The median steady rate of each side, of a peer in the rounds that it gets through."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            try:
                rates[name].append(json.loads(run(*side))["steady"])
            except subprocess.CalledProcessError:
                if name not in FORMATS:
                    raise
                print(f"{name}: failed in this round", file=sys.stderr, flush=True)
                continue
            print(f"{name}: {rates[name][-1]:.0f} images/s", file=sys.stderr, flush=True)
    return {name: statistics.median(each) for name, each in rates.items() if each}


def run(name: str, *arguments: str) -> str:
    """What a pipeline's own process prints last."""
    python = str(PEERS) if {name, *arguments[:1]} & {*FORMATS} else sys.executable
    command = [python, "-m", "tests.bench.pipelines", name, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, capture_output=True, env=environment, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        done.check_returncode()
    return (done.stdout.splitlines() or [""])[-1]


def index_of(source: str, root: Path) -> str:
    """STORAGE/index/HASH of a new index."""
    manifest: str = indexed(source, root)["manifest"]
    return manifest.rpartition("/")[0]


def shards_of(source: str, root: Path, *flags: str) -> str:
    """The manifest of a source's images in tar shards, in the object store."""
    folder = f"s3://{BUCKET}/shards{''.join(flags)}"
    shards: dict[str, str] = indexed(source, root, "--shard", "--shards.folder", folder, *flags)["shards"]
    return shards["source"]


def indexed(source: str, root: Path, *flags: str) -> dict[str, Any]:
    storage = root / ("runs-s3" if "://" in source else "runs")  # equal images at two addresses are one index
    config = config_of(root, storage, image_size=SIZE) | {"data": {"source": source}}
    return timed("index", config, root, *flags)[0]


def upload(folder: Path, prefix: str) -> None:
    client = boto3.client("s3")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda p: client.upload_file(str(p), BUCKET, f"{prefix}/{p.relative_to(folder)}"), files))
