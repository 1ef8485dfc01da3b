"""Which of several values are wrong, when all should lie on one polynomial of low degree.

Reed-Solomon decoding over p = 2^31 - 1: up to floor((r - t) / 2) wrong ones among r values of a
polynomial of degree t - 1 are found, and no other polynomial is as near.

Source: Gao, "A New Algorithm for Decoding Reed-Solomon Codes" (2003).

Deliberately not here: vectors. The opening decodes a few random combinations (sharing.py), so
Python's integers are quick enough: 64 values take milliseconds, and only after an attack.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from secagg.ckks.field import PRIME

_Polynomial = list[int]
"""Lowest coefficient first and no zeros at the end: the zero polynomial is empty."""


def wrong_places(points: Sequence[int], values: Sequence[int], threshold: int) -> set[int] | None:
    """The places where `values` leave the polynomial of degree below `threshold` nearest to them.

    None when no such polynomial is within floor((len(points) - threshold) / 2) of them.
    """
    vanishing, through = [1], _Polynomial()
    for x, y in zip(points, values, strict=True):
        gap = (y - _at(through, x)) * pow(_at(vanishing, x), -1, PRIME) % PRIME
        through = _minus(through, [-gap % PRIME * c % PRIME for c in vanishing])
        vanishing = _times(vanishing, [-x % PRIME, 1])
    nearest = _nearest(vanishing, through, len(points) + threshold)
    if nearest is None or len(nearest) > threshold:
        return None
    places = enumerate(zip(points, values, strict=True))
    return {place for place, (x, y) in places if _at(nearest, x) != y}


def _nearest(before: _Polynomial, now: _Polynomial, stop: int) -> _Polynomial | None:
    """Euclid's algorithm until twice the degree is below `stop`: g = u * before + v * now, g / v.

    v's zeros are then the wrong places, and its degree is at most half of what is left over.
    """
    v_before, v_now = _Polynomial(), [1]
    while 2 * (len(now) - 1) >= stop:
        quotient, rest = _divided(before, now)
        before, now = now, rest
        v_before, v_now = v_now, _minus(v_before, _times(quotient, v_now))
    quotient, rest = _divided(now, v_now)
    return None if rest else quotient


def _at(polynomial: _Polynomial, x: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * x + coefficient) % PRIME
    return value


def _minus(left: _Polynomial, right: _Polynomial) -> _Polynomial:
    return _trimmed([(a - b) % PRIME for a, b in zip_longest(left, right, fillvalue=0)])


def _times(left: _Polynomial, right: _Polynomial) -> _Polynomial:
    """Neither is zero."""
    result = [0] * (len(left) + len(right) - 1)
    for place, a in enumerate(left):
        for offset, b in enumerate(right):
            result[place + offset] = (result[place + offset] + a * b) % PRIME
    return result


def _divided(left: _Polynomial, right: _Polynomial) -> tuple[_Polynomial, _Polynomial]:
    """Quotient and rest; `right` is not zero."""
    rest, leading = list(left), pow(right[-1], -1, PRIME)
    quotient = [0] * max(0, len(left) - len(right) + 1)
    for place in reversed(range(len(quotient))):
        factor = quotient[place] = rest[place + len(right) - 1] * leading % PRIME
        for offset, b in enumerate(right):
            rest[place + offset] = (rest[place + offset] - factor * b) % PRIME
    return quotient, _trimmed(rest)


def _trimmed(polynomial: _Polynomial) -> _Polynomial:
    while polynomial and polynomial[-1] == 0:
        polynomial.pop()
    return polynomial
