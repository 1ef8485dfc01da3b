"""Codecs follow from declarations: which of them have one, and what each field becomes."""

from dataclasses import dataclass

import pytest

from secagg.errors import ConfigError, MalformedMessage
from secagg.records import U8, U32, U64, Digest, decode, encode
from secagg.secret import SealKey


@dataclass(frozen=True, slots=True)
class Fields:
    small: U8
    middle: U32
    large: U64
    digest: Digest
    blob: bytes
    name: str
    key: SealKey
    rows: tuple[U32, ...]


@dataclass(frozen=True, slots=True)
class Row:
    index: U8
    digest: Digest


@dataclass(frozen=True, slots=True)
class Rows:
    rows: tuple[Row, ...]


VALUE = Fields(1, 2, 3, b"d" * 32, b"blob", "Zoë", SealKey(b"k" * 32), (7, 8))


def test_every_kind_of_field_has_its_bytes_in_order() -> None:
    data = encode(VALUE)
    assert data == (
        b"\x01" + b"\0\0\0\x06Fields" + b"\x01" + b"\0\0\0\x02" + bytes(7) + b"\x03" + b"d" * 32
        + b"\0\0\0\x04blob" + b"\0\0\0\x04Zo\xc3\xab" + b"k" * 32
        + b"\0\0\0\x02\0\0\0\x07\0\0\0\x08"
    )  # fmt: skip
    assert decode(Fields, data) == VALUE
    for end in range(len(data)):
        with pytest.raises(MalformedMessage):
            decode(Fields, data[:end])
    with pytest.raises(MalformedMessage, match="1 trailing bytes"):
        decode(Fields, data + b"\0")


def test_rows_of_one_size_are_read_at_once_and_each_has_its_tag() -> None:
    """C01."""
    value = Rows(tuple(Row(index, bytes([index]) * 32) for index in range(3)))
    data = encode(value)
    assert decode(Rows, data) == value
    assert decode(Rows, encode(Rows(()))) == Rows(())
    place = data.rindex(b"Row")
    with pytest.raises(MalformedMessage, match="expected 'Row' here"):
        decode(Rows, data[:place] + b"Sow" + data[place + 3 :])
    with pytest.raises(MalformedMessage, match="are missing"):
        decode(Rows, data[:-1])


def test_a_list_promises_no_more_items_than_bytes_are_left() -> None:
    """C01: memory is never asked for on a stranger's word."""
    data = encode(Rows(()))
    with pytest.raises(MalformedMessage, match="a count of 5 is over the limit of 4"):
        decode(Rows, data[:-4] + b"\0\0\0\x05")
    with pytest.raises(MalformedMessage, match="bytes are missing"):
        decode(Rows, data[:-4] + b"\0\0\0\x01")


@pytest.mark.parametrize(
    "value",
    [
        Row(256, bytes(32)),
        Row(-1, bytes(32)),
        Row(0, bytes(31)),
        Row(0, bytes(33)),
        Rows((Row(256, bytes(32)),)),
    ],
)
def test_a_value_that_does_not_fit_its_field_has_no_encoding(value: object) -> None:
    with pytest.raises(ConfigError):
        encode(value)


@dataclass(frozen=True, slots=True)
class Pair:
    both: tuple[U32, U32]


@dataclass(frozen=True, slots=True)
class Untyped:
    number: int


@pytest.mark.parametrize(
    ("value", "cause"), [(Pair((1, 2)), "no homogeneous tuple"), (Untyped(1), "no canonical codec")]
)
def test_a_declaration_without_one_encoding_is_refused_when_it_is_used(
    value: object, cause: str
) -> None:
    with pytest.raises(TypeError, match=cause):
        encode(value)
