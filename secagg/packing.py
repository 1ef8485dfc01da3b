"""Bit-packing of ring elements: `bits` bits a value, little-endian bit order, no header.

Value i takes the bits i * bits ... (i + 1) * bits - 1 of the stream; bit b of the stream is bit
b mod 8 of byte b // 8. The last byte is filled with zero bits, and the reader insists on them.

Two vectorised stages. `fold` squeezes the 64 / word_bits values of each 64-bit word together, to
one field of 32 to 64 bits. `weave` lays these fields end to end: after 64 / gcd(field, 64) fields
the pattern of shifts repeats, so each step of its short loop moves one field of all repetitions.

Deliberately not here: signs and scales (encoding.py), and entropy coding: masked values have none
to save.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secagg.errors import MalformedMessage
from secagg.prg import Words, word_dtype

_Fields = NDArray[np.uint64]
_U64 = np.dtype("<u8")


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` values take at `bits` bits each."""
    return (count * bits + 7) // 8


def pack(words: Words, bits: int) -> bytes:
    """Pack the low `bits` bits of each word; what is above them is dropped (mod 2^bits).

    `words`: (count,) of `word_dtype(bits)`.
    """
    shape = _Shape.of(bits)
    if bits == shape.word_bits:
        return words.astype(word_dtype(bits), copy=False).tobytes()
    room = np.zeros(shape.groups(len(words)) * shape.group_words, words.dtype)
    room[: len(words)] = words
    fields = room.view(_U64)
    _fold(fields, shape)
    stream = _weave(fields, shape).reshape(-1).view(np.uint8)
    return stream[: packed_size(len(words), bits)].tobytes()


def unpack(data: bytes | memoryview, bits: int, count: int) -> Words:
    """The `count` values packed in `data`: (count,) of `word_dtype(bits)`, all below 2^bits.

    Where a value fills its word, the result is a read-only view of `data`.

    Raises:
        MalformedMessage: another length, or padding bits that are not zero.
    """
    shape = _Shape.of(bits)
    size = packed_size(count, bits)
    if len(data) != size:
        raise MalformedMessage(f"{count} values of {bits} bits take {size} bytes, not {len(data)}")
    if (used := count * bits % 8) and data[-1] >> used:
        raise MalformedMessage("the padding bits behind the last value are not zero")
    if bits == shape.word_bits:
        return np.frombuffer(data, word_dtype(bits))
    stream = np.zeros(shape.groups(count) * shape.group_stream, _U64)
    stream.view(np.uint8)[:size] = np.frombuffer(data, np.uint8)
    fields = _unweave(stream.reshape(-1, shape.group_stream), shape)
    _unfold(fields, shape)
    return fields.view(word_dtype(bits))[:count]


@dataclass(frozen=True, slots=True)
class _Shape:
    """How values of one width lie in words, fields and the stream."""

    bits: int
    word_bits: int
    field_bits: int
    group_fields: int
    """Fields after which a field starts at a 64-bit boundary of the stream again."""
    group_stream: int
    """64-bit words of stream that such a group takes."""

    @classmethod
    def of(cls, bits: int) -> _Shape:
        word_bits = word_dtype(bits).itemsize * 8
        field_bits = bits * 64 // word_bits
        common = math.gcd(field_bits, 64)
        return cls(bits, word_bits, field_bits, 64 // common, field_bits // common)

    @property
    def group_words(self) -> int:
        return self.group_fields * 64 // self.word_bits

    def groups(self, count: int) -> int:
        """Groups that hold `count` values, the last one perhaps in part."""
        return -(-count // self.group_words)

    def places(self) -> Iterator[tuple[int, int, int]]:
        """Of each field of a group: its number, its first stream word, its shift in there."""
        for field in range(self.group_fields):
            yield field, *divmod(field * self.field_bits, 64)


def _low_halves(half_bits: int, value_bits: int) -> np.uint64:
    """A mask with `value_bits` ones at the bottom of every second stretch of `half_bits`."""
    ones = (1 << value_bits) - 1
    return np.uint64(sum(ones << place for place in range(0, 64, 2 * half_bits)))


def _fold(fields: _Fields, shape: _Shape) -> None:
    """In each 64-bit word, move the low `bits` of its values next to each other."""
    half, value = shape.word_bits, shape.bits
    if half == 64:
        fields &= np.uint64((1 << value) - 1)
    while half < 64:
        low = _low_halves(half, value)
        upper = fields >> np.uint64(half - value)
        upper &= low << np.uint64(value)
        fields &= low
        fields |= upper
        half, value = 2 * half, 2 * value


def _unfold(fields: _Fields, shape: _Shape) -> None:
    half, value = 32, shape.field_bits // 2
    while half >= shape.word_bits:
        low = _low_halves(half, value)
        upper = fields << np.uint64(half - value)
        upper &= low << np.uint64(half)
        fields &= low
        fields |= upper
        half, value = half // 2, value // 2


def _weave(fields: _Fields, shape: _Shape) -> _Fields:
    """Lay fields of `field_bits` end to end: (groups, group_stream) uint64."""
    columns = fields.reshape(-1, shape.group_fields)
    stream = np.zeros((len(columns), shape.group_stream), _U64)
    for field, word, shift in shape.places():
        stream[:, word] |= columns[:, field] << np.uint64(shift)
        if shift + shape.field_bits > 64:
            stream[:, word + 1] = columns[:, field] >> np.uint64(64 - shift)
    return stream


def _unweave(stream: _Fields, shape: _Shape) -> _Fields:
    columns = np.empty((len(stream), shape.group_fields), _U64)
    for field, word, shift in shape.places():
        columns[:, field] = stream[:, word] >> np.uint64(shift)
        if shift + shape.field_bits > 64:
            columns[:, field] |= stream[:, word + 1] << np.uint64(64 - shift)
    columns &= np.uint64((1 << shape.field_bits) - 1)
    return columns.reshape(-1)
