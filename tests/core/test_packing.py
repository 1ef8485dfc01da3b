"""Packing is the little-endian bit string of the values, at every width, and nothing else reads."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.errors import ConfigError, MalformedMessage
from secagg.packing import Packer, pack, packed_size, unpack
from secagg.prg import chunk_coordinates, word_dtype

WIDTHS = range(8, 65)


def words_of(values: list[int], bits: int) -> np.ndarray[Any, np.dtype[Any]]:
    return np.array(values, np.uint64).astype(word_dtype(bits))


def bit_string(values: list[int], bits: int) -> bytes:
    """The definition, with one big integer."""
    number = sum((value % (1 << bits)) << (i * bits) for i, value in enumerate(values))
    return number.to_bytes(packed_size(len(values), bits), "little")


@pytest.mark.parametrize("bits", WIDTHS)
@settings(max_examples=15)
@given(data=st.data())
def test_packing_is_the_little_endian_bit_string(bits: int, data: st.DataObject) -> None:
    word = (1 << (8 * word_dtype(bits).itemsize)) - 1
    values = data.draw(st.lists(st.integers(0, word), max_size=70))
    packed = pack(words_of(values, bits), bits)
    assert packed == bit_string(values, bits)
    opened = unpack(packed, bits, len(values))
    assert opened.dtype == word_dtype(bits)
    assert opened.tolist() == [value % (1 << bits) for value in values]


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("part", [1, 3])
def test_whole_and_part_chunks_roundtrip(bits: int, part: int) -> None:
    count = chunk_coordinates(bits) // part
    mixed = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    words = mixed.astype(word_dtype(bits))
    kept = words & words.dtype.type((1 << bits) - 1)
    packed = pack(words, bits)
    assert len(packed) == packed_size(count, bits)
    assert np.array_equal(unpack(packed, bits, count), kept)
    place = count // 2 // 8 * 8
    assert packed[place * bits // 8 :][: 4 * bits] == bit_string(
        [int(word) for word in kept[place : place + 32]], bits
    )


@pytest.mark.parametrize("bits", WIDTHS)
def test_packing_leaves_its_words_alone(bits: int) -> None:
    words = words_of([(1 << 64) - 1] * 40, bits)
    pack(words, bits)
    assert (words == words.dtype.type(-1 % (1 << (8 * words.itemsize)))).all()


@given(st.integers(8, 64), st.binary(max_size=200), st.integers(0, 200))
def test_bytes_that_unpack_are_the_bytes_that_pack(bits: int, data: bytes, count: int) -> None:
    try:
        words = unpack(data, bits, count)
    except MalformedMessage:
        assert len(data) != packed_size(count, bits) or data[-1] >> (count * bits % 8)
    else:
        assert pack(words, bits) == data


@pytest.mark.parametrize("bits", [bits for bits in WIDTHS if bits % 8])
def test_every_padding_bit_must_be_zero(bits: int) -> None:
    packed = bytearray(pack(words_of([1], bits), bits))
    for bit in range(bits % 8, 8):
        packed[-1] ^= 1 << bit
        with pytest.raises(MalformedMessage):
            unpack(bytes(packed), bits, 1)
        packed[-1] ^= 1 << bit


@pytest.mark.parametrize("bits", [8, 16, 17, 24, 32, 33, 64])
@pytest.mark.parametrize("change", [-1, 1])
def test_another_length_is_refused(bits: int, change: int) -> None:
    with pytest.raises(MalformedMessage):
        unpack(bytes(packed_size(9, bits) + change), bits, 9)


@pytest.mark.parametrize("bits", [16, 24, 29, 32, 64])
def test_views_into_a_larger_message_unpack_without_a_copy_of_it(bits: int) -> None:
    values = list(range(50))
    message = memoryview(b"\xff" + pack(words_of(values, bits), bits) + b"\xff")
    assert unpack(message[1:-1], bits, 50).tolist() == values


@pytest.mark.parametrize("bits", [7, 65])
def test_widths_outside_8_to_64_are_refused(bits: int) -> None:
    with pytest.raises(ConfigError):
        pack(np.zeros(1, "<u2"), bits)
    with pytest.raises(ConfigError):
        unpack(bytes(8), bits, 1)


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_packer_that_is_used_again_gives_what_a_new_one_gives(bits: int) -> None:
    packer = Packer(bits, 50)
    for count in (50, 3, 17, 0, 1, 49):
        words = words_of([(2**64 - 1 - i * 0x9E3779B97F4A7C15) % 2**64 for i in range(count)], bits)
        packed = packer.pack(words)
        assert packed == bit_string([int(word) for word in words], bits)
        total = words.copy()
        packer.add(total, packed)
        assert pack(total, bits) == bit_string([2 * int(word) for word in words], bits)


@pytest.mark.parametrize("bits", [8, 22, 24, 40, 50])
def test_what_does_not_unpack_adds_nothing(bits: int) -> None:
    words = words_of(list(range(9)), bits)
    with pytest.raises(MalformedMessage):
        Packer(bits, 9).add(words, bytes(packed_size(9, bits) + 1))
    assert words.tolist() == list(range(9))
