from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raycnn.data.spans import Span, spans
from raycnn.errors import StorageError
from raycnn.storage.local import LocalStore

KB = 1 << 10


def rows(*places: tuple[str, int, int]) -> list[dict[str, Any]]:
    return [{"key": key, "offset": offset, "length": length} for key, offset, length in places]


@pytest.mark.parametrize(
    ("places", "sizes"),
    [
        ([], []),
        ([("a", 0, 10), ("b", 0, 10), ("b", 10, 10)], [1, 2]),
        ([("a", 0, 10), ("a", 10 + 64 * KB, 10), ("a", 21 + 128 * KB, 10)], [2, 1]),  # one byte too far
        ([("a", 400 * KB * n, 400 * KB) for n in range(5)], [2, 2, 1]),  # a megabyte each
        ([("a", 0, 3000 * KB), ("a", 3000 * KB, 10)], [1, 1]),
        ([("a", 5, 10), ("a", 5, 10), ("a", 15, 10)], [3]),  # two views of one
    ],
)
def test_what_lies_close_together_is_read_together(places: list[tuple[str, int, int]], sizes: list[int]) -> None:
    found = [*spans(rows(*places))]
    assert [span.stop - span.start for span in found] == sizes
    assert [number for span in found for number in range(span.start, span.stop)] == [*range(len(places))]


@pytest.fixture
def gets(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int | None]]:
    found = []
    get = LocalStore.get

    def noted(self: LocalStore, key: str, offset: int = 0, length: int | None = None) -> bytes:
        found.append((key, offset, length))
        return get(self, key, offset, length)

    monkeypatch.setattr(LocalStore, "get", noted)
    return found


def test_one_request_serves_all_rows(tmp_path: Path, gets: list[tuple[str, int, int | None]]) -> None:
    (tmp_path / "a").write_bytes(bytes(range(100)))
    own = rows(("a", 10, 5), ("a", 20, 5), ("a", 20, 5), ("a", 40, 10))
    span = Span(str(tmp_path), own)
    assert gets == []
    assert [span.get(row) for row in own] == [bytes(range(100))[r["offset"] : r["offset"] + r["length"]] for r in own]
    assert gets == [("a", 10, 40)]


def test_a_row_by_itself_and_rows_that_cannot_be_read_come_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(20))
    alone, missing, short = rows(("a", 0, 5)), rows(("b", 0, 5), ("b", 5, 5)), rows(("a", 10, 5), ("a", 15, 10))
    assert Span(str(tmp_path), alone).get(alone[0]) == b""
    assert Span(str(tmp_path), missing).get(missing[1]) == b""
    assert Span(str(tmp_path), short).get(short[1]) == bytes(5)


def test_a_store_that_is_down_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(self: LocalStore, *place: Any) -> bytes:
        raise StorageError("no answer")

    monkeypatch.setattr(LocalStore, "get", down)
    own = rows(("a", 0, 5), ("a", 5, 5))
    with pytest.raises(StorageError, match="no answer"):
        Span(str(tmp_path), own).get(own[0])
