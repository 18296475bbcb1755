from __future__ import annotations

import copy
import json
import pickle

import pytest

from raycnn import errors
from raycnn.errors import RaycnnError

CODES = {
    "ConfigError": 2,
    "DataError": 3,
    "DivergedError": 4,
    "StorageError": 5,
    "ObjectNotFound": 5,
    "ObjectDamaged": 5,
    "PreconditionFailed": 5,
    "RunBusyError": 6,
    "CheckpointError": 7,
    "NoProgressError": 8,
    "Preempted": 75,
}
KINDS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, RaycnnError)]


def test_every_error_has_its_promised_code() -> None:
    assert {kind.__name__: kind.code for kind in KINDS if kind is not RaycnnError} == CODES


def test_the_tree_at_the_top_of_the_module_is_the_tree() -> None:
    assert errors.__doc__ is not None
    for name, code in CODES.items():
        (line,) = [line for line in errors.__doc__.split("\n") if f" {name} " in line]
        parent = getattr(errors, name).__mro__[1]
        if parent is RaycnnError:
            assert str(code) in line.split()
        else:  # indented below its parent, whose code it shares
            assert line.index(name) > errors.__doc__.split("\n")[3].index("ConfigError")
            assert parent.code == code


@pytest.mark.parametrize("kind", KINDS)
def test_survives_pickling_and_copying(kind: type[RaycnnError]) -> None:
    error = kind("it broke", where="train/cat/1.jpg", fix="mend it")
    for back in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(back) is kind
        assert (back.what, back.where, back.fix) == ("it broke", "train/cat/1.jpg", "mend it")
        assert str(back) == str(error)
        assert back.code == kind.code


@pytest.mark.parametrize(
    ("where", "fix", "line"),
    [
        ("", "", "it broke"),
        ("step 3", "", "it broke (step 3)"),
        ("", "mend it", "it broke: mend it"),
        ("step 3", "mend it", "it broke (step 3): mend it"),
    ],
)
def test_the_line_says_what_where_and_what_to_do(where: str, fix: str, line: str) -> None:
    assert str(RaycnnError("it broke", where=where, fix=fix)) == line


def test_it_is_one_line_whatever_it_is_told() -> None:
    line = str(RaycnnError("first\nsecond\r\n", where="a\tb", fix="  do\n\n\x0bthis "))
    assert line == "first second (a b): do this"


@pytest.mark.parametrize("kind", KINDS)
def test_the_json_form(kind: type[RaycnnError]) -> None:
    error = kind("it\nbroke", where="a.jpg", fix="mend it")
    assert json.loads(json.dumps(error.as_json())) == {
        "code": kind.code,
        "what": "it\nbroke",
        "where": "a.jpg",
        "fix": "mend it",
    }


def test_a_caller_can_catch_them_all() -> None:
    with pytest.raises(RaycnnError):
        raise errors.ObjectNotFound("no such key", where="a.jpg")
    assert issubclass(errors.ObjectNotFound, errors.StorageError)
    assert issubclass(errors.PreconditionFailed, errors.StorageError)
