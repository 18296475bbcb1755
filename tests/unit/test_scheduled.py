"""jobs/scheduled: each file valid for the tool that reads it; a rule holds each promise, notices its loss."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

from raycnn import verbs
from raycnn.cli import run
from raycnn.config import Config, dated, load_config
from raycnn.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    NoProgressError,
    Preempted,
    RunBusyError,
)
from raycnn.progress import Progress
from raycnn.searching import space
from raycnn.version import __version__

ROOT = Path(__file__).parents[2]
SCHEDULED = ROOT / "jobs" / "scheduled"
FILES = {path.name: path.read_text() for path in SCHEDULED.iterdir()}
KUBERNETES = "1.33"
# Another start is no better.
FINAL = {e.code for e in (ConfigError, DataError, DivergedError, RunBusyError, CheckpointError, NoProgressError)}


def fields(required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "properties": properties, "additionalProperties": False}


# What rayjob.yaml uses of ray.io/v1 RayJob, typed as KubeRay's own resource definition does; pods are Kubernetes' own.
NUMBER, STRING, FLAG, ANY = ({"type": name} for name in ("integer", "string", "boolean", "object"))
GROUP = {"rayStartParams": {"type": "object", "additionalProperties": STRING}, "template": ANY}
SIZES = dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), NUMBER)
WORKERS = fields("groupName minReplicas maxReplicas rayStartParams template", groupName=STRING, **SIZES, **GROUP)
CLUSTER = fields(
    "headGroupSpec",
    rayVersion=STRING,
    authOptions=fields("", mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=fields("", idleTimeoutSeconds=NUMBER, resources=ANY, securityContext=ANY),
    headGroupSpec=fields("rayStartParams template", **GROUP),
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
RAY_JOB = fields(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=ANY,
    spec=fields(
        "entrypoint rayClusterSpec",
        **dict.fromkeys(("entrypoint", "runtimeEnvYAML"), STRING),
        **dict.fromkeys(("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"), NUMBER),
        shutdownAfterJobFinishes=FLAG,
        rayClusterSpec=CLUSTER,
    ),
)


def parse(name: str, text: str) -> Any:
    """A unit as its sections, YAML as its documents (no part shared by an alias), the rest as text."""
    if name.endswith((".service", ".timer")):
        unit = configparser.RawConfigParser()
        unit.optionxform = str  # type: ignore[assignment, method-assign]
        unit.read_string(text)
        return {section: dict(unit[section]) for section in unit.sections()}
    return json.loads(json.dumps(list(yaml.safe_load_all(text)))) if name.endswith(".yaml") else text


class Scheduled:
    """The files, read as the tools that use them do; some of them changed."""

    def __init__(self, **changed: str) -> None:
        self.text = {**FILES, **changed}
        self.read = {name: parse(name, text) for name, text in self.text.items()}
        self.service, self.timer = self.read["raycnn-nightly.service"]["Service"], self.read["raycnn-nightly.timer"]
        self.crons = [self.one("cronjob.yaml")["spec"], self.one("rayjob-cron.yaml")["spec"]]
        self.job = self.crons[0]["jobTemplate"]["spec"]
        self.ray_job = self.one("rayjob.yaml", "RayJob")["spec"]
        self.ray = self.ray_job["rayClusterSpec"]
        groups = [self.ray["headGroupSpec"], *self.ray["workerGroupSpecs"]]
        self.templates = [group["template"] for group in groups]
        self.search, self.create, self.head, self.worker = self.pods = [
            *(cron["jobTemplate"]["spec"]["template"]["spec"] for cron in self.crons),
            *(template["spec"] for template in self.templates),
        ]
        self.containers = [container for pod in self.pods for container in pod["containers"]]

    def one(self, name: str, kind: str = "CronJob") -> Any:
        return next(document for document in self.read[name] if document["kind"] == kind)

    def codes(self, action: str) -> set[int]:
        rules = self.job["podFailurePolicy"]["rules"]
        return {n for rule in rules if rule["action"] == action for n in rule.get("onExitCodes", {}).get("values", [])}

    def commands(self) -> list[list[str]]:
        """Every command line that searches, from its first word on."""
        cron = next(line for line in self.text["crontab"].splitlines() if " raycnn " in line)
        lines = [
            cron[cron.index("raycnn ") : cron.index(" >>")],
            self.service["ExecStart"],
            shlex.join(self.search["containers"][0]["command"]),
            self.ray_job["entrypoint"],
        ]
        return [shlex.split(line) for line in lines]


def pinned(s: Scheduled) -> bool:
    project, ray = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"], s.ray["rayVersion"]
    asked = next(r.specifier for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    own = re.escape(f"registry.example.com/raycnn:{__version__}-ray{ray}")
    images = [container["image"] for container in s.containers]
    parts = (f"FROM rayproject/ray:{ray}-py", f"ray[default]=={ray}", f"raycnn-{__version__}-py3-none-any.whl")
    return (
        ray in asked
        and all(re.fullmatch(rf"{own}|registry\.k8s\.io/kubectl:v[0-9]+\.[0-9]+\.[0-9]+", image) for image in images)
        and all(part in s.text["Dockerfile"] for part in parts)
    )


def no_secret(s: Scheduled) -> bool:
    words = r"RAY_AUTH_TOKEN|AKIA|AWS_SECRET|AWS_ACCESS|(?i:password|secretKey|secretRef)|\b[0-9a-f]{32,}\b"
    return not re.search(words, "\n".join(s.text.values()))


def unprivileged(s: Scheduled) -> bool:
    locked = [c.get("securityContext", {}) for c in [*s.containers, s.ray["autoscalerOptions"]]]
    return (
        all(c.get("allowPrivilegeEscalation") is False and c["capabilities"] == {"drop": ["ALL"]} for c in locked)
        and all(pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] for pod in s.pods)
        and not re.search(r"host(Path|Network|PID|IPC)|privileged", json.dumps(s.pods))
        and s.service.get("User") not in (None, "root")
        and s.service.get("NoNewPrivileges") == "yes"
    )


def token(s: Scheduled) -> bool:
    told = s.service["Environment"] + s.text["crontab"]
    return (
        s.ray.get("authOptions") == {"mode": "token"}
        and told.count("RAY_AUTH_MODE=token") == 2
        and {"name": "RAY_AUTH_MODE", "value": "token"} in s.search["containers"][0]["env"]
    )


def time_to_commit(s: Scheduled) -> bool:
    graces = [s.service["TimeoutStopSec"], s.search["terminationGracePeriodSeconds"]]
    graces.append(yaml.safe_load(s.ray_job["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    return s.service["KillMode"] == "mixed" and all(int(grace) >= 60 for grace in graces)  # its Ray outlives it


def one_night(s: Scheduled) -> bool:
    deadlines = [s.job["activeDeadlineSeconds"], s.ray_job["activeDeadlineSeconds"]]
    budget = s.read["nightly.yaml"][0]["search"]["budget_s"]
    return all(budget < deadline < 20 * 3600 for deadline in deadlines)


RULES: dict[str, Callable[[Scheduled], bool]] = {
    "pinned": pinned,
    "no secret": no_secret,
    "service account": lambda s: all(pod.get("serviceAccountName") for pod in s.pods),
    "token where used": lambda s: all(p.get("automountServiceAccountToken") is False for p in (s.search, s.worker)),
    "may only create": lambda s: (
        s.one("rayjob-cron.yaml", "Role")["rules"]
        == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]
    ),
    "unprivileged": unprivileged,
    "limits": lambda s: (
        all({"cpu", "memory"} <= set(c.get("resources", {}).get("limits", {})) for c in s.containers)
        and "MemoryMax" in s.service
    ),
    "token": token,
    "one at a time": lambda s: all(cron.get("concurrencyPolicy") == "Forbid" for cron in s.crons),
    "one zone": lambda s: (
        all(cron.get("timeZone") == "Etc/UTC" for cron in s.crons) and s.timer["Timer"]["OnCalendar"].endswith("UTC")
    ),
    "final": lambda s: {int(n) for n in s.service["RestartPreventExitStatus"].split()} == FINAL == s.codes("FailJob"),
    "again": lambda s: (
        s.service["Restart"] == "on-failure"
        and "RestartForceExitStatus" not in s.service  # systemd refuses it where Type=oneshot
        and s.codes("Ignore") == {Preempted.code}
        and s.search["restartPolicy"] == "Never"  # what podFailurePolicy needs
        and s.ray_job["backoffLimit"] > 0
    ),
    "time to commit": time_to_commit,
    "one night": one_night,
    "cluster ends": lambda s: s.ray_job.get("shutdownAfterJobFinishes") is True,
    "missed night": lambda s: s.timer["Timer"].get("Persistent") == "true" and "OnBootSec" in s.timer["Timer"],
}
SERVICE, TIMER, POD, RAY, CRON = (
    "raycnn-nightly.service",
    "raycnn-nightly.timer",
    *(f"{name}.yaml" for name in ("cronjob", "rayjob", "rayjob-cron")),
)
LOSSES = [
    ("pinned", RAY, 'rayVersion: "2.60.0"', 'rayVersion: "2.59.0"'),
    ("pinned", POD, "-ray2.60.0", ""),
    ("pinned", CRON, ":v1.34.3", ":latest"),
    ("pinned", "Dockerfile", "'ray[default]==2.60.0' ", ""),
    ("no secret", "crontab", "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN=abc"),
    ("no secret", POD, "{name: RAY_AUTH_MODE, value: token}", f"{{name: KEY, value: {'0f' * 20}}}"),
    ("service account", RAY, "serviceAccountName: raycnn", "hostname: raycnn"),
    ("token where used", POD, "automountServiceAccountToken: false", "automountServiceAccountToken: true"),
    ("may only create", CRON, "verbs: [create]", "verbs: [create, delete]"),
    ("unprivileged", RAY, "capabilities: {drop: [ALL]}", "capabilities: {add: [SYS_ADMIN]}"),
    ("unprivileged", POD, "{claimName: raycnn-cache}", "{claimName: raycnn-cache}, hostPath: {path: /}"),
    ("unprivileged", SERVICE, "User=raycnn\n", ""),
    ("limits", RAY, 'limits: {cpu: "8", memory: 32Gi, nvidia.com/gpu: "1"}', 'limits: {nvidia.com/gpu: "1"}'),
    ("limits", SERVICE, "MemoryMax=90%", ""),
    ("token", RAY, "authOptions: {mode: token}", "authOptions: {mode: disabled}"),
    ("token", SERVICE, " RAY_AUTH_MODE=token", ""),
    ("one at a time", POD, "concurrencyPolicy: Forbid", "concurrencyPolicy: Replace"),
    ("one zone", CRON, "timeZone: Etc/UTC", "suspend: false"),
    ("final", SERVICE, "RestartPreventExitStatus=2 3 4 6 7 8", "RestartPreventExitStatus=2 3 4 6 7 8 75"),
    ("final", POD, "[2, 3, 4, 6, 7, 8]", "[2, 3, 4, 7, 8]"),
    ("again", SERVICE, "Restart=on-failure", "Restart=no"),
    ("again", SERVICE, "RestartSec=60", "RestartForceExitStatus=75"),
    ("again", POD, "restartPolicy: Never", "restartPolicy: OnFailure"),
    ("again", POD, "values: [75]", "values: [143]"),
    ("time to commit", SERVICE, "KillMode=mixed", "KillMode=control-group"),
    ("time to commit", RAY, '"60"', '"3"'),
    ("one night", "nightly.yaml", "budget_s: 21600", "budget_s: 90000"),
    ("cluster ends", RAY, "shutdownAfterJobFinishes: true", "suspend: false"),
    ("missed night", TIMER, "Persistent=true", ""),
]


@pytest.mark.parametrize("rule", RULES)
def test_rule_holds(rule: str) -> None:
    assert RULES[rule](Scheduled())


@pytest.mark.parametrize(("rule", "name", "old", "new"), LOSSES, ids=[f"{n}-{x[0]}" for n, x in enumerate(LOSSES)])
def test_rule_notices_the_loss(rule: str, name: str, old: str, new: str) -> None:
    assert old in FILES[name]
    assert not RULES[rule](Scheduled(**{name: FILES[name].replace(old, new)}))


def test_every_rule_has_a_loss() -> None:
    assert {loss[0] for loss in LOSSES} == set(RULES)


def check_schema(document: dict[str, Any]) -> None:
    if document["apiVersion"].startswith("ray.io/"):
        jsonschema.validate(document, RAY_JOB)
    else:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", [POD, RAY, CRON])
def test_manifests_fit_their_schemas(name: str) -> None:
    documents = Scheduled().read[name]
    for document in documents:
        check_schema(document)
        with pytest.raises(jsonschema.ValidationError):  # the same schema refuses a field it does not know
            check_schema({**document, "metdata": {}})


def test_pods_of_the_ray_cluster_fit_kubernetes_schema() -> None:
    for template in Scheduled().templates:
        check_schema({"apiVersion": "v1", "kind": "PodTemplate", "template": template})
        wrong = {"spec": {**template["spec"], "containers": [{"name": "ray", "ressources": {}}]}}
        with pytest.raises(jsonschema.ValidationError, match="ressources"):
            check_schema({"apiVersion": "v1", "kind": "PodTemplate", "template": wrong})


@pytest.mark.parametrize("number", range(4))
def test_every_command_line_is_raycnns(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    words = Scheduled().commands()[number]
    if words[0] == "python":  # as jobs/search.py puts it
        assert (ROOT / "jobs" / Path(words[1]).name).exists()
        words[:2] = ["raycnn", "search", "--address", "auto"]
    given = [str(SCHEDULED / "nightly.yaml") if word.endswith("/nightly.yaml") else word for word in words[1:]]
    seen: list[Config] = []
    monkeypatch.setattr(verbs, "search", lambda config, **_: seen.append(config))
    run(given, Progress())
    assert given[0] == "search"
    assert seen[0].cache.folder


def test_the_search_is_one_a_day_and_can_run() -> None:
    config, day = load_config(SCHEDULED / "nightly.yaml"), datetime(2026, 12, 31, 1, 7, tzinfo=UTC)
    names = [dated(config, day + timedelta(hours=hours)).run.name for hours in (0, 20, 24)]
    assert names[0] == names[1] < names[2]  # as text, which is how the search of the day before is found
    space.check(config)


def test_crontab_line_is_crons() -> None:
    lines = [line for line in FILES["crontab"].splitlines() if line and not line.startswith("#")]
    *settings, line = lines
    assert all(re.fullmatch(r"[A-Z_]+=\S+", setting) for setting in settings)
    *times, command = line.split(maxsplit=5)
    for text, (low, high) in zip(times, ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7)), strict=True):
        assert text == "*" or all(low <= int(number) <= high for number in text.split("-"))
    assert "%" not in command  # cron would end the command there
    subprocess.run(["sh", "-n", "-c", command], check=True)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    program = Scheduled().service["ExecStart"].split()[0]
    for name in (SERVICE, TIMER):
        (tmp_path / name).write_text(FILES[name].replace(program, "/bin/true"))
    verify = ["systemd-analyze", "verify", *(str(tmp_path / name) for name in (SERVICE, TIMER))]
    told = subprocess.run(verify, capture_output=True, text=True, check=True)
    assert not told.stderr  # an unknown key is a warning
