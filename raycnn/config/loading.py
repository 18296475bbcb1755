"""A config from YAML, a mapping and overrides; what cannot be used is refused in one line with its path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from raycnn.config.given import Given
from raycnn.config.paths import set_path
from raycnn.config.sections import Config
from raycnn.errors import ConfigError
from raycnn.secrecy import has_credentials


def load_config(
    source: str | Path | dict[str, Any] | Config, overrides: dict[str, Any] | None = None, given: Given | None = None
) -> Config:
    """The config of a YAML file (or mapping), with `overrides` by dotted path laid over it.

    Args:
        source: of a Config also what is given with it is kept.
        overrides: values by dotted path.
        given: what goes with it.

    Raises:
        ConfigError: a file that cannot be read, an unknown field, a value its field refuses, an address
            with credentials; the path is named.
    """
    if isinstance(source, Config):
        given = given or source.given
        tree = source.model_dump(mode="json", exclude_unset=True)
    else:
        tree = json.loads(json.dumps(source)) if isinstance(source, dict) else _read_yaml(Path(source))
    for path, value in (overrides or {}).items():
        set_path(tree, path, value)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise _as_config_error(error) from None
    for path, text in _texts(tree):  # a config is stored with its run, and shown
        if has_credentials(text):
            fix = "remove them; they come from the environment or a profile"
            raise ConfigError("credentials in an address", where=path, fix=fix)
    return config.with_given(given) if given else config


def dated(config: Config, now: datetime | None = None) -> Config:
    """The config with the date put into a run.name such as nightly-%Y-%m-%d, in UTC."""
    if "%" not in config.run.name:
        return config
    return load_config(config, {"run.name": (now or datetime.now(UTC)).strftime(config.run.name)})


def _texts(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a tree of mappings and lists, with its dotted path."""
    if isinstance(tree, str):
        yield path, tree
    elif isinstance(tree, dict | list):
        for name, below in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _texts(below, f"{path}.{name}".lstrip("."))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        fix = "give the path of a YAML config"
        raise ConfigError(f"cannot read the config: {error.strerror}", where=str(path), fix=fix) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("not valid YAML", where=str(path), fix=str(error)) from None
    if not isinstance(tree, dict):
        raise ConfigError("the config is not a mapping of sections", where=str(path), fix="see README, Config")
    return tree


def _as_config_error(error: ValidationError) -> ConfigError:
    errors = error.errors()
    # of a union every member complains; the one that got deepest into the value is the one that was meant
    first = max((each for each in errors if each["loc"][:2] == errors[0]["loc"][:2]), key=lambda each: len(each["loc"]))
    section, field, *inside = (*first["loc"], "", "")
    path = ".".join(filter(None, (str(section), str(field))))
    if path in ("model.head", "loss.distill") and isinstance(inside[0], str):  # a section of its own
        path = ".".join(filter(None, (path, inside.pop(0))))
    if path == "search.space":  # a mapping by dotted path
        path = ".".join(filter(None, (path, str(inside[0]))))
    numbers = "".join(f"[{part}]" for part in inside if isinstance(part, int))
    more = len({each["loc"][:2] for each in errors}) - 1
    what, fix = "invalid value", first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        what, fix = "unknown field", "remove it or correct its name"
    elif first["type"] == "missing" and not inside[:-2]:
        what, fix = "missing field", "set it in the config or as a flag"
    return ConfigError(what + (f" (and {more} more)" if more > 0 else ""), where=path + numbers, fix=fix)
