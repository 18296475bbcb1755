"""The one address scheme: dotted paths, for YAML, flags and search samples; and what of them makes a run's identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from raycnn.config.base import LATER, OPERATIONAL, Section
from raycnn.config.sections import Config
from raycnn.errors import ConfigError


def fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All settings as (dotted path, field), depth first."""
    for name, info in model.model_fields.items():
        path = prefix + name
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from fields(info.annotation, path + ".")
        else:
            yield path, info


def set_path(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set `value` at the dotted `path` of a nested mapping, in place."""
    *parents, leaf = path.split(".")
    for name in parents:
        child = tree.setdefault(name, {})
        if not isinstance(child, dict):
            raise ConfigError("not a section", where=path, fix=f"{name} holds a value, not fields")
        tree = child
    tree[leaf] = value


def get_path(config: Config, path: str) -> Any:
    """The value at a dotted path."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def identity(config: Config) -> dict[str, Any]:
    """The settings that decide the result, by dotted path, as JSON values."""
    tree = config.model_dump(mode="json")
    kept: dict[str, Any] = {}
    for path, info in fields():
        if not operational(path, info):
            value: Any = tree
            for name in path.split("."):
                value = value[name]
            kept[path] = value
    return kept


def hashed(config: Config) -> dict[str, Any]:
    """`identity(config)` for a hash that is stored: without fields marked `LATER` that have their defaults."""
    settings = identity(config)
    for path, info in fields():
        if LATER in _metadata(info) and settings.get(path) == to_jsonable_python(info.default):
            settings.pop(path, None)
    return settings


def identity_hash(config: Config) -> str:
    """Hex sha256 over `hashed(config)`: equal for two configs that must give the same result on the same manifest."""
    return hashlib.sha256(json.dumps(hashed(config), sort_keys=True).encode()).hexdigest()


def operational(path: str, info: FieldInfo) -> bool:
    """Whether the field may change between starts of a run."""
    section = Config.model_fields[path.split(".")[0]]
    return OPERATIONAL in section.metadata or OPERATIONAL in _metadata(info)


def _metadata(info: FieldInfo) -> list[Any]:
    # `Annotated[int, OPERATIONAL] | None` keeps its mark on the member of the union
    found = list(info.metadata)
    stack = [info.annotation]
    while stack:
        hint: Any = stack.pop()
        found += getattr(hint, "__metadata__", ())
        stack += getattr(hint, "__args__", ())
    return found
