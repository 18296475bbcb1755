"""The verbs as plain functions: a config in, the object that `--json` prints out.

Each takes a Config, a mapping or the path of a YAML file, and the address of the Ray to use: `local` starts a private
one on this machine, unless the process already uses one.

Those that build the network take one of your own as `model`, in the place of model.name: a function of the number of
outputs (a class is one) or a module, whose weights training then starts from. Those that train take a `loss`,
(logits_NK, targets) -> the loss of each row, float[N]. See docs/python.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raycnn.config import Config, Given, dated, load_config
from raycnn.opening import Show, Source, at_hand, build, held, open_run, settings_with, while_ray_starts

if TYPE_CHECKING:
    from raycnn.opening import Loss, Model


def _silent(progress: dict[str, Any], lines: list[str]) -> None:
    """Show nothing."""


def index(
    config: Source, *, shard: bool = False, address: str = "local", show: Show = _silent, verbose: bool = False
) -> dict[str, Any]:
    """Index the source: every object becomes a row of the manifest or is quarantined with a reason.

    Args:
        config: what to index.
        shard: also write the images as tar shards, see raycnn.data.shards and the section `shards`.
        address, show, verbose: as of all verbs.

    Returns:
        {rows, classes: {name: count}, splits: {name: count}, quarantined: [{key, reason}],
        quarantined_by: {split: {class: count}}, duplicates, manifest}; with `shard` also
        shards: {source: the data.source to train on, shards, rows, bytes, skipped: [{key, reason}]}

    Raises:
        ConfigError, DataError, StorageError
    """
    from raycnn.data.manifest import summary

    settings = dated(load_config(config))
    with while_ray_starts(lambda ray: build(settings, show, ray), address, verbose, torch=False) as index:
        found = summary(index)
        if shard:
            from raycnn.data.shards import write_shards
            from raycnn.storage import open_store

            def shown(done: int, total: int) -> None:
                show({"phase": f"shards: {done} of {total}"}, [])

            found["shards"] = write_shards(index, open_store(settings.run.storage), settings.shards, shown)
        return found


def train(
    config: Source, *, model: Model | None = None, loss: Loss | None = None, address: str = "local",
    show: Show = _silent, verbose: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Train the run to its end; continues from its newest checkpoint if it has one.

    Returns:
        {run, status: finished | stopped_early | preempted, epochs, steps, resumed_from, best: {step, metrics},
        checkpoint, seconds: {phase: s}, images_per_second, curves: [{epoch, train_loss, val_loss, gap}],
        advice: what the curves say of the settings, or None}. With train.folds and no train.fold, cross-validation:
        {run, status, metric, folds: [{fold, metrics, ...}], mean, sd, standard_error, predictions, suspects, seconds},
        see raycnn.searching.folds

    Raises:
        RaycnnError: see raycnn.errors for each kind.
    """
    settings = dated(settings_with(config, model, loss))
    if settings.train.folds and settings.train.fold is None:
        return _cross_validate(settings, address, show, verbose=verbose)
    opened = open_run(settings, "train")
    with held(opened, address, show, verbose=verbose) as (lease, index):
        from raycnn.training.fit import fit

        return fit(opened.config, opened.store, index, lease, show)


def _cross_validate(settings: Config, address: str, show: Show, *, verbose: bool) -> dict[str, Any]:
    from raycnn.searching.settings import ended_folds

    opened = open_run(settings, "folds")
    if ended := ended_folds(opened.config, opened.store, opened.facts):
        return ended
    with held(opened, address, show, verbose=verbose) as (lease, index):
        from raycnn.searching.folds import cross_validate

        return cross_validate(opened.config, opened.store, index, lease, show)


def search(
    config: Source, *, model: Model | None = None, loss: Loss | None = None, address: str = "local",
    show: Show = _silent, verbose: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Search the settings of `search.space`; continues a search of this run.name that was interrupted.

    Returns:
        {run, metric, trials: [{id, config, status, metrics, epochs, seconds, reason, ...}], best: {config, metrics,
        checkpoint, yaml}, prefix: {passes, cuts, cached_bytes, seconds}, confirm, test, seconds, ...}; that of a
        search which has ended is told again.

    Raises:
        RaycnnError: see raycnn.errors for each kind.
    """
    from raycnn.searching.former import find_former
    from raycnn.searching.settings import ended_result, settings_of

    wanted = settings_with(config, model, loss)
    settings = settings_of(dated(wanted))
    former = find_former(wanted.run.name, settings.run.name, settings.run.storage)
    opened = open_run(settings, "search")
    if ended := ended_result(opened.config, opened.store):
        return ended
    with held(opened, address, show, verbose=verbose) as (lease, index):
        from raycnn.searching.search import search as run

        return run(opened.config, opened.store, index, lease, show, former)


def lr_find(
    config: Source, *, model: Model | None = None, loss: Loss | None = None, address: str = "local",
    show: Show = _silent, verbose: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Find a value for optim.lr: train some steps at rising ones from the run's starting weights, and see the loss.

    The run itself, started or not, stays as it is.

    Returns:
        {run, valley, steep, curve: [{lr, loss, smoothed}], plot, seconds}; valley is the one to take, steep is where
        the loss falls fastest; both are None where it does not fall. plot: uri of a picture, None without matplotlib.

    Raises:
        RaycnnError: see raycnn.errors for each kind.
    """
    with at_hand(settings_with(config, model, loss), address, show, verbose) as (settings, store, pinned):
        from raycnn.results.lr_find import lr_find as run

        return run(settings, store, pinned, show)


def choose(
    config: Source, *, model: Model | None = None, address: str = "local", show: Show = _silent, verbose: bool = False
) -> dict[str, Any]:
    """Compare `choose.networks`, by linear heads on their frozen features at every cut; the run stays as it is.

    Returns:
        {run, metric, networks: [{network, weights, parameters, megabytes, macs, ms}], cuts: [{network, weights, depth,
        features, score, spread, scores, ms, train_ms, trainable, front}], recommended: {network, weights, depths,
        epoch_seconds: [least, most]}, training_rows, rows, folds, unreadable, yaml, plot, seconds}. score and spread
        are mean and deviation over the folds; front: no other cut is as good and as fast; yaml: model and search.space
        for a config; see raycnn.results.choice for what is recommended.

    Raises:
        RaycnnError: see raycnn.errors for each kind.
    """
    with at_hand(settings_with(config, model), address, show, verbose) as (settings, store, pinned):
        from raycnn.results.choose import choose as run

        return run(settings, store, pinned, show)


def evaluate(
    config: Source, *, model: Model | None = None, address: str = "local", show: Show = _silent, verbose: bool = False
) -> dict[str, Any]:
    """Evaluate a checkpoint of the run; see raycnn.results.evaluate."""
    from raycnn.cluster import connect
    from raycnn.results.evaluate import evaluate as run

    settings = dated(settings_with(config, model))
    show({"phase": "evaluating"}, [])
    with connect(address, verbose=verbose):
        return run(settings)


def predict(
    config: Source, *, model: Model | None = None, address: str = "local", show: Show = _silent, verbose: bool = False
) -> dict[str, Any]:
    """Predict images with a checkpoint of the run; see raycnn.results.predict."""
    from raycnn.cluster import connect
    from raycnn.results.predict import predict as run

    settings = dated(settings_with(config, model))
    show({"phase": "predicting"}, [])
    with connect(address, verbose=verbose):
        return run(settings)


def features(
    config: Source, *, model: Model | None = None, address: str = "local", show: Show = _silent, verbose: bool = False
) -> dict[str, Any]:
    """Write what the network says of images before its head, a row each; see raycnn.results.features."""
    with at_hand(settings_with(config, model), address, show, verbose) as (settings, store, pinned):
        from raycnn.results.features import features as run

        return run(settings, store, pinned, show)


def shift(
    config: Source, *, model: Model | None = None, address: str = "local", show: Show = _silent, verbose: bool = False
) -> dict[str, Any]:
    """How far the images of `shift.target` are from the training rows, on what goes into the head; writes no run.

    Returns:
        {run, network, weights: step-N or start, target, rows: looked at, distances: {target, halves, val, recalibrated,
        recalibrated_halves, same_shares: each {rows, frechet, auroc, a_distance} or None}, shares: {class: [training,
        estimated of the target]}, moved, drifted: [{key, logit}], advice, output, seconds}; see raycnn.results.compare.

    Raises:
        RaycnnError: see raycnn.errors for each kind.
    """
    with at_hand(settings_with(config, model), address, show, verbose) as (settings, store, pinned):
        from raycnn.results.shift import shift as run

        return run(settings, store, pinned, show)


def plan(
    config: Source, *, model: Model | None = None, loss: Loss | None = None, address: str = "local",
    show: Show = _silent, verbose: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """What `train` would do and need, without training; see raycnn.training.dryrun."""
    from raycnn.training.dryrun import dry_run

    settings = dated(settings_with(config, model, loss))
    with while_ray_starts(lambda ray: build(settings, show, ray), address, verbose) as index:
        return dry_run(settings, index)


def runs(storage: str) -> list[dict[str, Any]]:
    """The runs below a storage folder: [{run, status, step, metric}]; see raycnn.results.runs."""
    from raycnn.results.runs import list_runs

    return list_runs(storage)


def doctor(config: Source | None = None, *, address: str = "local") -> list[dict[str, Any]]:
    """What could keep a run from working here: [{name, ok, detail, fix}]; see raycnn.checks.

    Args:
        config: the run whose storage and source are tried; None: the machine and the cluster alone.
        address: the Ray to check.
    """
    from dataclasses import asdict

    from raycnn.checks import checks

    return [asdict(check) for check in checks(None if config is None else load_config(config), address)]


def load(run: str, step: int | str = "best", *, model: Model | None = None) -> Any:
    """A trained network with its preprocessing and labels, as a torch module.

    Args:
        run: uri of the run's folder, run.storage/run.name.
        step: which checkpoint: a step, best or latest.
        model: the network that was given to `train`, if one was.

    Returns:
        raycnn.results.classifier.Classifier
    """
    import torch

    from raycnn.results.inference import read_classifier
    from raycnn.storage import open_store
    from raycnn.training.run import find_commit

    given = Given()
    if model is not None:
        from raycnn.models.given import given_of

        given = given_of(model)
    store = open_store(run)
    _, commit = find_commit(store, step)
    return read_classifier(store, commit, "float32", torch.device("cpu"), given)
