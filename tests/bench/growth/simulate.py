"""A model of images on their way from an object store to GPUs: blocks, queues, and a clock that is only counted.

Every block goes through its stream's scheduling loop, a free CPU of some node, which fetches and decodes it, the loop
again, which gives blocks on in order, and the network. Ranks train in step: a round begins when each has its block.
Gradients cost nothing here. There is no chance: the same numbers in give the same numbers out.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from raycnn.data.keyed import mix64
from tests.bench.growth.assumed import Cluster, Costs, Design, Load

BUSY = 0.75
"""What is busy for more than this share of the time, and busiest, is what limits: a loop rests between its turns, and
CPUs until the loop sees that they are free."""


@dataclass(frozen=True)
class Point:
    """What the model gives for one load.

    Attributes:
        images_s: over all ranks, once the first blocks that were decoded ahead are used up.
        limit: the resource that is busiest; "object store memory" if its size alone keeps tasks from starting, or
            "delays" if none is.
        shares: of the time that each resource is busy.
        requests_s, fetched_s, blocks_s: GETs, bytes from the store and blocks a second.
        images_in, images_out: decoded, and trained on, in all.
    """

    design: Design
    gpus: int
    gpu_rate: float
    images_s: float
    limit: str
    shares: dict[str, float]
    requests_s: float
    fetched_s: float
    blocks_s: float
    images_in: int
    images_out: int


@dataclass
class Queue:
    """One server after another's work: FIFO."""

    free: float = 0.0
    busy: float = 0.0

    def serve(self, now: float, seconds: float) -> float:
        """When work that comes now is done."""
        self.free = max(now, self.free) + seconds
        self.busy += seconds
        return self.free

    def used(self, now: float) -> float:
        """Seconds of work until now."""
        return self.busy - max(0.0, self.free - now)


@dataclass
class Stream:
    """A scheduling loop and the blocks it gives out, those of `ranks` in turn."""

    ranks: range
    total: int
    split_s: float
    busy: float = 0.0
    next: int = 0
    running: int = 0
    given: int = 0
    used: int = 0
    finished: list[int] = field(default_factory=list)
    waiting: dict[int, int] = field(default_factory=dict)
    nodes: dict[int, int] = field(default_factory=dict)

    def owner(self, number: int) -> tuple[int, int]:
        """The rank of a block, and its round."""
        return self.ranks[number % len(self.ranks)], number // len(self.ranks)


class Model:
    """One run; `point` runs it."""

    def __init__(self, costs: Costs, cluster: Cluster, load: Load, design: Design) -> None:
        self.costs, self.cluster, self.load, self.design = costs, cluster, load, design
        block_bytes = load.block_images * costs.view_bytes
        room = int(cluster.nodes * cluster.node_store_bytes / block_bytes / load.gpus)
        self.cramped, self.ahead = room < load.ahead, max(1, min(load.ahead, room))
        parts = [range(load.gpus)] if design == "ordered" else [range(rank, rank + 1) for rank in range(load.gpus)]
        split_s = costs.split_s if design == "ordered" and load.gpus > 1 else 0.0
        self.streams = [Stream(p, len(p) * load.rounds, split_s) for p in parts]
        ranks_on = Counter(rank // cluster.node_gpus for rank in range(load.gpus))
        free = [cluster.node_cpus - ranks_on[node] for node in range(cluster.nodes)]
        self.cpus = sum(free)
        self.free = deque(node for turn in range(max(free)) for node in range(cluster.nodes) if turn < free[node])
        self.tasks: deque[tuple[Stream, int]] = deque()
        self.store, self.head = Queue(), Queue()
        self.inward, self.outward = ([Queue() for _ in range(cluster.nodes)] for _ in range(2))
        self.decoding = self.training = 0.0
        self.arrived: Counter[int] = Counter()
        self.round, self.round_ends = 0, 0.0
        # neither the filling of what is ahead at the start nor its draining at the end
        self.counted = range(
            max(load.rounds - 5 * self.ahead, load.rounds // 2), max(load.rounds - self.ahead, load.rounds // 2 + 1)
        )
        self.over = 0
        self.marks: list[tuple[float, dict[str, float]]] = []
        self.images_in = self.images_out = 0
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.num_events = 0

    def at(self, when: float, what: Callable[[float], None]) -> None:
        self.num_events += 1
        heapq.heappush(self.events, (when, self.num_events, what))

    def point(self) -> Point:
        """Run to the end."""
        load, costs = self.load, self.costs
        for stream in self.streams:
            self.at(0.0, partial(self.turn, stream))
        while self.events:
            now, _, what = heapq.heappop(self.events)
            what(now)
        (since, before), (until, after) = self.marks
        seconds, images = until - since, (self.counted.stop - self.counted.start) * load.gpus * load.block_images
        shares = {name: (after[name] - before[name]) / seconds for name in after}
        shares["Train's controller"] = costs.controller_s * load.gpus
        rate = images / seconds
        return Point(
            self.design, load.gpus, load.gpu_rate, rate, self.limit(shares), shares,
            rate * costs.image_requests, rate * costs.image_bytes, rate / load.block_images,
            self.images_in, self.images_out,
        )  # fmt: skip

    def limit(self, shares: dict[str, float]) -> str:
        name = max(shares, key=lambda each: shares[each])
        if shares[name] >= BUSY:
            return name
        return "object store memory" if self.cramped else "delays"

    def busy(self, now: float) -> dict[str, float]:
        """Seconds of work until now; of what there is several of, those of the busiest or the mean."""
        return {
            "GPUs": self.training,
            "decoding CPUs": self.decoding / self.cpus,
            "scheduling loop": max(stream.busy for stream in self.streams),
            "object store requests": self.store.used(now),
            "network": max(queue.used(now) for queue in (*self.inward, *self.outward)),
            "Ray's head": self.head.used(now),
        }

    def turn(self, stream: Stream, now: float) -> None:
        """A scheduling loop takes what is finished, gives on what is in order, and starts what has room."""
        costs, done = self.costs, stream.finished
        stream.finished = []
        stream.running -= len(done)
        room = self.cpus - stream.running  # Ray Data starts no more tasks than there are CPUs, whoever else uses them
        # what is ahead grows by a block a round: only what the ranks leave over fills it
        until = stream.used + min(self.ahead, 2 + self.over) * len(stream.ranks)
        start = range(stream.next, min(stream.total, until, stream.next + room))
        stream.next = max(stream.next, start.stop)
        busy = costs.turn_s + costs.watch_s * stream.running
        busy += costs.block_s * (len(done) + len(start)) / 2 + stream.split_s * len(done)
        stream.busy += busy
        now += busy
        stream.running += len(start)
        for number in start:
            self.at(now, partial(self.announce, stream, number))
        stream.waiting.update((number, stream.nodes.pop(number)) for number in done)
        while stream.given in stream.waiting:
            self.at(now, partial(self.give, stream, stream.given, stream.waiting.pop(stream.given)))
            stream.given += 1
        if stream.given < stream.total:
            self.at(now + self.load.pace_s, partial(self.turn, stream))

    def announce(self, stream: Stream, number: int, now: float) -> None:
        """Ray's head notes a task."""
        self.at(self.head.serve(now, self.costs.gcs_s), partial(self.submit, stream, number))

    def submit(self, stream: Stream, number: int, now: float) -> None:
        """A task waits for a CPU."""
        self.tasks.append((stream, number))
        if self.free:
            self.begin(self.free.popleft(), now)

    def begin(self, node: int, now: float) -> None:
        """The first task in the queue fetches and decodes its block."""
        (stream, number), costs, load = self.tasks.popleft(), self.costs, self.load
        cpu = load.block_images * costs.image_cpu_s + costs.task_s + costs.raylet_s
        rank, turn = stream.owner(number)
        cpu *= 1 + load.spread * (2 * _draw(rank, turn) - 1)
        fetched = self.store.serve(now, load.block_images * costs.image_requests / self.cluster.requests_s)
        arrived = self.inward[node].serve(now, load.block_images * costs.image_bytes / self.cluster.node_bytes_s)
        waits = load.block_images * costs.image_requests * self.cluster.latency_s / 16
        self.images_in += load.block_images
        self.at(max(now + max(cpu, waits), fetched, arrived), partial(self.end, stream, number, node, cpu))

    def end(self, stream: Stream, number: int, node: int, cpu: float, now: float) -> None:
        """A block lies in its node's object store; the CPU is free."""
        self.decoding += cpu
        stream.nodes[number] = node
        stream.finished.append(number)
        self.free.append(node)
        if self.tasks:
            self.begin(self.free.popleft(), now)

    def give(self, stream: Stream, number: int, node: int, now: float) -> None:
        """A block travels to its rank."""
        rank, turn = stream.owner(number)
        home = rank // self.cluster.node_gpus
        if home != node:
            seconds = self.load.block_images * self.costs.view_bytes / self.cluster.node_bytes_s
            now = max(self.outward[node].serve(now, seconds), self.inward[home].serve(now, seconds))
        self.at(now, partial(self.receive, turn))

    def receive(self, turn: int, now: float) -> None:
        """A rank has its block; the round begins if it was the last to get one, and the round before is over."""
        self.arrived[turn] += 1
        while self.arrived[self.round] == self.load.gpus:
            seconds = max(self.load.block_images / self.load.gpu_rate, self.costs.rank_s)
            self.round_ends = max(now, self.round_ends) + seconds
            self.round += 1
            self.at(self.round_ends, self.use)

    def use(self, now: float) -> None:
        """A round is over: there is room for the next blocks."""
        self.training += self.load.block_images / self.load.gpu_rate
        self.over += 1
        if self.over in (self.counted.start, self.counted.stop):
            self.marks.append((now, self.busy(now)))
        self.images_out += self.load.block_images * self.load.gpus
        for stream in self.streams:
            stream.used += len(stream.ranks)


def simulate(costs: Costs, cluster: Cluster, load: Load, design: Design) -> Point:
    """What a cluster reaches with one of the designs."""
    return Model(costs, cluster, load, design).point()


def _draw(rank: int, turn: int) -> float:
    return int(mix64(np.array([rank << 32 | turn], np.uint64))[0]) / 2**64
