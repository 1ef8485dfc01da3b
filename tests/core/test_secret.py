"""Secrets do not leave by accident: not printed, copied, pickled, converted, hashed or compared."""

import copy
import dataclasses
import json
import logging
import os
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from secagg import secret as kinds
from secagg.secret import MaskKeyShare, MaskSeed, SecretBytes, Seed, SelfMaskSeed, SelfMaskShare

ALL = [
    kind
    for kind in vars(kinds).values()
    if isinstance(kind, type) and issubclass(kind, SecretBytes) and kind is not SecretBytes
]
OF_ANY_LENGTH = {kinds.Share, kinds.KeyShare}
"""Shares: their scheme gives them one length (`Scheme.share_bytes`), and a leaf has to have it."""
VALUE = b"correct horse battery staple 123"


@dataclasses.dataclass(frozen=True)
class Holder:
    seed: Seed


WAYS_OUT: dict[str, Callable[[Any], object]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "list": list,
    "int.from_bytes": int.from_bytes,
    "b.join": lambda secret: b"".join([secret]),
    "index": lambda secret: secret[0],
    "slice": lambda secret: secret[:],
    "concatenation": lambda secret: b"" + secret,
    "contains": lambda secret: 99 in secret,
    "hash": hash,
    "json": json.dumps,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "asdict": lambda secret: dataclasses.asdict(Holder(secret)),
    "numpy array": np.array,
    "numpy asarray": np.asarray,
    "numpy frombuffer": np.frombuffer,
    "dict": vars,
    "pickle": pickle.dumps,
    "oldest pickle": lambda secret: pickle.dumps(secret, 0),
}


@pytest.mark.parametrize("way", WAYS_OUT.values(), ids=WAYS_OUT)
def test_every_way_out_but_expose_is_refused(way: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError) as refused:
        way(MaskSeed(VALUE))
    assert "horse" not in str(refused.value)


PRINTS: dict[str, Callable[[Any], str]] = {
    "repr": repr,
    "str": str,
    "f-string": lambda secret: f"{secret}",
    "f-string with a spec": lambda secret: f"{secret:>80}",
    "f-string with !r": lambda secret: f"{secret!r}",
    "percent": lambda secret: "%s %r" % (secret, secret),  # noqa: UP031
    "in a dataclass": lambda secret: repr(Holder(secret)),
    "in an error": lambda secret: str(ValueError(secret)),
    "in a log record": lambda secret: logging.LogRecord(
        "name", 0, "path", 1, "got %s", (secret,), None
    ).getMessage(),
}


@pytest.mark.parametrize("printed", PRINTS.values(), ids=PRINTS)
def test_a_printed_secret_is_its_kind_and_length(printed: Callable[[Any], str]) -> None:
    text = printed(MaskSeed(VALUE))
    assert "<MaskSeed, 32 bytes, redacted>" in text
    assert "horse" not in text
    assert VALUE.hex() not in text


def test_expose_gives_the_bytes() -> None:
    assert MaskSeed(VALUE).expose() == VALUE


def test_only_the_same_kind_is_equal() -> None:
    assert MaskSeed(VALUE) == MaskSeed(VALUE)
    assert MaskSeed(VALUE) != MaskSeed(VALUE[::-1])
    assert MaskSeed(VALUE) != SelfMaskSeed(VALUE)
    assert MaskSeed(VALUE) != Seed(VALUE)
    assert MaskSeed(VALUE) != VALUE
    assert MaskKeyShare(bytes(33)) != SelfMaskShare(bytes(33))


@pytest.mark.parametrize("kind", ALL)
def test_no_kind_has_a_dictionary(kind: type[SecretBytes]) -> None:
    assert not hasattr(kind(bytes(kind.LENGTH or 40)), "__dict__")


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind not in OF_ANY_LENGTH])
def test_every_kind_but_a_schemes_shares_has_one_length(kind: type[SecretBytes]) -> None:
    assert kind.LENGTH in (32, 33)
    for length in (0, kind.LENGTH - 1, kind.LENGTH + 1):
        with pytest.raises(ValueError, match=f"not {length}$"):
            kind(bytes(length))


def test_draw_takes_exactly_its_length_from_the_randomness() -> None:
    asked: list[int] = []

    def randomness(length: int) -> bytes:
        asked.append(length)
        return VALUE

    assert SelfMaskSeed.draw(randomness) == SelfMaskSeed(VALUE)
    assert asked == [32]
    for kind in (SecretBytes, *OF_ANY_LENGTH):
        with pytest.raises(TypeError, match="no fixed length"):
            kind.draw(os.urandom)


@pytest.mark.parametrize("kind", sorted(OF_ANY_LENGTH, key=lambda kind: kind.__name__))
def test_shares_of_a_schemes_own_length_keep_it(kind: type[SecretBytes]) -> None:
    for length in (1, 33, 5_000):
        value = os.urandom(length)
        assert (len(kind(value)), kind(value).expose()) == (length, value)
        assert repr(kind(value)) == f"<{kind.__name__}, {length} bytes, redacted>"


def test_a_secret_keeps_its_value_when_its_source_changes() -> None:
    source = bytearray(VALUE)
    seed = MaskSeed(source)  # type: ignore[arg-type]
    source[:] = bytes(32)
    assert seed.expose() == VALUE
