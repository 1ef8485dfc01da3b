"""Canonical codecs read off a frozen dataclass's annotations.

A message type declares its fields and nothing else; its one encoder and its one decoder follow
from the declaration, so they cannot drift apart:

    int                 must be `U8`, `U32` or `U64`         big-endian, fixed width
    bytes               length-prefixed; `Digest` etc. exact
    str                 as in `canonical.py`
    tuple[T, ...]       32-bit count, then the items
    a SecretBytes kind  its exact length, or length-prefixed (sealed state only)
    a dataclass         its fields in order, behind its tag

`decode` refuses every byte string that `encode` does not produce (check C01).
"""

from __future__ import annotations

import dataclasses
import struct
import typing
from collections.abc import Callable
from operator import itemgetter
from typing import Annotated, Any, NamedTuple, TypeVar

from secagg.canonical import VERSION_BYTE, Reader, blob, fixed, tag, text
from secagg.errors import ConfigError
from secagg.secret import SecretBytes


@dataclasses.dataclass(frozen=True, slots=True)
class Width:
    """Integer width in bytes, or exact length of a byte string."""

    size: int


U8 = Annotated[int, Width(1)]
U32 = Annotated[int, Width(4)]
U64 = Annotated[int, Width(8)]
Digest = Annotated[bytes, Width(32)]
Key32 = Annotated[bytes, Width(32)]
Signature = Annotated[bytes, Width(64)]
ShareValue = Annotated[bytes, Width(33)]

_T = TypeVar("_T")


class Kept:
    """A record that keeps its canonical bytes once they are known, however it came about.

    For those that are hashed, bundled and sent many times. `canonical` has no version byte.
    """

    __slots__ = ("canonical",)

    canonical: bytes


class _Codec(NamedTuple):
    """How one type is written and read.

    Where every encoding has the same size, `form` is its `struct` format; `take` then makes a
    structure from its unpacked row.
    """

    write: Callable[[Any], bytes]
    read: Callable[[Reader], Any]
    form: str = ""
    take: Callable[[tuple[Any, ...]], Any] | None = None


def encode(record: Any) -> bytes:
    """Canonical bytes of a record.

    Raises:
        ConfigError: a field's value has no encoding.
    """
    try:
        return VERSION_BYTE + _codec(type(record)).write(record)
    except struct.error as error:
        raise ConfigError(f"{type(record).__name__}: a number does not fit: {error}") from None


def decode(kind: type[_T], data: bytes) -> _T:
    """The record of type `kind` in `data`.

    Raises:
        MalformedMessage: not the canonical bytes of such a record.
    """
    reader = Reader(data, kind.__name__)
    try:
        record: _T = _codec(kind).read(reader)
    except ConfigError as error:
        raise reader.error(str(error)) from None
    reader.end()
    return record


_codecs: dict[Any, _Codec] = {}


def _codec(kind: Any) -> _Codec:
    codec = _codecs.get(kind)
    if codec is None:
        codec = _codecs[kind] = _derive(kind)
    return codec


def _derive(kind: Any) -> _Codec:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _sized(arguments[0], arguments[1].size)
    if origin is tuple:
        if len(arguments) != 2 or arguments[1] is not Ellipsis:
            raise TypeError(f"{kind} is no homogeneous tuple")
        return _sequence(_codec(arguments[0]))
    if kind in _PLAIN:
        return _PLAIN[kind]
    if isinstance(kind, type) and issubclass(kind, SecretBytes):
        length = kind.LENGTH
        if length is None:
            return _Codec(lambda value: blob(value.expose()), lambda reader: kind(reader.blob()))
        return _Codec(
            lambda value: fixed(value.expose(), length), lambda reader: kind(reader.fixed(length))
        )
    if dataclasses.is_dataclass(kind):
        return _structure(kind)
    raise TypeError(f"{kind} has no canonical codec")


def _sized(base: type, size: int) -> _Codec:
    if base is bytes:
        return _Codec(
            lambda value: fixed(value, size), lambda reader: reader.fixed(size), f"{size}s"
        )
    return _INTEGERS[size]


def _sequence(item: _Codec) -> _Codec:
    write_item, read_item = item.write, item.read

    def write(values: tuple[Any, ...]) -> bytes:
        return _U32.write(len(values)) + b"".join(map(write_item, values))

    def read(reader: Reader) -> tuple[Any, ...]:
        # Every item takes a byte or more, so the count cannot promise more than is there.
        return tuple([read_item(reader) for _ in range(reader.count(reader.remaining))])

    return _Codec(write, _rows(item) if item.form else read)


def _rows(item: _Codec) -> Callable[[Reader], tuple[Any, ...]]:
    """Reads items of one size in one go: a round has n^2 holders and answers."""
    row, take = struct.Struct(">" + item.form), item.take or itemgetter(0)

    def read(reader: Reader) -> tuple[Any, ...]:
        block = reader.fixed(row.size * reader.count(reader.remaining))
        return tuple([take(one) for one in row.iter_unpack(block)])

    return read


def _structure(kind: Any) -> _Codec:
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind)]
    codecs = [_codec(hints[name]) for name in names]
    writers, readers = [codec.write for codec in codecs], [codec.read for codec in codecs]
    name, head = kind.__name__, tag(kind.__name__)

    def write(value: Any) -> bytes:
        values = [getattr(value, name) for name in names]
        return head + b"".join([write(one) for write, one in zip(writers, values, strict=True)])

    def read(reader: Reader) -> Any:
        reader.literal(head, name)
        return kind(*[read(reader) for read in readers])

    def take(row: tuple[Any, ...]) -> Any:
        if row[0] != head:
            raise ConfigError(f"expected {name!r} here")
        return kind(*row[1:])

    if issubclass(kind, Kept):
        return _kept(write, read)
    if not all(codec.form and codec.take is None for codec in codecs):
        return _Codec(write, read)
    form = "".join(codec.form for codec in codecs)
    return _Codec(write, read, f"{len(head)}s{form}", take)


def _kept(write: Callable[[Any], bytes], read: Callable[[Reader], Any]) -> _Codec:
    def write_once(value: Any) -> bytes:
        try:
            known: bytes = value.canonical
        except AttributeError:
            known = write(value)
            object.__setattr__(value, "canonical", known)
        return known

    def read_and_keep(reader: Reader) -> Any:
        start = reader.place
        value = read(reader)
        object.__setattr__(value, "canonical", reader.since(start))
        return value

    return _Codec(write_once, read_and_keep)


_U32 = _Codec(struct.Struct(">I").pack, Reader.u32, "I")
_INTEGERS = {
    1: _Codec(struct.Struct(">B").pack, Reader.u8, "B"),
    4: _U32,
    8: _Codec(struct.Struct(">Q").pack, Reader.u64, "Q"),
}
_PLAIN: dict[Any, _Codec] = {
    bytes: _Codec(blob, Reader.blob),
    str: _Codec(text, Reader.text),
}
