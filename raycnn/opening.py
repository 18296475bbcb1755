"""What a verb needs before it begins: its settings with what is given beside them, the run's folder, its rows, a Ray.

Without torch and Ray until they are needed: whoever is refused need not wait for them.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from raycnn.config import Config, dated, identity, load_config

if TYPE_CHECKING:
    from torch import Tensor, nn

    Model = nn.Module | Callable[[int], nn.Module]
    Loss = Callable[[Tensor, Tensor], Tensor]

T = TypeVar("T")
Source = Config | dict[str, Any] | str | Path
Show = Callable[[dict[str, Any], list[str]], None]


def settings_with(config: Source, model: Model | None = None, loss: Loss | None = None) -> Config:
    """The config with what is given beside it; ConfigError if it names a network that is not given."""
    if model is None and loss is None:
        settings = load_config(config)
    else:
        from raycnn.models.given import with_given

        settings = with_given(config, model, loss)
    settings.given.require(settings.model.name)
    return settings


@contextmanager
def at_hand(config: Config, address: str, show: Show, verbose: bool) -> Iterator[tuple[Config, Any, Any]]:
    """(the config, the run's folder, the run's rows or else those of its source as it is now), with a Ray."""
    from raycnn.storage import open_store
    from raycnn.training.run import folder_of, read_run

    settings = dated(config)
    storage = open_store(settings.run.storage)
    store = folder_of(settings, storage)
    facts = read_run(store)
    with while_ray_starts(lambda ray: _rows(settings, storage, facts, show, ray), address, verbose) as index:
        yield settings, store, index


class Opened(NamedTuple):
    """A run's config as its index settles it, the root of run.storage, the run's folder, its facts if it has any."""

    config: Config
    storage: Any
    store: Any
    facts: Any


def open_run(config: Config, kind: str) -> Opened:
    """CheckpointError if the run was started as something else."""
    from raycnn.data.manifest import read_facts
    from raycnn.data.sources import class_names
    from raycnn.storage import open_store
    from raycnn.training.asked import of_labels, pinned_metric, settled
    from raycnn.training.run import check_classes, check_identity, check_kind, read_run

    storage = open_store(config.run.storage)
    store = storage.child(config.run.name)
    facts = read_run(store)
    if facts:
        check_kind(facts, kind, store.uri)
        pinned = read_facts(storage, facts.index)
        problem = of_labels(config.data.task, pinned["kind"], pinned["classes"])
        config = settled(config, problem, pinned_metric(problem, facts.identity))
        check_identity(config, facts, store.uri)
        check_classes(facts, class_names(config.data.source, config.data.task), config.data.source)
    return Opened(config, storage, store, facts)


@contextmanager
def held(opened: Opened, address: str, show: Show, *, verbose: bool) -> Iterator[tuple[Any, Any]]:
    """(the run's lease, its index), with a Ray."""
    from raycnn.training.run import hold

    config, storage, _, facts = opened

    def rows(ray: Callable[[], None]) -> Any:
        return _rows(config, storage, facts, show, ray)

    with hold(opened.store) as lease, while_ray_starts(rows, address, verbose) as index:
        yield lease, index


@contextmanager
def while_ray_starts(
    work: Callable[[Callable[[], None]], T], address: str, verbose: bool, *, torch: bool = True
) -> Iterator[T]:
    """With a Ray, what `work` returned; it is given what returns once Ray is there.

    Args:
        torch: whether it will be needed; importing it takes seconds.
    """
    import ray  # noqa: F401  before the threads, which would take turns with it: Ray's processes start the sooner

    from raycnn.cluster import connect

    started: Future[None] = Future()
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work(started.result))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # who is interrupted does not wait for it
    if torch:
        threading.Thread(target=importlib.import_module, args=("torch",), daemon=True).start()
    try:
        with connect(address, verbose=verbose):
            started.set_result(None)
            yield done.result()
    finally:
        started.cancel()  # if it did not start, it is not to be waited for


def _rows(config: Config, storage: Any, facts: Any, show: Show, ray: Callable[[], None]) -> Any:
    """The run's index, pinned or new, with the rows of its fold."""
    from raycnn.data.folds import as_fold, fold_of
    from raycnn.data.manifest import read_index

    index = read_index(storage, facts.index) if facts else build(config, show, ray)
    return as_fold(index, fold_of(identity(config)))


def build(config: Config, show: Show, ray: Callable[[], None]) -> Any:
    """The index of the source as it is now; `ray` returns once Ray is there."""
    from raycnn.data.index import build_index
    from raycnn.memory import release_freed_memory
    from raycnn.storage import open_store

    storage = open_store(config.run.storage)
    index = build_index(config, storage, lambda done, total: show({"indexed": done, "objects": total}, []), ray)
    release_freed_memory()  # what it took is a multiple of what it leaves
    return index
