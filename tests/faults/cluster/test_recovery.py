"""P2, over all recoveries of the session; runs after the tests that cause them."""

from __future__ import annotations

import pytest

from tests.faults.kit import checker
from tests.faults.kit.scenarios import Seen


@pytest.mark.slow
@pytest.mark.scenario("worker kill -9")
def test_95_of_100_recoveries(recoveries: list[float], seen: Seen) -> None:
    if not recoveries:
        pytest.skip("nothing was broken in this session")
    assert checker.slow(recoveries) == []
    seen.recovery_s = checker.percentile_95(recoveries)
    seen.what = f"95th percentile of {len(recoveries)} faults of all kinds"
