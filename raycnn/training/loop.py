"""The training loop, as every rank runs it: for one fit, or for many that share each batch and the frozen prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raycnn.data.reader import PADDING
from raycnn.errors import RaycnnError
from raycnn.training.badrows import BadRows
from raycnn.training.clock import Clock, share
from raycnn.training.due import due
from raycnn.training.feed import Feed, next_batch
from raycnn.training.member import Member
from raycnn.training.monitor import Reporter
from raycnn.training.ranks import Ranks
from raycnn.training.validation import validate
from raycnn.training.verdict import EpochTimes, sentence, verdict


def train(
    members: Sequence[Member], feed: Feed, ranks: Ranks, bad_rows: BadRows, reporter: Reporter | None, clock: Clock,
    until: int | None = None, leaving: Callable[[], bool] = lambda: False, times: EpochTimes | None = None,
) -> bool:  # fmt: skip
    """Train members that all stand at the same step until each has ended or stands at step `until`, or any rank leaves.

    A member that fails has its error noted and leaves; what all depend on (the stream, the store) raises.

    Returns:
        Whether they were asked to leave before that.

    Raises:
        RaycnnError: the same on every rank.
    """
    while live := [member for member in members if not member.ended and member.state.step != until]:
        step = live[0].state.step
        with clock("data"):
            batch, error = next_batch(feed, step)
        error = error or next(filter(None, (member.recorder.failure() for member in live)), None)
        with clock("ranks"):
            agreed = ranks.agree(
                int((batch.rows != PADDING).sum()), leaving=leaving(),
                failed=error is not None, bad_rows=len(batch.failures),
            )  # fmt: skip
        if agreed.failed:
            ranks.raise_first(error)
        if agreed.bad_rows:
            failures = [failure for found in ranks.gather(batch.failures) for failure in found]
            for member in live:
                member.state = bad_rows.count(member.state, failures)
        if agreed.leaving:
            return True

        with clock("prefix"):
            inputs = feed.inputs(batch, {*feed.prefix.always, *(member.learner.base for member in live)})
            targets, valid = feed.targets(batch, inputs)
        for member in live:
            with member.failing_alone():
                member.step(inputs[member.learner.base], targets, valid, agreed.count, ranks)

        live = [member for member in live if not member.ended]
        evaluating = [member for member in live if member.evaluation_due()]
        if evaluating:
            with share([member.clock for member in evaluating], "evaluate"):
                found = validate([member.learner for member in evaluating], feed, ranks)
            for member, validated in zip(evaluating, found, strict=True):
                member.evaluated(*validated)
        if times:
            times.read(batch)
            if live and live[0].completes_an_epoch():
                conclude_epoch(live[0], times, ranks, reporter)
        for member in live:
            if member in evaluating or due(member.state.step, member.config.train.checkpoint_every, member.total):
                member.commit(evaluated=member in evaluating)
            member.settle()
        if reporter and live:
            report(reporter, live[0], clock, evaluated=bool(evaluating))
    return False


def conclude_epoch(member: Member, times: EpochTimes, ranks: Ranks, reporter: Reporter | None) -> None:  # all ranks
    """Say what the epoch's time went to."""
    found = verdict(ranks.gather(times.close()))
    epoch = round(member.epochs)
    member.line(epoch=epoch, **found)
    if reporter and (times.due() or member.state.step == member.total):
        reporter.line(sentence(epoch, found))


def close(member: Member, ranks: Ranks) -> RaycnnError | None:  # all ranks
    """Wait until everything that the member did is committed; returns its error, or why that failed, on every rank."""
    if member.error is None:
        member.commit(evaluated=False)
    return next(filter(None, ranks.gather(member.error or member.recorder.close())), None)


def report(reporter: Reporter, member: Member, clock: Clock, *, evaluated: bool) -> None:
    """Progress of a run for the driver's eyes."""
    metric = member.config.train.metric
    if evaluated:
        reporter.progress(**{f"val {metric}": member.state.evaluations[-1]["metrics"][metric]})
    if member.loss is not None:
        reporter.progress(loss=member.loss)
    reporter.progress(step=member.state.step, seconds=dict(clock.seconds))
