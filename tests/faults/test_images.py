"""Broken, odd and hostile images: each gets its documented verdict within 5 s and 256 MB, and nothing of it runs."""

from __future__ import annotations

import pytest

from tests.faults.kit.confined import CPU_S, MEMORY, Outcome, confined
from tests.faults.kit.corpus import CORPUS, Case
from tests.faults.kit.scenarios import Seen

BOMBS = [case for case in CORPUS if "bomb" in case.name or case.reason.startswith(("too many p", "too much"))]
OTHERS = [case for case in CORPUS if case not in BOMBS]
REASONS = ("empty", "not an image", "truncated", "corrupt", "too ", "unsupported ")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    return confined("tests.faults.kit.confined:images")


def check(case: Case, outcome: Outcome, seen: Seen) -> None:
    expected = case.reason or "RGB {}x{}".format(*case.size)
    assert outcome.verdict == expected
    assert outcome.cpu_s < CPU_S
    assert outcome.peak < MEMORY
    assert outcome.events == ()
    seen.what = f"{expected}; {outcome.peak / 1e6:.0f} MB, {outcome.cpu_s:.2f} s"


def test_the_corpus_has_enough_kinds() -> None:
    assert len({case.name for case in CORPUS}) == len(CORPUS) >= 40


@pytest.mark.scenario("odd and broken images")
@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.name)
def test_image(case: Case, outcomes: dict[str, Outcome], seen: Seen) -> None:
    check(case, outcomes[case.name], seen)


@pytest.mark.scenario("decompression bomb")
@pytest.mark.parametrize("case", BOMBS, ids=lambda case: case.name)
def test_bomb(case: Case, outcomes: dict[str, Outcome], seen: Seen) -> None:
    check(case, outcomes[case.name], seen)


@pytest.mark.scenario("odd and broken images")
def test_500_mutated_files(seen: Seen) -> None:
    outcomes = confined("tests.faults.kit.confined:images", "500", "20261124")
    assert len(outcomes) == 500
    strange = {
        name: outcome
        for name, outcome in outcomes.items()
        if not outcome.verdict.startswith(("RGB ", *REASONS))
        or outcome.cpu_s > CPU_S
        or outcome.peak > MEMORY
        or outcome.events
    }
    assert strange == {}
    good = sum(outcome.verdict.startswith("RGB ") for outcome in outcomes.values())
    assert 50 < good < 450
    seen.what = f"{good} converted, {500 - good} quarantined"


def test_the_confinement_sees_what_it_must() -> None:
    outcomes = confined("tests.faults.kit.confined:misdeeds", cpu_s=0.5)
    assert outcomes["touches too much"].peak > MEMORY
    assert outcomes["maps too much"].verdict.startswith("raised MemoryError")
    assert outcomes["hangs"].verdict == outcomes["hangs in C"].verdict == "died: signal 27"
    assert outcomes["opens a file"].events == ("open",)
    assert "exec" in outcomes["runs code"].events
    assert outcomes["is good"].verdict == "fine"
