"""Ranks of one, two and four are killed and stopped at exact steps; NaN; the same step again and again."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest

import raycnn
from raycnn.config import Config
from raycnn.errors import CheckpointError, DivergedError, NoProgressError
from raycnn.storage.lease import read_lease
from raycnn.training import checkpoint
from raycnn.training.serialize import decode_weights
from tests.faults.kit import checker
from tests.faults.kit.history import History
from tests.faults.kit.jobs import EVERY, Bench, Undisturbed, plan_of
from tests.faults.kit.scenarios import Seen
from tests.support.runs import final_hashes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]
Promises = Callable[[Config], History]


@pytest.mark.scenario("worker kill -9")
@pytest.mark.parametrize(
    ("world", "points"),
    [(1, (0, EVERY, -1)), (2, (1, EVERY + 1, -1)), (4, (EVERY - 1,))],
    ids=["1 rank", "2 ranks", "4 ranks"],
)
def test_kill_at_many_steps(
    world: int, points: tuple[int, ...], bench: Bench, undisturbed: Undisturbed, promises: Promises, seen: Seen
) -> None:
    whole = undisturbed(world)
    config = bench.config(f"killed-{world}", world)
    steps = [point % whole["step"] for point in points]
    for number, step in enumerate(steps):
        bench.faults_of(config).order("kill", step, number % world)
    raycnn.train(config)
    history = promises(config)
    assert len(history.faults) == len(points)
    assert checker.other_bits(final_hashes(bench.store(config)), whole) == []
    seen.what = f"killed at steps {', '.join(map(str, steps))}: same bits"


@pytest.mark.scenario("worker hangs")
def test_a_stopped_rank(bench: Bench, undisturbed: Undisturbed, promises: Promises, seen: Seen) -> None:
    config = bench.config("stopped", 2)
    bench.faults_of(config).order("stop", 7, 0)
    raycnn.train(config)
    history = promises(config)
    assert len(history.faults) == 1
    assert max(checker.recoveries(history)) < checker.RECOVERY_S
    assert checker.other_bits(final_hashes(bench.store(config)), undisturbed(2)) == []
    stopped = [
        process for process in psutil.process_iter(["status"]) if process.info["status"] == psutil.STATUS_STOPPED
    ]
    assert not [process for process in stopped if "RayTrainWorker" in " ".join(process.cmdline())]
    seen.what = "rank 0 stopped while the other waits in a collective: same bits"


@pytest.mark.scenario("same step kills it again and again")
def test_a_step_that_always_kills(bench: Bench, seen: Seen) -> None:
    config = bench.config("again", 1)
    bench.faults_of(config).order("kill", 0, once=False)
    with pytest.raises(NoProgressError, match="died 3 times after step 0 without a new checkpoint"):
        raycnn.train(config)
    history = bench.history(config)
    assert [start.step for start in history.starts] == [0, 0, 0]
    assert read_lease(bench.store(config)).released
    seen.what = "code 8 after three starts"


@pytest.mark.scenario("NaN or Inf")
def test_a_poisoned_batch(bench: Bench, seen: Seen) -> None:
    config = bench.config("poisoned", 1)
    bench.faults_of(config).order("nan", 7)
    with pytest.raises(
        DivergedError, match=r"NaN or Inf at step 7, learning rate 0\.\d+, images digit-\d/\d+.png"
    ) as told:
        raycnn.train(config)
    assert told.value.code == 4
    store = bench.store(config)
    newest = checkpoint.latest(store, read_lease(store))
    assert newest is not None
    assert newest.step <= 7
    weights = decode_weights(checkpoint.verified(store, newest, ["weights.safetensors"])["weights.safetensors"])
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    seen.what = f"code 4; the newest commit is of step {newest.step}, and finite"


@pytest.mark.scenario("other world size, other config")
def test_a_run_on_two_then_one_then_four_ranks(bench: Bench, promises: Promises, seen: Seen) -> None:
    for world, epochs in ((2, 0.5), (1, 0.9), (4, 1.3)):
        config = bench.config("worlds", world, **{"train.epochs": epochs})
        raycnn.train(config)
    history = promises(config)
    assert {each.world for each in history.steps} == {1, 2, 4}
    assert checker.other_rows(history, plan_of(config)) == []
    with pytest.raises(CheckpointError, match=r"optim\.lr: 0\.005 -> 0\.1") as told:
        raycnn.train(bench.config("worlds", 4, **{"optim.lr": 0.1}))
    assert told.value.code == 7
    seen.what = "2, then 1, then 4 ranks: the rows of the plan; another lr: code 7, optim.lr: 0.005 -> 0.1"
