"""The actor that trains the trials of one GPU (or core): they ask for their next evaluation, it takes turns.

Whoever holds a handle of an actor imports its module: this one is light, so that trials start without torch.
"""

from __future__ import annotations

import itertools
import logging
import socket
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from raycnn.errors import RaycnnError, encode_error
from raycnn.memory import importing
from raycnn.searching.seating import Seating

if TYPE_CHECKING:
    from raycnn.config import Config
    from raycnn.searching.costs import Costs
    from raycnn.searching.rank import PackRank
    from raycnn.searching.shares import Keeping, PackJob
    from raycnn.storage import Store
    from raycnn.training.checkpoint import Commit

Outcome = dict[str, Any]


class PackLostError(RaycnnError):
    """A pack cannot go on, or is gone; another crew may go on from the trials' commits."""


class Pack:
    """Rank 0 of a pack, or its only one. Its methods are called by many trials at once; one thread does the work.

    Args:
        peers: the other ranks' actors (`Peer`), in order; none for a pack of one.
    """

    def __init__(self, peers: list[Any]) -> None:
        _import_rank()
        logging.captureWarnings(True)
        self._peers = peers
        self._rank: PackRank
        self._seating = Seating()
        self._orders: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._paused = False
        self._tickets = itertools.count()
        self._ticket_of: dict[str, int] = {}
        self._keys: dict[str, str] = {}
        self._results: dict[str, deque[Outcome]] = defaultdict(deque)
        self._changed = threading.Condition()
        self._failure: str | None = None
        threading.Thread(target=self._work, daemon=True, name="pack").start()

    def begin(self, job: PackJob) -> None:
        """The driver's word, which it may not have yet while the actor starts; the first call."""
        self._order(lambda: self._begin(job))

    def join(self, trial: str, values: dict[str, Any], source: tuple[str, int] | None, spent_s: float) -> int:
        """Take a trial in, from its own newest commit or from another's (id, step); the ticket that it leaves with."""
        ticket: int = self._order(lambda: self._join(trial, values, source, spent_s))
        return ticket

    def advance(self, trial: str) -> Outcome:
        """Train the trial, and all that stand with it, to its next evaluation.

        Returns:
            {step, evaluation, metrics, seconds, status, error}; {"fatal": error} when the pack itself cannot go on.
        """
        with self._changed:
            if not self._results.get(trial):  # it was taken along before it asked
                self._seating.ask(trial, time.monotonic())
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._results.get(trial) or trial not in self._keys or self._failure)
            if self._failure:
                return {"fatal": self._failure}
            return self._results[trial].popleft() if self._results.get(trial) else {"status": "stopped"}

    def leave(self, trial: str, ticket: int | None = None) -> None:
        """The trial goes on no more; if it is training alone on its rank, it stops after this step.

        A ticket of before its last `join` is late and says nothing; None is for good.
        """
        with self._changed:
            if ticket is not None and ticket != self._ticket_of.get(trial):
                return
            if not self._peers:  # ranks that share a trial go on together to its next evaluation
                self._rank.stop(trial)
            self._seating.leave(trial)
            self._results.pop(trial, None)
            self._keys.pop(trial, None)
            self._changed.notify_all()
        self._order(lambda: self._everywhere("drop", trial))

    def pause(self) -> None:
        """Commit what trains after this step, and train nothing more; who asked, and asks, waits for its end."""
        self._paused = True
        self._rank.leaving = True

    def measure(self, values: list[dict[str, Any]]) -> Costs:
        """See Shares.measure; of rank 0."""
        costs: Costs = self._order(lambda: self._everywhere("shares.measure", values))
        return costs

    def keep(self, keeping: Keeping) -> None:
        """See Shares.keep."""
        self._order(lambda: self._everywhere("shares.keep", keeping))
        self._seating.gathers = any(choice != "activations" for choice in keeping.choices.values())

    def score(self, store: Store, commit: Commit, config: Config, block: Any) -> Any:
        """What a commit's network makes of a block of images, see inference.Scorer; rank 0 alone does it."""
        return self._order(lambda: self._rank.score(store, commit, config, block))

    def close(self) -> None:
        """See Shares.close; the last call."""
        self._order(lambda: self._everywhere("shares.close"))

    def counters(self) -> dict[str, Any]:
        """See Shares.counters; of rank 0."""
        counters: dict[str, Any] = self._order(self._rank.shares.counters)
        return counters

    def _order(self, work: Callable[[], Any]) -> Any:
        """Have the working thread do something between two turns."""
        done: Future[Any] = Future()
        with self._changed:
            self._orders.append((done, work))
            self._changed.notify_all()
        return done.result()

    def _work(self) -> None:
        while True:
            try:
                self._turn()
            except RaycnnError as error:
                self._fail(encode_error(error))
            except Exception as error:  # another rank has died, or a fault of this program
                self._fail(encode_error(PackLostError(f"a pack failed: {type(error).__name__}: {error}")))

    def _turn(self) -> None:
        """Wait for what comes next, and do it: an order, or training."""
        with self._changed:
            trials: list[str] = []
            while not self._orders and not (trials := self._next_turn()):
                self._changed.wait(self._seating.wait_s(time.monotonic()))
            order = self._orders.popleft() if self._orders else None
        if order is not None:
            _carry_out(*order)
            return
        outcomes = self._everywhere("train", trials)
        if not self._paused:
            self._tell(trials, outcomes)

    def _next_turn(self) -> list[str]:
        return [] if self._paused else self._seating.turn(time.monotonic())

    def _tell(self, turn: list[str], outcomes: dict[str, Outcome]) -> None:
        now = time.monotonic()
        with self._changed:
            for trial in turn:
                outcome = outcomes[trial]
                if trial not in self._keys:  # it left meanwhile
                    continue
                self._results[trial].append(outcome)
                if outcome["status"] or outcome["error"]:
                    self._seating.leave(trial)
                else:
                    self._seating.sit(trial, self._keys[trial], outcome["step"], now)
            self._changed.notify_all()

    def _fail(self, error: str) -> None:
        with self._changed:
            self._failure = error
            self._seating = Seating()
            self._changed.notify_all()

    def _begin(self, job: PackJob) -> None:
        from raycnn.searching.rank import open_rank

        rendezvous, world = _free_address() if self._peers else None, len(self._peers) + 1
        for number, peer in enumerate(self._peers, 1):
            peer.begin.remote(job, rendezvous, number, world)
        self._rank = open_rank(job, rendezvous, 0, world)

    def _join(self, trial: str, values: dict[str, Any], source: tuple[str, int] | None, spent_s: float) -> int:
        place = self._rank.place(trial, source)
        key, step = self._everywhere("join", trial, values, place, spent_s)
        with self._changed:
            self._keys[trial] = key
            self._ticket_of[trial] = ticket = next(self._tickets)
            self._seating.sit(trial, key, step, time.monotonic())
        return ticket

    def _everywhere(self, method: str, *arguments: Any) -> Any:  # all ranks
        import ray

        others = [peer.do.remote(method, *arguments) for peer in self._peers]
        found = self._rank.do(method, *arguments)
        if others:  # ray.get starts a Ray where there is none
            ray.get(others)
        return found


class Peer:
    """Another rank of a pack: does what rank 0 does, at the same time."""

    def __init__(self) -> None:
        _import_rank()
        self._rank: PackRank

    def begin(self, job: PackJob, rendezvous: str, rank: int, world: int) -> None:
        """Meet the others."""
        from raycnn.searching.rank import open_rank

        self._rank = open_rank(job, rendezvous, rank, world)

    def do(self, method: str, *arguments: Any) -> None:
        """Call a method of its PackRank, see there."""
        self._rank.do(method, *arguments)


def _import_rank() -> None:
    with importing():  # torch, which takes seconds
        import raycnn.searching.rank  # noqa: F401


def _carry_out(done: Future[Any], work: Callable[[], Any]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:
        done.set_exception(error)


def _free_address() -> str:
    """tcp:// address on this node that nobody listens on."""
    import ray

    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    with socket.socket() as found:
        found.bind(("", 0))
        return f"tcp://{address}:{found.getsockname()[1]}"
