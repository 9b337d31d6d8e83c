"""Reads and writes the wire format of protocol buffers, field by field, without a library and without a copy.

After protobuf.dev/programming-guides/encoding. What is read is checked against the end of the message it stands in.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass

Buffer = bytes | mmap.mmap
VARINT, FIXED64, MESSAGE, FIXED32 = 0, 1, 2, 5  # the wire types; MESSAGE is anything that has a length


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message: its content lies from `start` to `stop`; `begin` is where its tag lies.

    `value` is the number of a VARINT, and 0 of everything else.
    """

    number: int
    wire: int
    begin: int
    start: int
    stop: int
    value: int = 0


def fields(data: Buffer, start: int, stop: int) -> Iterator[Field]:
    """The fields of the message from `start` to `stop`. Raises ValueError where it is none."""
    position = start
    while position < stop:
        begin = position
        tag, position = varint(data, position, stop)
        number, wire = tag >> 3, tag & 7
        if not number:
            raise ValueError(f"there is no field at byte {begin}")
        if wire == VARINT:
            first = position
            value, position = varint(data, position, stop)
            field = Field(number, wire, begin, first, position, value)
        else:
            size = _SIZES.get(wire)
            if size is None and wire == MESSAGE:
                size, position = varint(data, position, stop)
            if size is None or size > stop - position:
                raise ValueError(f"a field at byte {begin} reaches beyond its message")
            field = Field(number, wire, begin, position, position + size)
            position += size
        yield field


_SIZES = {FIXED64: 8, FIXED32: 4}


def varint(data: Buffer, position: int, stop: int) -> tuple[int, int]:
    """A number of 64 bits and where it ends. Raises ValueError."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= stop:
            break
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (2**64 - 1), position
    raise ValueError(f"a number at byte {position} does not end")


def integers(data: Buffer, field: Field) -> Iterator[int]:
    """The numbers of a repeated field, packed or not, as signed numbers of 64 bits."""
    if field.wire == VARINT:
        yield signed(field.value)
        return
    position = field.start
    while position < field.stop:
        value, position = varint(data, position, field.stop)
        yield signed(value)


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def text(data: Buffer, field: Field) -> str:
    """A string. Raises ValueError where it is no UTF-8."""
    return bytes(data[field.start : field.stop]).decode("utf-8")


def encoded_varint(value: int) -> bytes:
    found = bytearray()
    value &= 2**64 - 1
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def encoded(number: int, content: bytes | str | int) -> bytes:
    """A field: a number as a varint, text and messages with their length."""
    if isinstance(content, int):
        return encoded_varint(number << 3 | VARINT) + encoded_varint(content)
    content = content.encode() if isinstance(content, str) else content
    return encoded_varint(number << 3 | MESSAGE) + encoded_varint(len(content)) + content
