"""Weight files and checkpoints of an attacker: code 7 in one line, nothing runs, nothing unpacks without end."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.faults.kit.artifacts import COMMITS, MANIFESTS, WEIGHTS, Case, Payload
from tests.faults.kit.confined import CPU_S, MEMORY, Outcome, confined
from tests.faults.kit.scenarios import Seen

HARMFUL = ("os.mkdir", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess", "socket.connect")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    return confined("tests.faults.kit.artifacts:loading")


def check(outcome: Outcome, verdict: str) -> None:
    assert outcome.verdict.startswith(verdict)
    assert "\n" not in outcome.verdict
    assert len(outcome.verdict) < 2000
    assert outcome.cpu_s < CPU_S
    assert outcome.peak < MEMORY
    assert not [event for event in outcome.events if event.startswith(HARMFUL)]


@pytest.mark.parametrize("case", WEIGHTS, ids=lambda case: case.name)
def test_weight_file(case: Case, outcomes: dict[str, Outcome]) -> None:
    check(outcomes[case.name], case.verdict)


@pytest.mark.parametrize(("name", "verdict"), [(name, verdict) for name, _, _, verdict in COMMITS])
def test_commit_whose_hashes_are_right(name: str, verdict: str, outcomes: dict[str, Outcome]) -> None:
    check(outcomes[name], verdict)


@pytest.mark.scenario("half-written checkpoint")
@pytest.mark.parametrize("name", [name for name, _ in MANIFESTS])
def test_manifest_that_is_none(name: str, outcomes: dict[str, Outcome], seen: Seen) -> None:
    check(outcomes[f"manifest: {name}"], "step-00000001.e001")
    seen.what = "the commit before it is taken"


def test_the_payload_works_where_code_may_run(tmp_path: Path) -> None:
    hostile: Any = pickle.dumps(Payload(tmp_path / "trap"))
    pickle.loads(hostile)
    assert (tmp_path / "trap").exists()
