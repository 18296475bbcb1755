"""Tests of a scenario carry its name, `@pytest.mark.scenario("worker kill -9")`; the session ends with a table."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.faults.kit.scenarios import SCENARIOS, Seen, Table

os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it once, when some test's module first imports it

_TABLE = pytest.StashKey[Table]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TABLE] = Table()


@pytest.fixture(autouse=True)
def seen(request: pytest.FixtureRequest) -> Iterator[Seen | None]:
    """What this test sees of its scenario, for the table; None if it is of none."""
    mark = request.node.get_closest_marker("scenario")
    if mark is None:
        yield None
        return
    (scenario,) = mark.args
    assert scenario in SCENARIOS, f"no such scenario: {scenario}"
    case = request.node.name.removeprefix("test_").replace("_", " ")
    row = Seen(scenario, case)
    request.config.stash[_TABLE].rows.append(row)
    yield row
    row.passed = getattr(request.node, "passed", False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):  # type: ignore[no-untyped-def]
    report = yield
    if report.when == "call":
        item.passed = report.passed  # type: ignore[attr-defined]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    table = config.stash[_TABLE]
    if table.rows:
        terminalreporter.write_line("")
        for line in table.lines():
            terminalreporter.write_line(line)
