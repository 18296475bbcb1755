"""Broken manifests end in one line with code 3, or their bad rows in the quarantine; nothing is read beside them."""

from __future__ import annotations

import re

import pytest

from tests.faults.kit.confined import CPU_S, MEMORY, Outcome, confined
from tests.faults.kit.manifests import MANIFESTS, Case

HARMFUL = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess", "socket.connect", "pickle")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    return confined("tests.faults.kit.manifests:indexing")


@pytest.mark.parametrize("case", MANIFESTS, ids=lambda case: case.name)
def test_manifest(case: Case, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[case.name]
    assert re.fullmatch(".*".join(map(re.escape, case.verdict.split("..."))), outcome.verdict), outcome.verdict
    assert "\n" not in outcome.verdict
    assert len(outcome.verdict) < 2000
    assert outcome.cpu_s < CPU_S
    assert outcome.peak < MEMORY
    assert not [event for event in outcome.events if event.startswith(HARMFUL)]


def test_200_mutated_parquet_files() -> None:
    outcomes = confined("tests.faults.kit.manifests:mutated_parquet", "200", "20261124")
    assert len(outcomes) == 200
    strange = {n: o for n, o in outcomes.items() if not o.verdict.startswith(("3: ", "12 rows")) or o.peak > MEMORY}
    assert strange == {}
