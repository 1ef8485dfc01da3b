"""Shamir sharing of one-time keys, coefficient by coefficient, over the field of p = 2^31 - 1.

A dealer shares its N coefficients and 4 uniform blinding elements: element k is the value at zero
of its own polynomial f_k of degree t - 1, and the holder with cohort index j gets all f_k(j + 1).
Everything but the secret comes from a 32-byte seed, so a dealer that restarts deals the same
shares again and need not keep them.

**Degree check.** Any t shares must open the same key, whichever they are. After commitments to
all shares are fixed, hashing them gives a challenge of 4 x N elements rho, and the dealer
publishes U_r(x) = sum_k rho[r, k] f_k(x) + f_(N + r)(x), r = 0..3. A holder accepts if its share
fits them. If the committed shares of the honest holders do not lie on polynomials of degree t - 1,
or one of them is not what was committed, all accept with probability 2^-124 for each set of
commitments tried (p^-4: each row of the challenge notices but for one chance in p). The blinding
makes U uniform, whatever the secret is.

**Opening.** Holders release sums of shares. From more than t of them wrong ones are noticed, and
floor((r - t) / 2) of r are found and left out: see `open_sums`.

Source: Shamir, "How to Share a Secret" (CACM 1979). The degree check is the folklore batched test
of verifiable secret sharing, with a challenge by Fiat and Shamir (CRYPTO '86).

Deliberately not here: commitments, who complains to whom, and signatures (the scheme's steps).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from secagg.canonical import Writer
from secagg.ckks.decoding import wrong_places
from secagg.ckks.field import (
    ELEMENT_BITS,
    PRIME,
    Elements,
    canonical,
    centred,
    inner_products,
    lagrange,
    powers,
    product,
    spread,
    squeeze,
    uniform,
)
from secagg.errors import ConfigError, MalformedMessage
from secagg.packing import packed_size
from secagg.prg import Keystream, stream_key
from secagg.secret import Seed
from secagg.shamir import INDICES

CHECKS = 4
"""Rows of the challenge, and so blinding elements behind the N of a share."""

_LABEL = "secagg/ckks-sharing"


@dataclass(frozen=True, slots=True, eq=False)
class Dealing:
    """What one dealer hands out, and the polynomials it came from: all of it is secret."""

    shares: Elements = field(repr=False)
    """(holders, N + 4), in the order in which the holders were given."""
    polynomials: Elements = field(repr=False)
    """(t, N + 4): row m has the coefficients of x^m of all f_k; row 0 is secret and blinding."""

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a dealing is secret: it cannot be copied or pickled")


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """The sum of the secrets."""

    secret: NDArray[np.int32]
    """(N,), centred."""
    wrong: tuple[int, ...]
    """Holders whose sums were left out, in order. It proves nothing to others: the aggregator
    may have received what it says or not."""


class Unopenable(StrEnum):
    """Why sums do not open."""

    TOO_FEW = "fewer sums of shares came than the threshold"
    INCONSISTENT = "more sums of shares are wrong than can be told from the right ones"
    OUT_OF_BOUND = "the opened key is larger than a sum of honest keys can be"


def split(
    secret: NDArray[np.int32], holders: Sequence[int], threshold: int, seed: Seed, context: bytes
) -> Dealing:
    """Share `secret` (N,), entries of at most 2^30 - 1 in magnitude, among `holders`.

    The same arguments give the same dealing, and any other ones an independent one, but for the
    secret: two secrets dealt with equal other arguments would give their difference away.

    Raises:
        ConfigError: an index is out of range or stands twice, or the threshold is not in
            1..len(holders).
    """
    points = _points(holders)
    if not 1 <= threshold <= len(points):
        raise ConfigError(f"a threshold of {threshold} needs 1 to {len(points)} holders' shares")
    polynomials = np.empty((threshold, len(secret) + CHECKS), np.uint32)
    everything = polynomials.reshape(-1)
    everything[: len(secret)] = canonical(secret)
    drawn_for = Writer().blob(context).u32(threshold).u32(len(points))
    for point in points:
        drawn_for.u32(point)
    uniform(_keystream(seed, drawn_for.finish(), "coefficients"), everything[len(secret) :])
    return Dealing(product(powers(points, threshold), polynomials), polynomials)


def challenge(context: bytes, dealer: int, commitments: Sequence[bytes], degree: int) -> Elements:
    """rho, (4, degree): what a dealer's degree check combines its `degree` polynomials with.

    `commitments` are those to all shares that the dealer dealt, in the holders' order.
    """
    writer = Writer().tag(_LABEL).tag("degree check").blob(context).u32(dealer)
    writer.u32(len(commitments))
    for commitment in commitments:
        writer.blob(commitment)
    return _expanded(writer.finish(), "degree check", degree)


def check_polynomial(dealing: Dealing, rho: Elements) -> Elements:
    """(t, 4): the coefficients of U_0 .. U_3, constant terms first.

    For one challenge only: two answers with one blinding give combinations of the secret away, so
    a dealer that deals again from a seed has to make the same commitments again.
    """
    return _combined(dealing.polynomials, rho)


def holds(share: Elements, holder: int, rho: Elements, check: Elements) -> bool:
    """Whether `share` (N + 4,) of `holder` lies on what the dealer published in `check`."""
    (expected,) = product(powers([holder + 1], len(check)), check)
    (combined,) = _combined(share[None, :], rho)
    return bool((combined == expected).all())


def add_shares(shares: Sequence[Elements]) -> Elements:
    """What a holder releases, (N,): the sum of its shares without the blinding; one at least."""
    total = np.zeros(len(shares[0]) - CHECKS, np.uint64)
    for share in shares:
        total += share[:-CHECKS]
    return canonical(total)


def pack_elements(elements: Elements) -> bytes:
    """A share or a sum as bytes: 31 bits an element, in packing.py's format, but quicker."""
    groups = -(-len(elements) // 32)
    room, words = np.zeros(32 * groups, np.uint32), np.empty(31 * groups, np.uint32)
    room[: len(elements)] = elements
    squeeze(room, words)
    return words.astype("<u4", copy=False).tobytes()[: packed_size(len(elements), ELEMENT_BITS)]


def parse_elements(data: bytes | memoryview, count: int) -> Elements:
    """A share (`count` is N + 4) or a sum (N) from a peer's bytes.

    Raises:
        MalformedMessage: another length, stray bits behind the end, or p itself, which would be a
            second spelling of zero.
    """
    if len(data) != (size := packed_size(count, ELEMENT_BITS)):
        raise MalformedMessage(f"{count} elements of 31 bits take {size} bytes, not {len(data)}")
    groups = -(-count // 32)
    words, room = np.zeros(31 * groups, "<u4"), np.empty(32 * groups, np.uint32)
    words.view(np.uint8)[:size] = np.frombuffer(data, np.uint8)
    spread(words.astype(np.uint32, copy=False), room)
    if room[count:].any():
        raise MalformedMessage("the padding bits behind the last element are not zero")
    if (room == PRIME).any():
        raise MalformedMessage("an element of a share is not below the field's prime")
    return room[:count]


def encode_check(check: Elements) -> bytes:
    """`check` (t, 4) as 16 t bytes: little-endian words, row after row."""
    return check.astype("<u4", copy=False).tobytes()


def parse_check(data: bytes, threshold: int) -> Elements:
    """(threshold, 4) from a dealer's bytes.

    Raises:
        MalformedMessage: not 16 bytes for each coefficient, or an element from p upwards.
    """
    size = 4 * CHECKS * threshold
    if len(data) != size:
        raise MalformedMessage(f"a degree check takes {size} bytes, not {len(data)}")
    check = np.frombuffer(data, "<u4").astype(np.uint32).reshape(threshold, CHECKS)
    if (check >= PRIME).any():
        raise MalformedMessage("an element of a degree check is not below the field's prime")
    return check


def open_sums(sums: Mapping[int, Elements], threshold: int, bound: int) -> Opened | Unopenable:
    """The secret (N,) behind sums of shares, by holder; its entries are at most `bound`.

    All sums have to lie on polynomials of degree t - 1, compared entry by entry. If they do not,
    4 combinations of each, random by a hash over all the sums, are decoded: a wrong sum stays
    unnoticed with probability 2^-124 for each set of sums tried, and then the comparison of the
    others still fails. What is returned is thus always the only candidate within
    floor((r - t) / 2) wrong sums, and no right sum is named if no more than these are wrong.
    Among exactly t sums a wrong one is noticed by `bound` alone.

    Raises:
        ConfigError: a holder's index is out of range, or the threshold is below 1.
    """
    holders = sorted(sums)
    points = _points(holders)
    if threshold < 1:
        raise ConfigError(f"a threshold of {threshold} opens nothing; it is 1 at least")
    if len(holders) < threshold:
        return Unopenable.TOO_FEW
    rows = np.stack([sums[holder] for holder in holders])
    secret, wrong = _interpolated(points, rows, threshold), set[int]()
    if secret is None and (found := _wrong_rows(points, rows, threshold)):
        wrong = found
        kept = [place for place in range(len(points)) if place not in wrong]
        secret = _interpolated([points[place] for place in kept], rows[kept], threshold)
    if secret is None:
        return Unopenable.INCONSISTENT
    if np.abs(values := centred(secret)).max(initial=0) > bound:
        return Unopenable.OUT_OF_BOUND
    return Opened(values, tuple(holders[place] for place in sorted(wrong)))


def _interpolated(points: Sequence[int], rows: Elements, threshold: int) -> Elements | None:
    """The values at zero, or None if the rows do not lie on polynomials of degree t - 1."""
    basis, others = points[:threshold], points[threshold:]
    values = product(lagrange(basis, [0, *others]), rows[:threshold])
    return values[0] if np.array_equal(values[1:], rows[threshold:]) else None


def _wrong_rows(points: Sequence[int], rows: Elements, threshold: int) -> set[int] | None:
    """Places of the wrong rows; None when there are more than can be told."""
    transcript = Writer().tag(_LABEL).tag("opening").u32(threshold).u32(len(points))
    for point in points:
        transcript.u32(point)
    digest = hashlib.sha256(transcript.finish())
    digest.update(rows.astype("<u4", copy=False).data)
    combined = inner_products(rows, _expanded(digest.digest(), "opening", rows.shape[1]))
    wrong: set[int] = set()
    for values in combined.T.tolist():
        found = wrong_places(points, values, threshold)
        if found is None:
            return None
        wrong |= found
    return wrong if 2 * len(wrong) <= len(points) - threshold else None


def _combined(rows: Elements, rho: Elements) -> Elements:
    """(m, 4): each row's combination by rho, with its blinding."""
    sums = inner_products(rows, rho).astype(np.uint64)
    return canonical(sums + rows[:, -CHECKS:])


def _expanded(transcript: bytes, purpose: str, width: int) -> Elements:
    """(4, width) public elements that follow from a transcript by SHA-256 and a keystream."""
    out = np.empty((CHECKS, width), np.uint32)
    digest = hashlib.sha256(transcript).digest()
    uniform(_keystream(Seed(digest), b"", purpose), out.reshape(-1))
    return out


def _keystream(seed: Seed, context: bytes, purpose: str) -> Keystream:
    return Keystream(stream_key(seed, label=_LABEL, context=context, purpose=purpose, vector=0))


def _points(holders: Sequence[int]) -> list[int]:
    if len(set(holders)) != len(holders):
        raise ConfigError("an index stands twice among the holders of a key")
    if not all(0 <= holder < INDICES for holder in holders):
        raise ConfigError("a holder's index is outside 0..2^30 - 2")
    return [holder + 1 for holder in holders]
