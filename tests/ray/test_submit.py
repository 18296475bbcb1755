"""Jobs through `ray job submit` on a cluster that asks for a token."""

from __future__ import annotations

import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycnn.checks import cluster_authentication
from tests.support.ray_head import RayHead, ray_head


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head() as running:
        yield running
    assert not running.temp_dir.exists()
    with pytest.raises(urllib.error.URLError):
        status_of_jobs(running, None)


def submit(head: RayHead, environment: dict[str, str], *entrypoint: str) -> subprocess.CompletedProcess[str]:
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "job", "submit", "--address", head.dashboard_url, "--", *entrypoint]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def status_of_jobs(head: RayHead, token: str | None) -> int:
    request = urllib.request.Request(f"{head.dashboard_url}/api/jobs/")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_job_with_the_token_succeeds(head: RayHead) -> None:
    done = submit(head, head.environment, sys.executable, "-c", "print(40 + 2)")
    assert done.returncode == 0, done.stderr
    assert "42" in done.stdout.split("\n")


def test_job_that_fails_ends_in_failure(head: RayHead) -> None:
    assert submit(head, head.environment, sys.executable, "-c", "raise SystemExit(3)").returncode != 0


def test_job_without_the_token_is_refused(head: RayHead) -> None:
    refused = submit(head, head.without_token, sys.executable, "-c", "print(40 + 2)")
    assert refused.returncode != 0
    assert "42" not in refused.stdout.split("\n")
    assert "token" in (refused.stdout + refused.stderr).lower()


def test_job_api_asks_for_the_token(head: RayHead) -> None:
    token = head.token_file.read_text()
    assert [status_of_jobs(head, given) for given in (None, "0" * 64, token)] == [401, 403, 200]


def test_doctor_sees_the_authentication(head: RayHead) -> None:
    assert cluster_authentication(head.dashboard_url).ok is True


def test_doctor_joins_with_the_token_alone(head: RayHead) -> None:
    ask = f"from raycnn.checks import checks; print([c for c in checks(None, {head.address!r}) if 'cluster' in c.name])"
    for environment, found in ((head.environment, "asks for a token"), (head.without_token, "cannot be joined")):
        told = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True)
        assert found in told.stdout, told.stderr


def test_token_file_is_its_owners_alone(head: RayHead) -> None:
    assert stat.S_IMODE(head.token_file.stat().st_mode) == 0o600
