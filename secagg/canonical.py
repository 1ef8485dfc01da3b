"""Canonical bytes: the one encoding that is hashed, signed, sent and kept.

Every value has exactly one encoding, and `Reader` accepts that encoding alone: a tag first,
big-endian integers of fixed width, length-prefixed bytes and NFC strings, floats as IEEE-754
bits (NaN, infinities and -0.0 are refused), no maps, no optional fields, no trailing bytes.
Protobuf's serialisation is not canonical and is never hashed (ADR 0002).

This module deliberately knows no message; each type writes and reads itself with it.
"""

from __future__ import annotations

import math
import struct
import unicodedata
from functools import lru_cache
from typing import Self

from secagg.errors import ConfigError, MalformedMessage

VERSION = 1
VERSION_BYTE = bytes([VERSION])
MAX_BLOB = 1 << 26
_MAX_TEXT = 1 << 12


def fixed(value: bytes, length: int) -> bytes:
    """Exactly `length` bytes, without a prefix."""
    if len(value) != length:
        raise ConfigError(f"a field of {length} bytes was given {len(value)}")
    return value


def blob(value: bytes) -> bytes:
    """Bytes behind a 32-bit length."""
    if len(value) > MAX_BLOB:
        raise ConfigError(f"a field of {len(value)} bytes is over the limit of {MAX_BLOB}")
    return len(value).to_bytes(4) + value


def text(value: str) -> bytes:
    """An NFC string as UTF-8 behind its length."""
    if not unicodedata.is_normalized("NFC", value):
        raise ConfigError(f"{value!r} is not NFC-normalised; normalise names before using them")
    data = value.encode()
    if len(data) > _MAX_TEXT:
        raise ConfigError(f"a text of {len(data)} bytes is over the limit of {_MAX_TEXT}")
    return blob(data)


@lru_cache(maxsize=256)
def tag(name: str) -> bytes:
    """The record's type, or a separator between parts of it."""
    return blob(name.encode("ascii"))


class Writer:
    """Appends fields; every method returns the writer, so a record is one expression."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[bytes] = [VERSION_BYTE]

    def u8(self, value: int) -> Self:
        """One byte."""
        return self._integer(value, 1)

    def u32(self, value: int) -> Self:
        """Four bytes."""
        return self._integer(value, 4)

    def u64(self, value: int) -> Self:
        """Eight bytes."""
        return self._integer(value, 8)

    def f64(self, value: float) -> Self:
        """IEEE-754 binary64; finite, and never -0.0."""
        if not math.isfinite(value) or (value == 0 and math.copysign(1, value) < 0):
            raise ConfigError(
                f"{value!r} has no canonical encoding; floats are finite and not -0.0"
            )
        return self._append(struct.pack(">d", value))

    def fixed(self, value: bytes, length: int) -> Self:
        """See `fixed`."""
        return self._append(fixed(value, length))

    def blob(self, value: bytes) -> Self:
        """See `blob`."""
        return self._append(blob(value))

    def text(self, value: str) -> Self:
        """See `text`."""
        return self._append(text(value))

    def tag(self, name: str) -> Self:
        """See `tag`."""
        return self._append(tag(name))

    def finish(self) -> bytes:
        """The canonical bytes."""
        return b"".join(self._parts)

    def _integer(self, value: int, size: int) -> Self:
        try:
            return self._append(value.to_bytes(size))
        except OverflowError:
            raise ConfigError(f"{value!r} does not fit a field of {size} bytes") from None

    def _append(self, part: bytes) -> Self:
        self._parts.append(part)
        return self


class Reader:
    """Reads what `Writer` wrote; anything else is a `MalformedMessage` that names the place."""

    __slots__ = ("_data", "_place", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._place = 0
        self._what = what
        if self.u8() != VERSION:
            raise self.error("another version of the encoding")

    def error(self, reason: str) -> MalformedMessage:
        """The error for this record, to be raised by the caller."""
        return MalformedMessage(f"malformed {self._what} at byte {self._place}: {reason}")

    def u8(self) -> int:
        """One byte."""
        return self._take(1)[0]

    def u32(self) -> int:
        """Four bytes."""
        return int.from_bytes(self._take(4))

    def u64(self) -> int:
        """Eight bytes."""
        return int.from_bytes(self._take(8))

    def f64(self) -> float:
        """A finite binary64 that is not -0.0."""
        value: float = struct.unpack(">d", self._take(8))[0]
        if not math.isfinite(value) or (value == 0 and math.copysign(1, value) < 0):
            raise self.error("floats are finite and not -0.0")
        return value

    def fixed(self, length: int) -> bytes:
        """Exactly `length` bytes."""
        return self._take(length)

    def blob(self, limit: int = MAX_BLOB) -> bytes:
        """Bytes behind a 32-bit length of at most `limit`."""
        length = self.u32()
        if length > limit:
            raise self.error(f"a length of {length} is over the limit of {limit}")
        return self._take(length)

    def text(self) -> str:
        """An NFC string."""
        data = self.blob(_MAX_TEXT)
        try:
            value = data.decode()
        except UnicodeDecodeError:
            raise self.error("text is not UTF-8") from None
        if not unicodedata.is_normalized("NFC", value):
            raise self.error("text is not NFC-normalised")
        return value

    def tag(self, name: str) -> None:
        """Demand the tag `name`."""
        self.literal(tag(name), name)

    def literal(self, expected: bytes, name: str) -> None:
        """Demand these very bytes, the encoding of the tag `name`."""
        if not self._data.startswith(expected, self._place):
            raise self.error(f"expected {name!r} here")
        self._place += len(expected)

    def count(self, limit: int) -> int:
        """A 32-bit number of records of at most `limit`."""
        value = self.u32()
        if value > limit:
            raise self.error(f"a count of {value} is over the limit of {limit}")
        return value

    @property
    def place(self) -> int:
        """How many bytes have been read."""
        return self._place

    def since(self, place: int) -> bytes:
        """The bytes that were read from `place` on."""
        return self._data[place : self._place]

    @property
    def remaining(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self._place

    def end(self) -> None:
        """Demand that nothing follows."""
        if self._place != len(self._data):
            raise self.error(f"{len(self._data) - self._place} trailing bytes")

    def _take(self, length: int) -> bytes:
        end = self._place + length
        if end > len(self._data):
            raise self.error(f"{end - len(self._data)} bytes are missing")
        piece = self._data[self._place : end]
        self._place = end
        return piece
