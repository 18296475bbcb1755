from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest

from raycnn.memory import importing, keep_what_lives


class Ring:
    """An object in a cycle, which the collector alone can free."""

    def __init__(self) -> None:
        self.itself = self


def test_nothing_is_collected_while_importing_and_all_is_afterwards() -> None:
    with importing():
        assert not gc.isenabled()
        with importing():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()


def test_what_lives_is_passed_over_until_the_next_call() -> None:
    old = Ring()
    seen = weakref.ref(old)
    try:
        keep_what_lives()
        new = Ring()
        younger = weakref.ref(new)
        del old, new
        gc.collect()
        assert younger() is None
        assert seen() is not None
        keep_what_lives()
        assert seen() is None
    finally:
        gc.unfreeze()


def test_a_command_does_not_look_for_garbage_when_it_ends() -> None:
    code = (
        "import atexit, gc; from raycnn.memory import collect_rarely\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0, gc.get_threshold()[0] > 10_000)); collect_rarely()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
