"""A whole training run on Ray while its object store fails all the time."""

from __future__ import annotations

import time
from collections import Counter

import pytest

import raycnn
from raycnn.cluster import connect
from raycnn.storage.aws import client
from raycnn.storage.s3 import S3Store
from tests.faults.kit.http_faults import Delay, Flip, Refuse, Reset
from tests.faults.kit.proxy import Proxy, Rule
from tests.faults.kit.scenarios import Seen
from tests.support.digits import digit_files
from tests.support.runs import final_hashes

SEED = 20_261_124


@pytest.mark.slow
@pytest.mark.scenario("S3 errors, resets, stalls")
def test_a_run_ends_with_the_same_bits(proxy: Proxy, store: S3Store, seen: Seen) -> None:
    for key, data in digit_files(8):
        store.put(f"images/{key}", data)
    with connect():  # its workers know the store by the proxy's address
        train(store, "clean")
        calm = time.monotonic()
        proxy.journal.clear()
        proxy.rules = nemesis(SEED)
        train(store, "faulty")
    proxy.rules = []
    hit = Counter(record.fault for record in proxy.journal if record.fault)
    print(f"seed {SEED}: {dict(hit)} of {len(proxy.journal)}, {time.monotonic() - calm:.0f} s")
    assert len(hit) == 6
    assert final_hashes(store.child("faulty")) == final_hashes(store.child("clean"))
    assert "Uploads" not in client().list_multipart_uploads(Bucket=store.bucket)
    seen.what = f"the same sha256; {sum(hit.values())} of {len(proxy.journal)} requests hit, seed {SEED}"
    seen.steps_lost = 0


def nemesis(seed: int) -> list[Rule]:
    """Of all requests about a quarter goes wrong; of the images' bodies a few are flipped."""
    shares = {Refuse(500): 0.06, Refuse(503, "SlowDown"): 0.06, Reset(): 0.05, Reset(late=True): 0.05, Delay(0.2): 0.05}
    flips = Rule(Flip(None), "GET", "*/images/*", count=None, chance=0.03, seed=seed)
    return [*(Rule(fault, count=None, chance=share, seed=seed) for fault, share in shares.items()), flips]


def train(store: S3Store, name: str) -> None:
    config = {
        "run": {"name": name, "storage": store.uri},
        "data": {"source": f"{store.uri}/images", "val_fraction": 0.2, "test_fraction": 0.0, "stratify": True},
        "model": {"name": "reference/lenet", "weights": "none"},
        "augment": {"crop_scale": [0.8, 1.0], "hflip": 0.0},
        "optim": {"name": "adamw", "lr": 0.005},
        "train": {
            **{"epochs": 3, "global_batch": 16, "chunk": 16, "workers": 2, "checkpoint_every": 4, "log_every": 3},
            "reuse": "none",  # the second run, too, fetches every image in every epoch
        },
    }
    assert raycnn.train(config)["status"] == "finished"
