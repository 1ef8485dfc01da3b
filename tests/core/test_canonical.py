"""One value has one encoding: the reader takes what the writer writes and nothing else."""

import math
import struct
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg.canonical import MAX_BLOB, Reader, Writer
from secagg.errors import ConfigError, MalformedMessage

Field = tuple[str, Any]

nfc_text = st.text(max_size=20).map(lambda text: unicodedata.normalize("NFC", text))
plain_floats = st.floats(allow_nan=False, allow_infinity=False).filter(
    lambda x: x != 0 or math.copysign(1, x) > 0
)
fields: st.SearchStrategy[Field] = st.one_of(
    st.tuples(st.just("u8"), st.integers(0, 2**8 - 1)),
    st.tuples(st.just("u32"), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("u64"), st.integers(0, 2**64 - 1)),
    st.tuples(st.just("f64"), plain_floats),
    st.tuples(st.just("blob"), st.binary(max_size=20)),
    st.tuples(st.just("text"), nfc_text),
    st.tuples(st.just("tag"), st.text("abcdefgh/_0123456789", max_size=20)),
)
records = st.lists(fields, max_size=8)


def write(record: list[Field]) -> bytes:
    writer = Writer()
    for kind, value in record:
        getattr(writer, kind)(value)
    return writer.finish()


def read(data: bytes, record: list[Field]) -> list[Field]:
    """Read fields of the kinds in `record`; tags are demanded by name."""
    reader = Reader(data, "record")
    found: list[Field] = []
    for kind, value in record:
        if kind == "tag":
            reader.tag(value)
            found.append((kind, value))
        else:
            found.append((kind, getattr(reader, kind)()))
    reader.end()
    return found


@given(records)
def test_what_is_written_reads_back(record: list[Field]) -> None:
    assert read(write(record), record) == record


@given(records, st.data())
def test_whatever_reads_is_what_its_values_write(record: list[Field], data: st.DataObject) -> None:
    changed = bytearray(write(record))
    place = data.draw(st.integers(0, len(changed) - 1))
    changed[place] ^= data.draw(st.integers(1, 255))
    try:
        found = read(bytes(changed), record)
    except MalformedMessage:
        return
    assert write(found) == bytes(changed)
    assert found != record


@given(st.binary(max_size=60), records)
def test_random_bytes_read_only_if_they_are_canonical(data: bytes, record: list[Field]) -> None:
    try:
        found = read(b"\x01" + data, record)
    except MalformedMessage:
        return
    assert write(found) == b"\x01" + data


@given(records, st.binary(min_size=1, max_size=5))
def test_trailing_bytes_are_refused(record: list[Field], more: bytes) -> None:
    with pytest.raises(MalformedMessage, match=f"{len(more)} trailing bytes"):
        read(write(record) + more, record)


@given(records, st.data())
def test_missing_bytes_are_refused(record: list[Field], data: st.DataObject) -> None:
    whole = write(record)
    with pytest.raises(MalformedMessage):
        read(whole[: data.draw(st.integers(0, len(whole) - 1))], record)


@given(records, records)
def test_different_records_of_tagged_kinds_have_different_bytes(
    one: list[Field], other: list[Field]
) -> None:
    tagged = [
        [field for kind, value in r for field in (("tag", kind), (kind, value))]
        for r in (one, other)
    ]
    assert (write(tagged[0]) == write(tagged[1])) == (one == other)


WRITES: dict[str, Callable[[Writer], object]] = {
    "an integer too large": lambda w: w.u8(256),
    "a negative integer": lambda w: w.u64(-1),
    "a 65-bit integer": lambda w: w.u64(1 << 64),
    "-0.0": lambda w: w.f64(-0.0),
    "NaN": lambda w: w.f64(math.nan),
    "infinity": lambda w: w.f64(math.inf),
    "text that is not NFC": lambda w: w.text("Zoe\u0308"),
    "text of 4097 bytes": lambda w: w.text("x" * 4097),
    "a fixed field of another length": lambda w: w.fixed(b"ab", 3),
    "a blob over the limit": lambda w: w.blob(bytes(MAX_BLOB + 1)),
}


@pytest.mark.parametrize("field", WRITES.values(), ids=WRITES)
def test_what_has_no_encoding_is_not_written(field: Callable[[Writer], object]) -> None:
    with pytest.raises(ConfigError):
        field(Writer())


READS: dict[str, tuple[bytes, Callable[[Reader], object]]] = {
    "-0.0": (struct.pack(">d", -0.0), Reader.f64),
    "NaN": (struct.pack(">d", math.nan), Reader.f64),
    "another NaN": (b"\xff\xf0" + bytes(5) + b"\x01", Reader.f64),
    "infinity": (struct.pack(">d", math.inf), Reader.f64),
    "minus infinity": (struct.pack(">d", -math.inf), Reader.f64),
    "text that is not NFC": (b"\0\0\0\x03e\xcc\x88", Reader.text),
    "text that is not UTF-8": (b"\0\0\0\x01\xff", Reader.text),
    "an overlong UTF-8 form": (b"\0\0\0\x02\xc0\x80", Reader.text),
    "a surrogate in UTF-8": (b"\0\0\0\x03\xed\xa0\x80", Reader.text),
    "text of 4097 bytes": ((4097).to_bytes(4) + b"x" * 4097, Reader.text),
    "a blob over its limit": (b"\0\0\0\x03abc", lambda r: r.blob(2)),
    "a blob beyond the record": (b"\0\0\0\x03ab", Reader.blob),
    "a count over its limit": (b"\0\0\0\x03", lambda r: r.count(2)),
    "another tag": (b"\0\0\0\x03abd", lambda r: r.tag("abc")),
    "a longer tag": (b"\0\0\0\x04abcd", lambda r: r.tag("abc")),
    "a fixed field cut short": (b"ab", lambda r: r.fixed(3)),
}


@pytest.mark.parametrize(("data", "field"), READS.values(), ids=READS)
def test_what_the_writer_refuses_is_not_read(
    data: bytes, field: Callable[[Reader], object]
) -> None:
    with pytest.raises(MalformedMessage):
        field(Reader(b"\x01" + data, "record"))


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x02"])
def test_another_version_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        Reader(data, "record")


def test_errors_name_the_record_and_the_place_and_not_the_bytes() -> None:
    with pytest.raises(MalformedMessage, match=r"malformed plan at byte 1: expected 'abc' here$"):
        Reader(b"\x01\0\0\0\0", "plan").tag("abc")
