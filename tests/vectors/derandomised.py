"""Encapsulation with a chosen m, so that vectors of the hybrid suite are the same in every run.

The library behind `secagg.suite` draws m from the operating system and lets nobody choose it.
pycryptodome implements FIPS 203, algorithm 17, with m as an argument; while one of these contexts
is entered, its ciphertexts stand in for the library's. Everything else is `secagg`'s own code, and
tests/core/test_suite_vectors.py shows that the two libraries agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from secagg import suite
from tests.core import independent
from tests.vectors.cases import shake


@contextmanager
def with_m(m: bytes) -> Iterator[None]:
    """Every encapsulation uses this m."""
    real = suite._encapsulate
    suite._encapsulate = lambda kem: independent.encapsulate(kem, m)
    try:
        yield
    finally:
        suite._encapsulate = real


def m_of(kind: str, context: bytes, dealer: int, holder: int) -> bytes:
    """The m of a round's bundles and pads: SHAKE-256 of a text."""
    return shake(f"{kind} {context.hex()} {dealer} {holder}", 32)


@contextmanager
def whole_rounds() -> Iterator[None]:
    """Every encapsulation uses the m of its pair (`m_of`)."""
    real = suite.seal, suite.seal_pad

    def seal(context: bytes, sender: suite.Peer, receiver: suite.Peer, *rest: Any) -> Any:
        with with_m(m_of("bundle", context, sender.index, receiver.index)):
            return real[0](context, sender, receiver, *rest)

    def seal_pad(context: bytes, dealer: suite.Peer, holder: suite.Peer, *rest: Any) -> Any:
        with with_m(m_of("pad", context, dealer.index, holder.index)):
            return real[1](context, dealer, holder, *rest)

    suite.seal, suite.seal_pad = seal, seal_pad
    try:
        yield
    finally:
        suite.seal, suite.seal_pad = real
