"""The baseline beside the demo's result: logistic regression on what the frozen pretrained network sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from raycnn.cluster import available_cpus
from raycnn.data.manifest import Index
from raycnn.data.reader import COLUMNS, ImageReader
from raycnn.models.stages import find
from raycnn.models.zoo import Network
from raycnn.training.device import Normalize, in_chunks, prepare
from raycnn.training.metrics import classification_metrics

_C = 0.01  # inverse strength of the L2 penalty, on standardised features
_CHUNK = 64


def frozen_probe(network: Network, reader: ImageReader, index: Index) -> dict[str, float | None]:
    """Metrics on the test rows of a logistic regression fitted to all the others.

    Args:
        network: with its pretrained weights.
        reader: the evaluation view of the index's source.
        index: with the columns COLUMNS, label and split.
    """
    fit_rows = pa.concat_tables([index.rows("train"), index.rows("val")])
    test_rows = index.rows("test")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=_C, max_iter=2000))
    model.fit(_features(network, reader, fit_rows), fit_rows["label"].to_numpy())
    log_probabilities_NK = model.predict_log_proba(_features(network, reader, test_rows)).astype(np.float32)
    return classification_metrics(log_probabilities_NK, test_rows["label"].to_numpy().astype(np.int64))


def _features(network: Network, reader: ImageReader, table: pa.Table) -> npt.NDArray[Any]:
    """What reaches the head of the network: float32[rows, features]."""
    prefix = find(network).split(0).prefix
    assert prefix is not None
    prefix.eval()
    normalize, table = Normalize(network.preprocessing), table.select(COLUMNS)
    threads = torch.get_num_threads()
    prepare(torch.device("cpu"), available_cpus())
    found = []
    try:
        for start in range(0, len(table), _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, len(table)), dtype=np.int64)
            images_NHWC = reader.read(table, rows, np.zeros_like(rows)).images_NHWC
            with torch.inference_mode():
                found.append(in_chunks(prefix, normalize(torch.from_numpy(images_NHWC)), _CHUNK).flatten(1).numpy())
    finally:
        torch.set_num_threads(threads)
    return np.concatenate(found)
