"""Shamir's secret sharing of 32-byte seeds over the prime field of p = 2^256 + 297.

A polynomial of degree t - 1 carries the secret at zero; participant i holds its value at
x = i + 1. p is the smallest prime above 2^256, so every 32-byte string is a field element and a
share takes 33 bytes, big-endian. Any t shares give the secret, fewer say nothing about it.

Source: Shamir, "How to Share a Secret" (CACM 1979); Bonawitz et al. CCS'17, section 3.1.

Deliberately not here: detection of wrong shares. Each share is checked against its dealer's
commitment before it gets here (protocol.md, steps 2 and 5). Python's integers do not run in
constant time; nobody but the dealer itself can time `split`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from operator import mul
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from secagg.errors import ConfigError, MalformedMessage, UsageError
from secagg.secret import Randomness, Seed, SeedShare, Share

PRIME = 2**256 + 297
SHARE_BYTES = 33
INDICES = 2**30 - 1

_FIELD_MASK = 2**257 - 1
_SECRETS = 2**256
_LIMBS, _LIMB_BITS, _LIMB_MASK = 8, 32, 2**32 - 1
_ROOM_BITS = 30  # (2^32 + 2^30.5) * 2^30 < 2^63, and a carry of less than 2^30.6 comes out of it

ShareT = TypeVar("ShareT", bound=SeedShare)


def split(
    secret: Seed,
    indices: Sequence[int],
    threshold: int,
    kind: type[ShareT],
    randomness: Randomness,
) -> dict[int, ShareT]:
    """Deal one share of `secret` to each index; any `threshold` of them rebuild it.

    Raises:
        ConfigError: an index is out of range or stands twice, or the threshold is not in
            1..len(indices).
    """
    points = _points(indices)
    if not 1 <= threshold <= len(points):
        raise ConfigError(f"a threshold of {threshold} needs 1 to {len(points)} holders' shares")
    falling = [*_field_elements(threshold - 1, randomness), int.from_bytes(secret.expose())]
    values = _evaluate(falling, points)
    return {
        index: kind(value.to_bytes(SHARE_BYTES))
        for index, value in zip(indices, values, strict=True)
    }


def parse_share(data: bytes, kind: type[ShareT]) -> ShareT:
    """A share from a peer's bytes; zero is as valid as any other field element.

    Raises:
        MalformedMessage: not 33 bytes, or not below p.
    """
    if len(data) != SHARE_BYTES:
        raise MalformedMessage(f"a share has {SHARE_BYTES} bytes, not {len(data)}")
    if int.from_bytes(data) >= PRIME:
        raise MalformedMessage("a share is not below the field's prime")
    return kind(data)


class Interpolation:
    """Lagrange weights at zero for one set of holders, used for all secrets they open.

    Raises:
        ConfigError: no index at all, one out of range, or one that stands twice.
    """

    __slots__ = ("_weights",)

    def __init__(self, indices: Sequence[int]) -> None:
        points = _points(indices)
        if not points:
            raise ConfigError("interpolation needs at least one holder")
        # weight(x) = prod(y) / (x * prod(y - x)) over the other points y
        product = math.prod(points) % PRIME
        inverses = _invert_all(_denominators(points))
        self._weights = [product * inverse % PRIME for inverse in inverses]

    def at_zero(self, shares: Sequence[Share]) -> bytes | None:
        """The 32-byte secret behind `shares`, given in the order of the indices.

        None when the value is 2^256 or more: no honest dealer shares such a value. Any other
        value is only as right as the shares are; with fewer than t it is meaningless.
        """
        if len(shares) != len(self._weights):
            raise UsageError(f"{len(self._weights)} shares are due and {len(shares)} were given")
        values = (int.from_bytes(share.expose()) for share in shares)
        value = sum(map(mul, self._weights, values)) % PRIME
        return value.to_bytes(32) if value < _SECRETS else None


def _points(indices: Sequence[int]) -> list[int]:
    if len(set(indices)) != len(indices):
        raise ConfigError("an index stands twice among the holders of a secret")
    if not all(0 <= index < INDICES for index in indices):
        raise ConfigError("a holder's index is outside 0..2^30 - 2")
    return [index + 1 for index in indices]


def _field_elements(count: int, randomness: Randomness) -> Iterator[int]:
    """Uniform in 0..p-1: 257 random bits, drawn again unless below p (about every second is)."""
    while count:
        block = randomness(2 * count * SHARE_BYTES)
        for start in range(0, len(block), SHARE_BYTES):
            value = int.from_bytes(block[start : start + SHARE_BYTES]) & _FIELD_MASK
            if value < PRIME and count:
                count -= 1
                yield value


def _evaluate(falling: Sequence[int], points: Sequence[int]) -> list[int]:
    """Horner's rule at all points at once, for coefficients from the highest down to the constant.

    Values are rows of eight 32-bit limbs in int64, lowest first, one column for each point. A step
    multiplies by x < 2^b, so 30 // b steps stay below 2^63 before limbs hand on their carries.
    """
    x = np.array(points, np.int64)
    together = _ROOM_BITS // max(points).bit_length()
    coefficients = _limbs(falling)  # (t, 8)
    value = np.zeros((_LIMBS, len(points)), np.int64)
    carry = np.empty_like(value)
    for start in range(0, len(falling), together):
        for coefficient in coefficients[start : start + together, :, None]:
            value *= x
            value += coefficient
        np.right_shift(value, _LIMB_BITS, out=carry)
        value &= _LIMB_MASK
        value[1:] += carry[:-1]
        value[0] -= (PRIME - _SECRETS) * carry[-1]  # 2^256 = -297 mod p; that may take a limb more
        value[1] += value[0] >> _LIMB_BITS
        value[0] &= _LIMB_MASK
    return [_number(limbs) % PRIME for limbs in value.T.tolist()]


def _limbs(numbers: Sequence[int]) -> NDArray[np.int64]:
    """Eight limbs each; bit 256 of a number makes the last limb one bit longer."""
    data = b"".join(number.to_bytes(4 * _LIMBS + 4, "little") for number in numbers)
    limbs = np.frombuffer(data, "<u4").reshape(len(numbers), -1).astype(np.int64)
    limbs[:, -2] += limbs[:, -1] << _LIMB_BITS
    return limbs[:, :-1]


def _number(limbs: Sequence[int]) -> int:
    value = 0
    for limb in reversed(limbs):
        value = (value << _LIMB_BITS) + limb
    return value


def _denominators(points: Sequence[int]) -> list[int]:
    """x * prod(y - x) for each point x; int64 takes as many factors at once as fit in it."""
    x = np.array(points, np.int64)
    factors = x[None, :] - x[:, None]  # (t, t)
    np.fill_diagonal(factors, x)
    together = 62 // max(points).bit_length()
    padded = np.ones((len(points), -(-len(points) // together) * together), np.int64)
    padded[:, : len(points)] = factors
    products = padded.reshape(len(points), -1, together).prod(axis=2)
    return [math.prod(row) % PRIME for row in products.tolist()]


def _invert_all(values: Sequence[int]) -> list[int]:
    """Montgomery's trick: one modular inversion for all of them."""
    before = [1]
    for value in values:
        before.append(before[-1] * value % PRIME)
    inverse = pow(before[-1], -1, PRIME)
    inverses = []
    for value, prefix in zip(reversed(values), reversed(before[:-1]), strict=True):
        inverses.append(inverse * prefix % PRIME)
        inverse = inverse * value % PRIME
    return inverses[::-1]
