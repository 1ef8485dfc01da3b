"""Records have one encoding each, however they are read: alone, kept, or a list in one go."""

import dataclasses

import pytest

from secagg.errors import ConfigError, MalformedMessage
from secagg.messages import (
    Acknowledge,
    Answer,
    DeliveredLeaf,
    Leaf,
    ShareDelivery,
    ShareKeys,
    Signed,
    Unmask,
    share_delivery_parts,
)
from secagg.records import decode, encode
from secagg.spool import MemorySpool

ANSWERS = tuple(Answer(i, i % 2, bytes([i]) * 33, bytes(32)) for i in range(5))
UNMASK = Unmask(bytes(32), ANSWERS)
SIGNED = Signed("acknowledge", 3, b"body", bytes(64))


def test_a_list_of_records_reads_back() -> None:
    assert decode(Unmask, encode(UNMASK)) == UNMASK


@pytest.mark.parametrize("number", range(5))
def test_each_record_of_a_list_must_be_canonical(number: int) -> None:
    data = encode(UNMASK)
    one = encode(ANSWERS[0])[1:]
    start = len(data) - (5 - number) * len(one)
    changed = bytearray(data)
    changed[start + 4] = ord("a")  # the tag
    with pytest.raises(MalformedMessage):
        decode(Unmask, bytes(changed))


def test_a_list_cannot_promise_more_than_is_there() -> None:
    empty = encode(Acknowledge(bytes(32), bytes(32), ()))
    for count in (1, 1000, 2**32 - 1):
        with pytest.raises(MalformedMessage):
            decode(Acknowledge, empty[:-4] + count.to_bytes(4))


def test_a_number_too_large_for_its_field_has_no_encoding() -> None:
    with pytest.raises(ConfigError, match="does not fit"):
        encode(dataclasses.replace(SIGNED, sender=1 << 32))


def test_kept_bytes_belong_to_one_value() -> None:
    data = encode(SIGNED)
    read = decode(Signed, data)
    assert (read, read.canonical, hash(read)) == (SIGNED, data[1:], hash(SIGNED))
    assert encode(dataclasses.replace(read, sender=4)) != data
    assert decode(Signed, encode(dataclasses.replace(read, sender=4))).sender == 4


def test_kept_bytes_inside_others_are_their_own_part() -> None:
    leaves = tuple(Leaf(i, bytes(32), b"sealed", (bytes(32),) * 2) for i in range(3))
    message = ShareKeys(SIGNED, leaves)
    read = decode(ShareKeys, encode(message))
    assert [encode(leaf) for leaf in read.leaves] == [encode(leaf) for leaf in leaves]
    assert encode(read) == encode(message)


@pytest.mark.parametrize("size", [1, 3, 4, 10, 11])
@pytest.mark.parametrize("piece", [1, 2, 5, 10])
def test_a_spool_gives_the_bytes_back_in_any_sizes(size: int, piece: int) -> None:
    data, spool = bytes(range(10)), MemorySpool()
    for start in range(0, len(data), piece):
        spool.append("ada", data[start : start + piece])
    sizes = [min(size, len(data) - start) for start in range(0, len(data), size)]
    parts = [bytes(part) for part in spool.read("ada", sizes)]
    assert list(map(len, parts)) == sizes
    assert b"".join(parts) == data


def test_a_delivery_in_parts_is_the_delivery() -> None:
    """The first part is the same for every holder."""
    bodies = (Signed("share_keys", 0, b"body", bytes(64)), Signed("share_keys", 1, b"", bytes(64)))
    leaf = DeliveredLeaf(0, Leaf(1, b"e", b"s", (bytes(32),)), (bytes(32),))
    for given in ((), bodies):
        parts = dict(share_delivery_parts(given, {1: [leaf, leaf], 2: []}))
        assert b"".join(parts[1]) == encode(ShareDelivery(given, (leaf, leaf)))
        assert b"".join(parts[2]) == encode(ShareDelivery(given, ()))
        assert parts[1][0] is parts[2][0]
