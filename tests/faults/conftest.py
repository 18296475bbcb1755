"""Tests of a scenario carry its name, `@pytest.mark.scenario("worker kill -9")`; the session ends with a table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from tests.faults.kit.scenarios import SCENARIOS, Seen, Table

os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it once, when some test's module first imports it

_PROPERTY = "scenario"


class _Collector:
    """Gathers the rows out of the tests' reports, which come from other processes where tests run side by side."""

    def __init__(self) -> None:
        self._table = Table()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            rows = [value for name, value in report.user_properties if name == _PROPERTY]
            self._table.rows += [Seen(**row) for row in rows if isinstance(row, dict)]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in ["", *self._table.lines()] if self._table.rows else []:
            terminalreporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Collector())


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
    yield row
    row.passed = getattr(request.node, "passed", False)
    request.node.user_properties.append((_PROPERTY, asdict(row)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):  # type: ignore[no-untyped-def]
    report = yield
    if report.when == "call":
        item.passed = report.passed  # type: ignore[attr-defined]
    return report
