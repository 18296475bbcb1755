"""The baseline beside the demo's result: logistic regression on what the frozen pretrained network sees."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow.compute as pc

from raycnn.config import Config
from raycnn.data.manifest import Index
from raycnn.results.extract import Frozen, extract, gather
from raycnn.results.linear import fit
from raycnn.training.metrics import classification_metrics

_STRENGTH: Final = 0.005  # for two logits, as 0.01 is for one


def frozen_probe(config: Config, frozen: Frozen, index: Index) -> dict[str, float | None]:
    """Metrics on the test rows of a logistic regression fitted to all the others. Needs an initialised Ray.

    Args:
        config: how images are read.
        frozen: the pretrained network, cut before its head.
        index: with the columns COLUMNS, label and split.
    """
    features_NF = gather(extract(config, [frozen], index.source, index.manifest)).features[0][0]
    labels_N = index.manifest["label"].to_numpy().astype(np.int64)
    test_N = pc.equal(index.manifest["split"], "test").to_numpy()
    head = fit(features_NF[~test_N], labels_N[~test_N], "single-label", len(index.classes), _STRENGTH)
    return classification_metrics(head(features_NF[test_N]), labels_N[test_N])
