"""Canonical codecs read off a frozen dataclass's annotations.

A message type declares its fields and nothing else; its one encoder and its one decoder follow
from the declaration, so they cannot drift apart:

    int                 must be `U8`, `U32` or `U64`         big-endian, fixed width
    bytes               length-prefixed; `Digest` etc. exact
    str, bool           as in `canonical.py`
    tuple[T, ...]       32-bit count, then the items
    a SecretBytes kind  its exact length (sealed state only)
    a dataclass         its fields in order, behind its tag

`decode` refuses every byte string that `encode` does not produce (check C01).
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeVar

from secagg.canonical import Reader, Writer
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


class _Codec(NamedTuple):
    write: Callable[[Writer, Any], object]
    read: Callable[[Reader], Any]


def encode(record: Any) -> bytes:
    """Canonical bytes of a record."""
    writer = Writer()
    _codec(type(record)).write(writer, record)
    return writer.finish()


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
        length = typing.cast(int, kind.LENGTH)
        return _Codec(
            lambda writer, value: writer.fixed(value.expose(), length),
            lambda reader: kind(reader.fixed(length)),
        )
    if dataclasses.is_dataclass(kind):
        return _structure(kind)
    raise TypeError(f"{kind} has no canonical codec")


def _sized(base: type, size: int) -> _Codec:
    if base is bytes:
        return _Codec(
            lambda writer, value: writer.fixed(value, size), lambda reader: reader.fixed(size)
        )
    name = {1: "u8", 2: "u16", 4: "u32", 8: "u64"}[size]
    return _Codec(
        lambda writer, value: getattr(writer, name)(value), lambda reader: getattr(reader, name)()
    )


def _sequence(item: _Codec) -> _Codec:
    def write(writer: Writer, values: tuple[Any, ...]) -> None:
        writer.u32(len(values))
        for value in values:
            item.write(writer, value)

    def read(reader: Reader) -> tuple[Any, ...]:
        # Every item takes a byte or more, so the count cannot promise more than is there.
        return tuple(item.read(reader) for _ in range(reader.count(reader.remaining)))

    return _Codec(write, read)


def _structure(kind: Any) -> _Codec:
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = [(field.name, _codec(hints[field.name])) for field in dataclasses.fields(kind)]
    tag = kind.__name__

    def write(writer: Writer, value: Any) -> None:
        writer.tag(tag)
        for name, codec in fields:
            codec.write(writer, getattr(value, name))

    def read(reader: Reader) -> Any:
        reader.tag(tag)
        return kind(*[codec.read(reader) for _, codec in fields])

    return _Codec(write, read)


_PLAIN: dict[Any, _Codec] = {
    bytes: _Codec(lambda writer, value: writer.blob(value), lambda reader: reader.blob()),
    str: _Codec(lambda writer, value: writer.text(value), lambda reader: reader.text()),
    bool: _Codec(lambda writer, value: writer.flag(value), lambda reader: reader.flag()),
}
