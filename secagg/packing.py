"""Bit-packing of ring elements: `bits` bits a value, little-endian bit order, no header.

Value i takes the bits i * bits ... (i + 1) * bits - 1 of the stream; bit b of the stream is bit
b mod 8 of byte b // 8. The last byte is filled with zero bits, and the reader insists on them.

Two vectorised stages. `fold` squeezes the 64 / word_bits values of each 64-bit word together, to
one field of 32 to 64 bits. `weave` lays these fields end to end: after 8 / gcd(field_bits, 8)
fields the next one starts at a byte again, so its short loop handles one place of this pattern in
all its repetitions, by shifts and ors into (unaligned, strided) 8-byte integers. Widths of whole
bytes need neither: their words lie over each other in the stream, each with its upper bytes where
the next ones begin.

New memory costs more than the work here, so `Packer` keeps its room from call to call.

Deliberately not here: signs and scales (encoding.py), and entropy coding: masked values have none
to save.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from secagg.errors import MalformedMessage
from secagg.prg import Words, word_dtype

_Fields = NDArray[np.uint64]
_U64 = np.dtype("<u8")
_U8 = np.dtype("u1")
_UInt = TypeVar("_UInt", bound=np.unsignedinteger[Any])


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` values take at `bits` bits each."""
    return (count * bits + 7) // 8


def pack(words: Words, bits: int) -> bytes:
    """Pack the low `bits` bits of each word; what is above them is dropped (mod 2^bits).

    `words`: (count,) of `word_dtype(bits)`.
    """
    return Packer(bits, len(words)).pack(words)


def unpack(data: bytes | memoryview, bits: int, count: int) -> Words:
    """The `count` values packed in `data`: (count,) of `word_dtype(bits)`, all below 2^bits.

    Raises:
        MalformedMessage: another length, or padding bits that are not zero.
    """
    words = np.zeros(count, word_dtype(bits))
    Packer(bits, count).add(words, data)
    if bits < 8 * words.itemsize:
        words &= words.dtype.type((1 << bits) - 1)
    return words


class Packer:
    """Packs words of one width, at most `most` at a time, and adds packed ones up."""

    __slots__ = ("_fields", "_shape", "_stream", "_upper")

    def __init__(self, bits: int, most: int) -> None:
        self._shape = _Shape.of(bits)
        groups = self._shape.groups(most)
        self._fields = np.empty(groups * self._shape.group_fields, _U64)
        self._upper = np.empty_like(self._fields)
        self._stream = np.empty(groups * self._shape.group_bytes + 8, _U8)

    def pack(self, words: Words) -> bytes:
        """See `pack`."""
        shape, size = self._shape, packed_size(len(words), self._shape.bits)
        if shape.bits == shape.word_bits:
            return words.astype(word_dtype(shape.bits), copy=False).tobytes()
        if shape.bits % 8 == 0:
            _overlay(words, self._upper.view(words.dtype), self._stream, shape.bits // 8)
            return self._stream[:size].tobytes()
        fields, upper, stream = self._room(shape.groups(len(words)))
        in_words = fields.view(words.dtype)
        in_words[: len(words)] = words
        in_words[len(words) :] = 0
        _fold(fields, upper, shape)
        stream[:] = 0
        _weave(fields, stream, shape)
        return stream[:size].tobytes()

    def add(self, words: Words, data: bytes | memoryview) -> None:
        """Add the values packed in `data` to `words`, modulo 2^bits: bits above mean nothing.

        `words`: (count,) of `word_dtype(bits)`.

        Raises:
            MalformedMessage: see `unpack`; `words` is as it was.
        """
        shape = self._shape
        size = _check(data, len(words), shape.bits)
        if shape.bits == shape.word_bits:
            words += np.frombuffer(data, words.dtype)
            return
        if shape.bits % 8 == 0 and size:
            words[:-1] += _overlaid(data, words.dtype, shape.bits // 8, len(words) - 1)
            words[-1:] += words.dtype.type(int.from_bytes(data[-shape.bits // 8 :], "little"))
            return
        fields, upper, stream = self._room(shape.groups(len(words)))
        stream[:size] = np.frombuffer(data, _U8)
        stream[size:] = 0
        _unweave(stream, fields, shape)
        _unfold(fields, upper, shape)
        words += fields.view(words.dtype)[: len(words)]

    def _room(self, groups: int) -> tuple[_Fields, _Fields, NDArray[np.uint8]]:
        count, size = groups * self._shape.group_fields, groups * self._shape.group_bytes + 8
        return self._fields[:count], self._upper[:count], self._stream[:size]


def _check(data: bytes | memoryview, count: int, bits: int) -> int:
    """The size of `data`, which must be that of `count` values without stray bits."""
    size = packed_size(count, bits)
    if len(data) != size:
        raise MalformedMessage(f"{count} values of {bits} bits take {size} bytes, not {len(data)}")
    if (used := count * bits % 8) and data[-1] >> used:
        raise MalformedMessage("the padding bits behind the last value are not zero")
    return size


def _overlay(words: Words, half: Words, stream: NDArray[np.uint8], value_bytes: int) -> None:
    """Lay words over each other, `value_bytes` apart; `half` is room for half of them.

    First the even ones, then the odd ones, so that no assignment writes a byte twice (numpy
    promises no order), each through contiguous words, from which numpy is quick; then the lowest
    bytes of the even ones, where odd ones reached into them.
    """
    places = _overlaid(stream.data, words.dtype, value_bytes, len(words))
    for first in (0, 1):
        part = half[: len(words[first::2])]
        part[:] = words[first::2]
        places[first::2] = part
    octets = words.view(_U8)
    for byte in range(words.itemsize - value_bytes):
        even = stream[byte :: 2 * value_bytes][: (len(words) + 1) // 2]
        even[:] = octets[byte :: 2 * words.itemsize]


def _overlaid(
    data: bytes | memoryview, dtype: np.dtype[_UInt], value_bytes: int, count: int
) -> NDArray[_UInt]:
    """`count` words that begin `value_bytes` apart, bits of the next value above their own."""
    return np.ndarray((count,), dtype, data, 0, (value_bytes,))


@dataclass(frozen=True, slots=True)
class _Shape:
    """How values of one width lie in words, fields and the stream."""

    bits: int
    word_bits: int
    field_bits: int
    group_fields: int
    """Fields after which the next one starts at a byte of the stream again; at least 2, so that
    the 8-byte integers at one place of all groups never overlap."""

    @classmethod
    def of(cls, bits: int) -> _Shape:
        word_bits = word_dtype(bits).itemsize * 8
        field_bits = bits * 64 // word_bits
        return cls(bits, word_bits, field_bits, max(2, 8 // math.gcd(field_bits, 8)))

    @property
    def group_bytes(self) -> int:
        return self.group_fields * self.field_bits // 8

    def groups(self, count: int) -> int:
        """Groups that hold `count` values, the last one perhaps in part; one at least."""
        return max(1, -(-count // (self.group_fields * 64 // self.word_bits)))


def _low_halves(half_bits: int, value_bits: int) -> np.uint64:
    """A mask with `value_bits` ones at the bottom of every second stretch of `half_bits`."""
    ones = (1 << value_bits) - 1
    return np.uint64(sum(ones << place for place in range(0, 64, 2 * half_bits)))


def _fold(fields: _Fields, upper: _Fields, shape: _Shape) -> None:
    """In each 64-bit word, move the low `bits` of its values next to each other."""
    half, value = shape.word_bits, shape.bits
    if half == 64:
        fields &= np.uint64((1 << value) - 1)
    while half < 64:
        low = _low_halves(half, value)
        np.right_shift(fields, np.uint64(half - value), out=upper)
        upper &= low << np.uint64(value)
        fields &= low
        fields |= upper
        half, value = 2 * half, 2 * value


def _unfold(fields: _Fields, upper: _Fields, shape: _Shape) -> None:
    """Spread each field's values over their words; bits above the last of them stay."""
    half, value = 32, shape.field_bits // 2
    while half >= shape.word_bits:
        low = _low_halves(half, value)
        np.left_shift(fields, np.uint64(half - value), out=upper)
        upper &= low << np.uint64(half)
        fields &= low
        fields |= upper
        half, value = half // 2, value // 2


def _weave(fields: _Fields, stream: NDArray[np.uint8], shape: _Shape) -> None:
    """Lay fields of `field_bits` end to end in a stream of zeros."""
    groups = len(fields) // shape.group_fields
    for number in range(shape.group_fields):
        byte, into = divmod(number * shape.field_bits, 8)
        field = fields[number :: shape.group_fields]
        place = _every(stream, _U64, byte, groups, shape)
        place |= field << np.uint64(into) if into else field
        if into + shape.field_bits > 64:
            ninth = _every(stream, _U8, byte + 8, groups, shape)
            ninth |= (field >> np.uint64(64 - into)).astype(_U8)


def _unweave(stream: NDArray[np.uint8], fields: _Fields, shape: _Shape) -> None:
    """The fields, with bits of their neighbours above them."""
    groups = len(fields) // shape.group_fields
    for number in range(shape.group_fields):
        byte, into = divmod(number * shape.field_bits, 8)
        field = fields[number :: shape.group_fields]
        np.right_shift(_every(stream, _U64, byte, groups, shape), np.uint64(into), out=field)
        if into + shape.field_bits > 64:
            ninth = _every(stream, _U8, byte + 8, groups, shape)
            field |= ninth.astype(_U64) << np.uint64(64 - into)


def _every(
    stream: NDArray[np.uint8], dtype: np.dtype[_UInt], byte: int, groups: int, shape: _Shape
) -> NDArray[_UInt]:
    """A view of the (mostly unaligned) integers at `byte` of every group; they do not overlap."""
    return np.ndarray((groups,), dtype, stream.data, byte, (shape.group_bytes,))
