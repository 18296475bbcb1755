"""cluster.yaml: valid for Ray's launcher; a rule holds each item of the security list, notices its loss."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.aws.config import _configure_iam_role, _configure_security_group
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from raycnn.version import __version__

ROOT = Path(__file__).parents[2]
Cluster = dict[str, Any]


def load() -> Cluster:
    """The file as written; through JSON, so that no two nodes share a part by a YAML alias."""
    return json.loads(json.dumps(yaml.safe_load((ROOT / "cluster.yaml").read_text())))


def node_configs(cluster: Cluster) -> list[Cluster]:
    return [node["node_config"] for node in cluster["available_node_types"].values()]


def every_node(check: Callable[[Cluster], bool]) -> Callable[[Cluster], bool]:
    return lambda cluster: all(check(node) for node in node_configs(cluster))


def workers(cluster: Cluster) -> list[Cluster]:
    types = cluster["available_node_types"]
    return [node for name, node in types.items() if name != cluster["head_node_type"]]


def start_commands(cluster: Cluster, kind: str) -> list[str]:
    return [line for line in cluster[f"{kind}_start_ray_commands"] if "ray start" in line]


def starts_with_token(kind: str) -> Callable[[Cluster], bool]:
    def check(cluster: Cluster) -> bool:
        lines = start_commands(cluster, kind)
        return bool(lines) and all("RAY_AUTH_MODE=token" in line.split("ray start")[0] for line in lines)

    return check


def installed_by_pip(cluster: Cluster) -> list[str]:
    """What the setup commands give to pip, without its options."""
    found = []
    for line in cluster["head_setup_commands"] + cluster["worker_setup_commands"]:
        for part in line.split("pip install ")[1:]:
            found += [word for word in shlex.split(part) if not word.startswith("-")]
    return found


def pinned(cluster: Cluster) -> bool:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wheel = f"~/raycnn-{__version__}-py3-none-any.whl"
    asked = next(r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    exact = {Requirement(word).name: Requirement(word) for word in installed_by_pip(cluster) if "==" in word}
    wheels = {re.sub(r"\[.*", "", word).replace("$HOME", "~") for word in installed_by_pip(cluster) if ".whl" in word}
    return (
        len(exact) + len(wheels) == len(set(installed_by_pip(cluster)))
        and wheels == {wheel}
        and cluster["file_mounts"].get(wheel) == f"dist/{wheel[2:]}"
        and str(exact["ray"].specifier).removeprefix("==") in asked.specifier
    )


def no_secret(cluster: Cluster) -> bool:
    text = json.dumps(cluster)
    return not re.search(r"RAY_AUTH_TOKEN\b|AKIA|(?i:secret)|aws_credentials|\b[0-9a-f]{32,}\b", text)


def spot_only_workers(cluster: Cluster) -> bool:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    return (
        "InstanceMarketOptions" not in head["node_config"]
        and head["max_workers"] == 0
        and all(n["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"} for n in workers(cluster))
        and all(n.get("min_workers") == 0 < n.get("max_workers", 0) <= cluster["max_workers"] for n in workers(cluster))
    )


# Each rule holds for the file as Ray completes it with its own defaults.
RULES: dict[str, Callable[[Cluster], bool]] = {
    "token on the head": starts_with_token("head"),
    "token on the workers": starts_with_token("worker"),
    "token from a file": lambda c: c["file_mounts"].get("~/.ray/auth_token") == "~/.ray/auth_token",
    "token file 0600": lambda c: all(
        "chmod 600 ~/.ray/auth_token" in c[f"{k}_setup_commands"] for k in ("head", "worker")
    ),
    "no secret inline": no_secret,
    "dashboard on loopback": lambda c: all("--dashboard-host=127.0.0.1" in s for s in start_commands(c, "head")),
    "instance profile": every_node(lambda n: bool(n.get("IamInstanceProfile", {}).get("Name"))),
    "own security group": every_node(lambda n: bool(n.get("SecurityGroupIds"))),
    "nothing open to the world": lambda c: "security_group" not in c["provider"] and "0.0.0.0" not in json.dumps(c),
    "no inbound SSH": lambda c: bool(c["auth"].get("ssh_proxy_use_node_id") and c["provider"].get("use_internal_ips")),
    "IMDSv2": every_node(lambda n: n.get("MetadataOptions", {}).get("HttpTokens") == "required"),
    "encrypted disks": every_node(
        lambda n: (
            bool(n.get("BlockDeviceMappings")) and all(d["Ebs"].get("Encrypted") for d in n["BlockDeviceMappings"])
        )
    ),
    "pinned versions": pinned,
    "workers on spot": spot_only_workers,
    "disks go with their nodes": lambda c: c["provider"].get("cache_stopped_nodes") is False,
}


def node(name: str, field: str) -> Callable[[Cluster], object]:
    return lambda c: c["available_node_types"][name]["node_config"].pop(field)


def drop(*path: str) -> Callable[[Cluster], object]:
    def change(cluster: Cluster) -> None:
        for name in path[:-1]:
            cluster = cluster[name]
        del cluster[path[-1]]

    return change


def reword(section: str, old: str, new: str) -> Callable[[Cluster], object]:
    def change(cluster: Cluster) -> None:
        before = json.dumps(cluster[section])
        assert old in before
        cluster[section] = json.loads(before.replace(old, new))

    return change


def open_ssh(cluster: Cluster) -> None:
    rule = {"FromPort": 22, "ToPort": 22, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    cluster["provider"]["security_group"] = {"GroupName": "raycnn", "IpPermissions": [rule]}


LOSSES: list[tuple[str, Callable[[Cluster], object]]] = [
    ("token on the head", reword("head_start_ray_commands", "RAY_AUTH_MODE=token", "")),
    ("token on the head", drop("head_start_ray_commands")),
    (
        "token on the workers",
        reword("worker_start_ray_commands", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"),
    ),
    ("token on the workers", drop("worker_start_ray_commands")),
    ("token from a file", drop("file_mounts", "~/.ray/auth_token")),
    ("token from a file", drop("file_mounts")),
    ("token file 0600", lambda c: c["setup_commands"].pop(0)),
    (
        "no secret inline",
        reword("head_start_ray_commands", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN=abc RAY_AUTH_MODE"),
    ),
    ("no secret inline", reword("setup_commands", "chmod 600", f"echo {'0f' * 32} >")),
    ("no secret inline", lambda c: c["provider"].update(aws_credentials={"aws_access_key_id": "x"})),
    ("dashboard on loopback", reword("head_start_ray_commands", "--dashboard-host=127.0.0.1 ", "")),
    ("dashboard on loopback", drop("head_start_ray_commands")),
    ("instance profile", node("head", "IamInstanceProfile")),
    ("instance profile", node("gpu_worker", "IamInstanceProfile")),
    ("own security group", node("head", "SecurityGroupIds")),
    ("own security group", node("gpu_worker", "SecurityGroupIds")),
    ("nothing open to the world", open_ssh),
    ("nothing open to the world", drop("head_start_ray_commands")),
    ("no inbound SSH", drop("auth", "ssh_proxy_use_node_id")),
    ("no inbound SSH", drop("provider", "use_internal_ips")),
    ("IMDSv2", node("head", "MetadataOptions")),
    ("IMDSv2", node("gpu_worker", "MetadataOptions")),
    ("IMDSv2", reword("available_node_types", '"HttpTokens": "required"', '"HttpTokens": "optional"')),
    ("encrypted disks", node("head", "BlockDeviceMappings")),
    ("encrypted disks", node("gpu_worker", "BlockDeviceMappings")),
    ("encrypted disks", reword("available_node_types", '"Encrypted": true, ', "")),
    ("pinned versions", reword("setup_commands", "ray[default]==2.60.0", "ray[default]")),
    ("pinned versions", reword("setup_commands", "ray[default]==2.60.0", "ray[default]==2.59.0")),
    ("pinned versions", reword("setup_commands", "$HOME/raycnn-0.1.0-py3-none-any.whl", "raycnn")),
    ("pinned versions", lambda c: c["file_mounts"].pop("~/raycnn-0.1.0-py3-none-any.whl")),
    ("pinned versions", drop("head_setup_commands")),  # Ray's default installs an unpinned boto3
    ("workers on spot", node("gpu_worker", "InstanceMarketOptions")),
    ("workers on spot", lambda c: c["available_node_types"]["gpu_worker"].update(min_workers=1)),
    ("workers on spot", lambda c: c["available_node_types"]["head"].update(max_workers=1)),
    ("disks go with their nodes", drop("provider", "cache_stopped_nodes")),
]


def test_ray_accepts_the_file() -> None:
    validate_config(prepare_config(load()))
    with pytest.raises(Exception, match="was unexpected"):  # the same schema refuses a field it does not know
        validate_config(prepare_config({**load(), "unknown": 1}))


@pytest.mark.parametrize("rule", RULES)
def test_rule_holds(rule: str) -> None:
    assert RULES[rule](prepare_config(load()))


@pytest.mark.parametrize(("rule", "loss"), LOSSES, ids=[f"{n}-{rule}" for n, (rule, _) in enumerate(LOSSES)])
def test_rule_notices_the_loss(rule: str, loss: Callable[[Cluster], object]) -> None:
    cluster = load()
    loss(cluster)
    assert not RULES[rule](prepare_config(cluster))


def test_every_rule_has_a_loss() -> None:
    assert {rule for rule, _ in LOSSES} == set(RULES)


def test_idle_nodes_leave() -> None:
    # read from the file itself: without the line Ray has a default of its own
    assert 0 < load()["idle_timeout_minutes"] <= 30


def test_ray_makes_neither_group_nor_role_of_its_own() -> None:
    # its group opens SSH to 0.0.0.0/0, its role may do all of EC2 and S3; with ours given neither step
    # changes the config or talks to AWS
    cluster = prepare_config(load())
    assert _configure_security_group(_configure_iam_role(cluster)) == cluster


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_commands_are_shell_and_their_flags_are_rays(kind: str) -> None:
    cluster = prepare_config(load())
    known = {name for parameter in start.params for name in parameter.opts}
    for line in cluster[f"{kind}_setup_commands"] + cluster[f"{kind}_start_ray_commands"]:
        subprocess.run(["bash", "-n", "-c", line], check=True)
    for line in start_commands(cluster, kind):
        assert set(re.findall(r"--[a-z-]+", line.split("ray start")[1])) <= known
