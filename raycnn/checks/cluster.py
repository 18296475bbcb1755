"""What a cluster is: joined, large enough, and closed to others."""

from __future__ import annotations

import logging

from raycnn.checks.check import Check
from raycnn.checks.machine import processors
from raycnn.dashboard import ADVICE, job_api


def cluster_authentication(dashboard_url: str) -> Check:
    """Whether the cluster's job API asks for a token; `ok` is False only where others than this machine reach it."""
    name, api = "cluster authentication", job_api(dashboard_url)
    if api.status is None:
        fix = "give the address at which its dashboard answers"
        return Check(name, None, f"{api.where} could not be asked: {api.failure}", fix)
    if api.is_open is None:
        fix = "give the address of the dashboard itself, not of a proxy before it"
        return Check(name, None, f"{api.where} answers /api/jobs/ with status {api.status}", fix)
    if not api.is_open:
        return Check(name, True, f"{api.where} asks for a token")
    if api.loopback:
        return Check(name, None, f"{api.where} runs jobs for everyone on this machine without a token", ADVICE)
    return Check(name, False, f"{api.where} runs anyone's jobs without a token", ADVICE)


def cluster_checks(address: str, workers: int) -> list[Check]:
    """Whether the cluster can be joined, has the processors, runs this machine's Ray, and asks for a token."""
    import ray

    try:
        with ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR) as context:
            resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            dashboard = context.dashboard_url
    except Exception as error:  # Ray's own, of many types
        fix = "check the address, the token (RAY_AUTH_MODE=token, ~/.ray/auth_token) and that both have the same Ray"
        return [Check("cluster", False, f"{address} cannot be joined: {' '.join(str(error).split())}", fix)]
    found = [processors(workers, int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))]
    if dashboard:
        return [*found, cluster_authentication(dashboard)]
    return [*found, Check("cluster authentication", None, "the cluster has no dashboard to ask")]
