"""The keystream is AES-256-CTR, seekable by chunk, and masks cancel modulo the word."""

import hashlib
import hmac
import tracemalloc

import numpy as np
import pytest
from Crypto.Cipher import AES
from Crypto.Util import Counter
from hypothesis import given
from hypothesis import strategies as st

from secagg.errors import ConfigError, UsageError
from secagg.prg import (
    CHUNK_BYTES,
    Keystream,
    add_masks,
    chunk_coordinates,
    new_scratch,
    stream_key,
    word_dtype,
)
from secagg.secret import PairwiseSeed, SelfMaskSeed, StreamKey

KEY = bytes(range(32))
WORDS = [np.dtype("<u2"), np.dtype("<u4"), np.dtype("<u8")]


def aes_ctr(key: bytes, chunk: int, size: int) -> bytes:
    """pycryptodome's plain CTR mode: another implementation, and not GCM."""
    counter = Counter.new(32, prefix=chunk.to_bytes(12), initial_value=2)
    return AES.new(key, AES.MODE_CTR, counter=counter).encrypt(bytes(size))


def keystream(label: str) -> Keystream:
    return Keystream(StreamKey(hashlib.sha256(label.encode()).digest()))


@pytest.mark.parametrize("dtype", WORDS)
@pytest.mark.parametrize("chunk", [0, 1, 2**32 - 1, 2**32, 2**96 - 1])
def test_a_chunk_is_aes_256_ctr_from_counter_2(chunk: int, dtype: np.dtype[np.uint64]) -> None:
    out = np.empty(CHUNK_BYTES // dtype.itemsize, dtype)
    Keystream(StreamKey(KEY)).fill(chunk, out)
    assert out.tobytes() == aes_ctr(KEY, chunk, CHUNK_BYTES)


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**96 - 1), st.integers(0, 3000))
def test_a_short_chunk_is_a_prefix_of_the_whole(key: bytes, chunk: int, count: int) -> None:
    out = np.empty(count, "<u2")
    Keystream(StreamKey(key)).fill(chunk, out)
    assert out.tobytes() == aes_ctr(key, chunk, 2 * count)


def test_chunks_are_the_same_in_any_order() -> None:
    def bytes_of(stream: Keystream, chunk: int) -> bytes:
        return stream.write(chunk, 1000, new_scratch()).tobytes()

    forward, backward = Keystream(StreamKey(KEY)), Keystream(StreamKey(KEY))
    first = [bytes_of(forward, chunk) for chunk in range(5)]
    assert first == [bytes_of(backward, chunk) for chunk in reversed(range(5))][::-1]
    assert len(set(first)) == 5


def test_more_than_a_chunk_is_refused() -> None:
    with pytest.raises(UsageError):
        Keystream(StreamKey(KEY)).fill(0, np.empty(CHUNK_BYTES + 1, np.uint8))


def test_a_stream_key_is_hkdf_sha256_over_the_canonical_info() -> None:
    seed, context = bytes(range(32)), b"\xaa" * 32
    info = b"\x01" + b"".join(
        len(part).to_bytes(4) + part for part in (b"secagg/1", context, b"mask")
    )
    extracted = hmac.digest(bytes(32), seed, "sha256")  # RFC 5869, section 2.2 and 2.3
    expected = hmac.digest(extracted, info + (7).to_bytes(4) + b"\x01", "sha256")
    key = stream_key(
        PairwiseSeed(seed), label="secagg/1", context=context, purpose="mask", vector=7
    )
    assert key == StreamKey(expected)


@pytest.mark.parametrize(
    "change",
    [
        {"label": "other"},
        {"context": b"c" * 31 + b"d"},
        {"purpose": "other"},
        {"vector": 1},
        {"label": "lab", "context": b"el" + b"c" * 32},
    ],
)
def test_stream_keys_differ_when_anything_in_their_info_does(change: dict[str, object]) -> None:
    seed = SelfMaskSeed(KEY)
    info = {"label": "label", "context": b"c" * 32, "purpose": "mask", "vector": 0}
    assert stream_key(seed, **info) == stream_key(seed, **info)  # type: ignore[arg-type]
    assert stream_key(seed, **info) != stream_key(seed, **{**info, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ring_bits", "dtype"),
    [(8, "<u2"), (16, "<u2"), (17, "<u4"), (32, "<u4"), (33, "<u8"), (64, "<u8")],
)
def test_a_word_is_the_smallest_that_holds_the_ring(ring_bits: int, dtype: str) -> None:
    assert word_dtype(ring_bits) == np.dtype(dtype)
    assert chunk_coordinates(ring_bits) * np.dtype(dtype).itemsize == CHUNK_BYTES


@pytest.mark.parametrize("ring_bits", [-1, 0, 7, 65])
def test_rings_without_a_word_are_refused(ring_bits: int) -> None:
    with pytest.raises(ConfigError):
        word_dtype(ring_bits)


@pytest.mark.parametrize("dtype", WORDS)
@pytest.mark.parametrize("part", [1, 3])
def test_masks_are_sums_modulo_the_word(dtype: np.dtype[np.uint64], part: int) -> None:
    count = CHUNK_BYTES // dtype.itemsize // part
    words = np.arange(count, dtype=dtype)
    plus, minus = [keystream("a"), keystream("b")], [keystream("c")]
    streams = []
    for stream in (*plus, *minus):
        out = np.empty(count, dtype)
        stream.fill(9, out)
        streams.append([int(word) for word in out])
    modulus = 1 << (8 * dtype.itemsize)
    expected = [(i + a + b - c) % modulus for i, (a, b, c) in enumerate(zip(*streams, strict=True))]
    add_masks(words, 9, plus, minus, new_scratch())
    assert words.tolist() == expected


@given(st.integers(2, 6), st.integers(0, 2**40), st.integers(1, 500))
def test_pairwise_masks_cancel_in_the_sum(n: int, chunk: int, count: int) -> None:
    pair = {(i, j): keystream(f"{i} {j}") for j in range(n) for i in range(j)}
    total = np.zeros(count, "<u4")
    for me in range(n):
        words = np.full(count, me, "<u4")
        plus = [pair[me, other] for other in range(me + 1, n)]
        minus = [pair[other, me] for other in range(me)]
        add_masks(words, chunk, plus, minus, new_scratch())
        total += words
    assert (total == n * (n - 1) // 2).all()


def test_masking_allocates_nothing_of_a_chunks_size() -> None:
    words, scratch = np.zeros(chunk_coordinates(24), "<u4"), new_scratch()
    streams = [keystream(str(number)) for number in range(10)]
    tracemalloc.start()
    try:
        add_masks(words, 3, streams[:5], streams[5:], scratch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < CHUNK_BYTES // 8
