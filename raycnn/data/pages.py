"""Where values lie in a Parquet column that is neither compressed nor encoded: each is its length and its bytes.

A page is its header in Thrift's compact protocol, the levels that tell nulls, and the values, see
https://parquet.apache.org/docs/file-format and https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

from typing import Any, BinaryIO, Final

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _BINARY, _STRUCT = 1, 2, 3, 4, 5, 6, 8, 12
_TYPE, _STORED_BYTES, _DATA_PAGE, _DATA_PAGE_2 = 1, 3, 5, 8  # fields of PageHeader
_ENCODING, _ENCODING_2, _LEVELS_2 = 2, 4, (5, 6)  # of DataPageHeader, DataPageHeaderV2
_IS_DATA, _IS_DATA_2 = 0, 3
_PLAIN: Final = 0
_LENGTH_BYTES: Final = 4
_DEEPEST: Final = 4


def plain_ranges(file: BinaryIO, start: int, end: int, *, nullable: bool) -> list[tuple[int, int]]:
    """(offset, length) in the file of each value that is not null, in their order.

    Args:
        file: buffered; read from one end of the column to the other, but for the values.
        start, end: of the column's pages.
        nullable: whether there are levels of definition.

    Raises:
        ValueError: the pages are not plain data pages.
    """
    found = []
    while start < end:
        file.seek(start)
        header = _struct(file, 0)
        stop = file.tell() + _number(header, _STORED_BYTES)
        if stop > end:
            raise ValueError("a page ends behind its column")
        at = _values(file, header, nullable)
        while at < stop:
            file.seek(at)
            length = int.from_bytes(_read(file, _LENGTH_BYTES), "little")
            found.append((at + _LENGTH_BYTES, length))
            at += _LENGTH_BYTES + length
        if at != stop:
            raise ValueError("a value ends behind its page")
        start = stop
    return found


def _values(file: BinaryIO, header: dict[int, Any], nullable: bool) -> int:
    """Where the values of a page begin, whose header ends here."""
    kind = header.get(_TYPE)
    if kind == _IS_DATA and _number(header[_DATA_PAGE], _ENCODING) == _PLAIN:
        levels = int.from_bytes(_read(file, _LENGTH_BYTES), "little") if nullable else 0
        return file.tell() + levels
    if kind == _IS_DATA_2 and _number(header[_DATA_PAGE_2], _ENCODING_2) == _PLAIN:
        return file.tell() + sum(_number(header[_DATA_PAGE_2], field) for field in _LEVELS_2)
    raise ValueError("not a plain data page")


def _number(fields: dict[int, Any], field: int) -> int:
    found = fields.get(field)
    if not isinstance(found, int) or found < 0:
        raise ValueError("a number is missing in the header of a page")
    return found


def _struct(file: BinaryIO, depth: int) -> dict[int, Any]:
    """The fields of a struct by number; texts as None."""
    fields: dict[int, Any] = {}
    number = 0
    while head := _read(file, 1)[0]:
        step, kind = head >> 4, head & 15
        number = number + step if step else _signed(file)
        if kind in (_TRUE, _FALSE):
            fields[number] = kind == _TRUE
        elif kind == _BYTE:
            fields[number] = _read(file, 1)[0]
        elif kind in (_I16, _I32, _I64):
            fields[number] = _signed(file)
        elif kind == _BINARY:
            length = _unsigned(file)
            fields[number] = file.seek(file.tell() + length) and None
        elif kind == _STRUCT and depth < _DEEPEST:
            fields[number] = _struct(file, depth + 1)
        else:
            raise ValueError(f"a field of kind {kind} in the header of a page")
    return fields


def _signed(file: BinaryIO) -> int:
    value = _unsigned(file)
    return value >> 1 ^ -(value & 1)


def _unsigned(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        part = _read(file, 1)[0]
        value |= (part & 127) << shift
        if part < 128:
            return value
    raise ValueError("a number without an end")


def _read(file: BinaryIO, num_bytes: int) -> bytes:
    data = file.read(num_bytes)
    if len(data) < num_bytes:
        raise ValueError("the file ends in a page")
    return data
