"""Bit-packing of ring elements: `bits` bits a value, little-endian bit order, no header.

Value i takes the bits i * bits ... (i + 1) * bits - 1 of the stream; bit b of the stream is bit
b mod 8 of byte b // 8. The last byte is filled with zero bits, and the reader insists on them.

Two vectorised stages. `fold` squeezes the 64 / word_bits values of each 64-bit word together, to
one field of 32 to 64 bits. `weave` lays these fields end to end: after 8 / gcd(field_bits, 8)
fields the next one starts at a byte again, so its short loop handles one place of this pattern in
all its repetitions, by shifts and ors into (unaligned, strided) 8-byte integers.

Deliberately not here: signs and scales (encoding.py), and entropy coding: masked values have none
to save.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from secagg.errors import MalformedMessage
from secagg.prg import Words, word_dtype

_Fields = NDArray[np.uint64]
_U64 = np.dtype("<u8")
_U8 = np.dtype("u1")
_UInt = TypeVar("_UInt", np.uint64, np.uint8)


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
    fields = np.zeros(shape.groups(len(words)) * shape.group_fields, _U64)
    fields.view(word_dtype(bits))[: len(words)] = words
    _fold(fields, shape)
    return _weave(fields, shape)[: packed_size(len(words), bits)].tobytes()


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
    stream = shape.stream(shape.groups(count))
    stream[:size] = np.frombuffer(data, np.uint8)
    fields = _unweave(stream, shape)
    _unfold(fields, shape)
    return fields.view(word_dtype(bits))[:count]


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

    def stream(self, groups: int) -> NDArray[np.uint8]:
        """Room for the packed bytes, and for the last 8-byte access to reach beyond them."""
        return np.zeros(groups * self.group_bytes + 8, np.uint8)


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
    """Spread each field's values over their words; bits above the field are dropped."""
    half, value = 32, shape.field_bits // 2
    if shape.word_bits == 64:
        fields &= np.uint64((1 << shape.bits) - 1)
    while half >= shape.word_bits:
        low = _low_halves(half, value)
        upper = fields << np.uint64(half - value)
        upper &= low << np.uint64(half)
        fields &= low
        fields |= upper
        half, value = half // 2, value // 2


def _weave(fields: _Fields, shape: _Shape) -> NDArray[np.uint8]:
    """Lay fields of `field_bits` end to end."""
    groups = len(fields) // shape.group_fields
    stream = shape.stream(groups)
    for number in range(shape.group_fields):
        byte, into = divmod(number * shape.field_bits, 8)
        field = fields[number :: shape.group_fields]
        place = _every(stream, _U64, byte, groups, shape)
        place |= field << np.uint64(into) if into else field
        if into + shape.field_bits > 64:
            ninth = _every(stream, _U8, byte + 8, groups, shape)
            ninth |= (field >> np.uint64(64 - into)).astype(_U8)
    return stream


def _unweave(stream: NDArray[np.uint8], shape: _Shape) -> _Fields:
    """The fields, with bits of their neighbours above them."""
    groups = (len(stream) - 8) // shape.group_bytes
    fields = np.empty(groups * shape.group_fields, _U64)
    for number in range(shape.group_fields):
        byte, into = divmod(number * shape.field_bits, 8)
        field = fields[number :: shape.group_fields]
        np.right_shift(_every(stream, _U64, byte, groups, shape), np.uint64(into), out=field)
        if into + shape.field_bits > 64:
            ninth = _every(stream, _U8, byte + 8, groups, shape)
            field |= ninth.astype(_U64) << np.uint64(64 - into)
    return fields


def _every(
    stream: NDArray[np.uint8], dtype: np.dtype[_UInt], byte: int, groups: int, shape: _Shape
) -> NDArray[_UInt]:
    """A view of the (mostly unaligned) integers at `byte` of every group; they do not overlap."""
    return np.ndarray((groups,), dtype, stream.data, byte, (shape.group_bytes,))
