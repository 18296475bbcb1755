"""python -m raycnn.demo: the main job on real input, on this machine alone. See `make demo`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raycnn import verbs
from raycnn.cluster import connect
from raycnn.config import Config, load_config
from raycnn.demo import data
from raycnn.demo.server import ObjectServer
from raycnn.errors import Preempted, RaycnnError
from raycnn.progress import Progress, quiet_logs

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"


def main() -> None:
    """Run the demo; everything stays below --folder, what it starts is stopped."""
    parser = argparse.ArgumentParser(prog="python -m raycnn.demo", description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo-output"), help="where objects and downloads lie")
    folder = parser.parse_args().folder.absolute()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(Preempted.code))  # so that what was started is stopped
    try:
        with ObjectServer(folder / "objects") as server:
            os.environ.update(server.environment)
            run(folder, server)
    except RaycnnError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)


def run(folder: Path, server: ObjectServer) -> None:
    """The demo against a running object store; its credentials are in the environment."""
    seconds: dict[str, float] = {}
    progress = Progress()
    quiet_logs()

    @contextmanager
    def phase(name: str, text: str) -> Iterator[None]:
        print(f"==> {text}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        yield
        progress.close()
        seconds[name] = time.perf_counter() - start

    with phase("upload", data.LICENCE):
        config = upload(folder, server)
    with phase("ray", "starting a private Ray on this machine"):
        ray = connect()
        ray.__enter__()
    try:
        with phase("index", f"indexing {config.data.source}"):
            index = verbs.index(config, show=progress.show)
        text = f"fine-tuning {config.model.name} on {config.train.workers} workers"
        with phase("train", f"{text}, at most {config.train.epochs:g} epochs"):
            trained = verbs.train(config, show=progress.show)
        with phase("evaluate", "evaluating the best checkpoint on the test split"):
            evaluation = verbs.evaluate(config)
        with phase("predict", "predicting a handful of images"):
            predicted = verbs.predict(handful(folder, server, config))
        with phase("probe", "frozen probe: logistic regression on pooled pretrained features, same rows"):
            probe = frozen_probe(config, Path(index["manifest"]).parent.name)
        with phase("search", "a small search of learning rates and unfreezing depths"):
            recipe = load_config(RECIPES / "solar-search.yaml", {"cache.folder": str(folder / "cache")})
            searched = verbs.search(recipe, show=progress.show)
    finally:
        ray.__exit__(None, None, None)
    show(config, folder, trained, evaluation, predicted, probe, searched, seconds)


def upload(folder: Path, server: ObjectServer) -> Config:
    """Put images and weights where a user would have them; the config that names them."""
    from raycnn.demo.weights import lite0_weights
    from raycnn.storage import open_store
    from raycnn.training.serialize import encode_weights

    server.make_bucket("solar")
    data.upload(data.fetch(folder / "downloads"), open_store("s3://solar/cells"))
    open_store("s3://solar/weights").put("tf_efficientnet_lite0.safetensors", encode_weights(lite0_weights()))
    return load_config(RECIPES / "solar.yaml")


def handful(folder: Path, server: ObjectServer, config: Config) -> Config:
    """Six images in a folder of their own, as a user's new ones would be."""
    from raycnn.storage import open_store

    inbox = open_store("s3://solar/inbox")
    for number, (key, content) in enumerate(data.cells(data.fetch(folder / "downloads"))):
        if number % 400 == 0:
            inbox.put(key.replace("/", "-"), content)
    return load_config(config, {"predict.source": "s3://solar/inbox", "predict.output": "s3://solar/inbox.parquet"})


def frozen_probe(config: Config, index_hash: str) -> dict[str, float | None]:
    """See raycnn.demo.probe; with the weights that the fine-tune started from."""
    from raycnn.data.manifest import read_index
    from raycnn.data.reader import COLUMNS
    from raycnn.demo.probe import frozen_probe as probe
    from raycnn.results.extract import of_start
    from raycnn.storage import open_store

    index = read_index(open_store(config.run.storage), index_hash, columns=[*COLUMNS, "label", "split"])
    return probe(config, of_start(config, index, lambda line: None, [0]), index)


def show(
    config: Config,
    folder: Path,
    trained: dict[str, Any],
    evaluation: dict[str, Any],
    predicted: dict[str, Any],
    probe: dict[str, float | None],
    searched: dict[str, Any],
    seconds: dict[str, float],
) -> None:
    """The one table, and where everything lies."""
    from raycnn.results.report import render
    from raycnn.searching.report import render as render_search

    print(render(evaluation, seconds=seconds, beside={"frozen probe": probe}))
    root = f"{config.run.storage}/{config.run.name}"
    print(
        f"\n{trained['status']} after {trained['epochs']:.3g} epochs, {trained['images_per_second']:.0f} images/s; "
        f"{sum(seconds.values()):.0f} s in all\n"
        f"run          {root}\n"
        f"checkpoints  {root}/checkpoints (the table is step {evaluation['step']}'s)\n"
        f"curves       {root}/metrics.jsonl, {root}/events (TensorBoard)\n"
        f"predictions  {predicted['output']}\n"
        f"objects      {folder / 'objects'} (the store is stopped; `make demo` starts it again)\n"
    )
    print(render_search(searched))


if __name__ == "__main__":
    main()
