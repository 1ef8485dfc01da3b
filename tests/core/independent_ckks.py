"""Scheme `ckks` once more, from the documents: hashlib, pycryptodome's AES and Python's integers.

Written from docs/ckks.md and docs/vectors.md beside `independent.py`, whose records, suites and
trees it uses; shares no line with `secagg` and imports nothing of it (a test says so). Not for
use: it is slow, and nothing runs in constant time.

Sources: RFC 5869; NIST SP 800-38A; Shamir, "How to Share a Secret" (CACM 1979); Cooley and Tukey
(1965); HomomorphicEncryption.org, "Homomorphic Encryption Standard" v1.1 (2018), tables for 128
bits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import combinations, pairwise
from math import prod
from typing import Any

from tests.core.independent import (
    Round,
    blob,
    hkdf,
    keystream,
    labelled,
    merkle_bulk_leaf,
    merkle_root,
    open_bundle,
    pack,
    reading,
    record,
    sha256,
    stream_key,
    tag,
    u32,
    unpack,
    words,
)

P = 2**31 - 1
"""The field in which keys are shared."""
TAIL, DITHER_TAIL = 51, 18
CHECKS = 4
SHARING = "secagg/ckks-sharing"
STANDARD = {
    "quantum": {2048: 51, 4096: 101, 8192: 202, 16384: 411},
    "classical": {2048: 54, 4096: 109, 8192: 218, 16384: 438},
}


# ---------------------------------------------------------------------------- parameters


@lru_cache(maxsize=4096)
def is_prime(number: int) -> bool:
    return number > 1 and all(number % other for other in range(2, int(number**0.5) + 1))


@lru_cache(maxsize=256)
def largest_primes(degree: int, size: int, count: int) -> tuple[int, ...]:
    """The largest primes of exactly `size` bits that are 1 modulo 2 `degree`, descending."""
    found: list[int] = []
    number = (1 << size) // (2 * degree) * (2 * degree) + 1
    while len(found) < count and number > 1 << size - 1:
        if number < 1 << size and is_prime(number):
            found.append(number)
        number -= 2 * degree
    return tuple(found)


@dataclass(frozen=True)
class Parameters:
    degree: int
    modulus_bits: tuple[int, ...]
    packing: str = "coefficients"
    security: str = "quantum"

    @property
    def primes(self) -> tuple[int, ...]:
        sizes, taken = self.modulus_bits, []
        for place, size in enumerate(sizes):
            before = sizes[:place].count(size)
            taken.append(largest_primes(self.degree, size, before + 1)[before])
        return tuple(taken)

    @property
    def slots(self) -> bool:
        return self.packing == "slots"

    @property
    def width(self) -> int:
        return self.degree // 2 if self.slots else self.degree

    def margin_bits(self, n: int) -> int:
        """m: TAIL n < 2^(m - 1)."""
        bits = 1
        while TAIL * n >= 1 << bits - 1:
            bits += 1
        return 0 if self.slots else bits

    def scale_bits(self, n: int) -> int:
        """N n (TAIL + DITHER_TAIL + 1/2) / D <= 7/16."""
        bits, most = 0, 2 * (TAIL + DITHER_TAIL) + 1
        while Fraction(self.degree * n * most, 2 << bits) > Fraction(7, 16):
            bits += 1
        return bits if self.slots else 0

    def digits(self, n: int, ring_bits: int) -> int:
        count = 0
        while prod(self.primes) >= 1 << self.margin_bits(n) + ring_bits * (count + 1):
            count += 1
        return 1 if self.slots else count

    @property
    def last_width(self) -> int:
        """The weight stands in the last column of the last polynomial."""
        return self.width - 1

    def polynomials(self, length: int, n: int, ring_bits: int, weight_ring_bits: int) -> int:
        digits, count = self.digits(n, ring_bits), 1
        last = digits * self.last_width
        while (count - 1) * digits * self.width + last < length:
            count += 1
        return count

    def works(self, n: int, ring_bits: int, weight_ring_bits: int) -> bool:
        """Whether sums of `ring_bits` open exactly, and Q is within the standard's table."""
        modulus = prod(self.primes)
        if modulus >= 1 << STANDARD[self.security][self.degree]:
            return False
        weight = weight_ring_bits - 5 - (n - 1).bit_length()
        if self.digits(n, ring_bits) * ring_bits < weight_ring_bits or min(ring_bits, weight) > 31:
            return False
        if not self.slots:
            digits = self.digits(n, ring_bits)
            return ring_bits <= 50 and 1 <= digits <= 131_072 // self.degree
        scale, stages = self.scale_bits(n), self.degree.bit_length() - 1
        root = 1 << (stages + 1) // 2  # of the degree, rounded up to a power of two
        moved = Fraction(2 * 16 * root * (stages + 2) << ring_bits - 5, 1 << 53)
        return (
            modulus >= 1 << ring_bits + scale
            and moved <= Fraction(1, 16)
            and (modulus < 1 << 64 or modulus % (1 << 64) >= 1 << ring_bits + scale - 4)
        )

    def cost(self, length: int, n: int, ring_bits: int, weight_ring_bits: int, holders: int) -> int:
        leaves = self.polynomials(length, n, ring_bits, weight_ring_bits)
        share = (31 * self.degree + 7) // 8
        return leaves * sum(self.modulus_bits) * self.degree // 8 + (holders - 1) * share


def spread(total: int) -> tuple[int, ...]:
    """`total` bits over the fewest primes of up to 30 bits, sizes differing by one at most."""
    count = -(-total // 30)
    return tuple(total // count + (place < total % count) for place in range(count))


def choose(
    n: int, length: int, ring_bits: int, weight_ring_bits: int, holders: int, packing: str,
    security: str,
) -> Parameters | None:  # fmt: skip
    """The cheapest of all that work; the largest degree only where no other does."""
    for degrees in ((2048, 4096, 8192), (16384,)):
        priced = []
        for degree in degrees:
            digits = 0
            for total in range(18, STANDARD[security][degree] + 1):
                one = Parameters(degree, spread(total), packing, security)
                if min(one.modulus_bits) < 18 or not enough(one):
                    continue
                held = one.digits(n, ring_bits)
                if held > digits and one.works(n, ring_bits, weight_ring_bits):
                    digits = held  # more bits for as many digits only cost more
                    cost = one.cost(length, n, ring_bits, weight_ring_bits, holders)
                    priced.append((cost, degree, total, one))
        if priced:
            return min(priced, key=lambda row: row[:3])[3]
    return None


def enough(parameters: Parameters) -> bool:
    sizes = parameters.modulus_bits
    return all(
        len(largest_primes(parameters.degree, size, sizes.count(size))) == sizes.count(size)
        for size in set(sizes)
    )


# ---------------------------------------------------------------------------- the ring


@lru_cache(maxsize=64)
def root_of(degree: int, prime: int) -> int:
    """The smallest primitive 2N-th root of unity: its N-th power is -1."""
    base = 2
    while pow(base, (prime - 1) // 2, prime) != prime - 1:
        base += 1
    some = pow(base, (prime - 1) // (2 * degree), prime)
    return min(pow(some, odd, prime) for odd in range(1, 2 * degree, 2))


def reversed_bits(number: int, bits: int) -> int:
    return int(format(number, f"0{bits}b")[::-1], 2)


def transform(values: Sequence[int], root: int, prime: int) -> list[int]:
    """sum_k values[k] root^(i k) for all i, by halves: even and odd k."""
    if len(values) == 1:
        return list(values)
    even = transform(values[::2], root * root % prime, prime)
    odd = transform(values[1::2], root * root % prime, prime)
    power, low, high = 1, [], []
    for a, b in zip(even, odd, strict=True):
        low.append((a + power * b) % prime)
        high.append((a - power * b) % prime)
        power = power * root % prime
    return low + high


def ntt(coefficients: Sequence[int], prime: int) -> list[int]:
    """Value i is that at the root's power 2 reversed(i) + 1."""
    degree = len(coefficients)
    root, bits = root_of(degree, prime), degree.bit_length() - 1
    turned = [c * pow(root, k, prime) % prime for k, c in enumerate(coefficients)]
    natural = transform(turned, root * root % prime, prime)
    return [natural[reversed_bits(i, bits)] for i in range(degree)]


def inverse_ntt(values: Sequence[int], prime: int) -> list[int]:
    degree = len(values)
    back, bits = pow(root_of(degree, prime), -1, prime), degree.bit_length() - 1
    natural = [values[reversed_bits(i, bits)] for i in range(degree)]
    turned = transform(natural, back * back % prime, prime)
    scale = pow(degree, -1, prime)
    return [scale * pow(back, k, prime) * value % prime for k, value in enumerate(turned)]


def polynomial_at(coefficients: Sequence[int], point: int, prime: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % prime
    return value


# ---------------------------------------------------------------------------- what is expanded


def public_polynomial(
    context: bytes, number: int, degree: int, primes: Sequence[int]
) -> list[list[int]]:
    """a_number, plane by plane, in NTT form: masked words below the prime."""
    key = hkdf(context, b"", record(tag("secagg/1 ckks"), tag("public_polynomials")))
    drawn, place = words(keystream(key, number, 8 * degree * len(primes)), 4), 0
    planes = []
    for prime in primes:
        plane: list[int] = []
        while len(plane) < degree:
            value, place = drawn[place] % (1 << prime.bit_length()), place + 1
            if value < prime:
                plane.append(value)
        planes.append(plane)
    return planes


@lru_cache(maxsize=1)
def thresholds() -> list[int]:
    """round(2^127 P[|x| <= k]) for k = 0 .. 50, sigma = 4.6; exp by its series in fixed point."""
    one = 1 << 400

    def exponential(x: Fraction) -> int:
        term, total, k = one, one, 0
        while term:
            k += 1
            term = term * x.numerator // (x.denominator * k)
            total += term
        return total

    # exp(-x) is the inverse of exp(x), whose terms are all positive; 2 sigma^2 = 42.32.
    density = [one * one // exponential(Fraction(k * k * 100, 4232)) for k in range(TAIL + 1)]
    up_to = [density[0] + 2 * sum(density[1 : k + 1]) for k in range(TAIL + 1)]
    whole = up_to[TAIL]
    return [((value << 128) + whole) // (2 * whole) for value in up_to[:TAIL]]


def gaussian(stream: bytes) -> list[int]:
    """One sample for each 16 bytes."""
    samples = []
    for word in words(stream, 16):
        sign, u = -1 if word >> 127 else 1, word % (1 << 127)
        samples.append(sign * sum(threshold <= u for threshold in thresholds()))
    return samples


def gaussian_polynomial(
    seed: bytes, context: bytes, purpose: str, number: int, degree: int
) -> list[int]:
    key = stream_key(seed, "secagg/gaussian", context, purpose, 0)
    return gaussian(keystream(key, number, 16 * degree))


def field_elements(key: bytes, count: int) -> list[int]:
    """31 bits of a word, unless they are p; from each chunk as many words as are still missing."""
    found: list[int] = []
    chunk = 0
    while len(found) < count:
        size = min(count - len(found), 65_536)
        drawn = [word % 2**31 for word in words(keystream(key, chunk, 4 * size), 4)]
        found += [element for element in drawn if element != P]
        chunk += 1
    return found


# ---------------------------------------------------------------------------- sharing


def sharing_polynomials(
    secret: Sequence[int], holders: Sequence[int], threshold: int, seed: bytes, context: bytes
) -> list[list[int]]:
    """Row m: the coefficients of x^m of all f_k; row 0 is the secret and the blinding."""
    points = [holder + 1 for holder in holders]
    drawn_for = record(blob(context), u32(threshold, len(points), *points))
    width = len(secret) + CHECKS
    key = stream_key(seed, SHARING, drawn_for, "coefficients", 0)
    drawn = [s % P for s in secret] + field_elements(key, threshold * width - len(secret))
    return [drawn[at : at + width] for at in range(0, threshold * width, width)]


def share_of(polynomials: Sequence[Sequence[int]], holder: int) -> list[int]:
    x = holder + 1
    return [polynomial_at(column, x, P) for column in zip(*polynomials, strict=True)]


def challenge(
    context: bytes, dealer: int, commitments: Sequence[bytes], degree: int
) -> list[list[int]]:
    transcript = record(
        tag(SHARING), tag("degree check"), blob(context), u32(dealer, len(commitments)),
        *map(blob, commitments),
    )  # fmt: skip
    key = stream_key(sha256(transcript), SHARING, b"", "degree check", 0)
    drawn = field_elements(key, CHECKS * degree)
    return [drawn[at : at + degree] for at in range(0, CHECKS * degree, degree)]


def combined(row: Sequence[int], rho: Sequence[Sequence[int]]) -> list[int]:
    """For each row of the challenge, with its own blinding element."""
    degree = len(row) - CHECKS
    return [
        (sum(a * b for a, b in zip(rho[r], row[:degree], strict=True)) + row[degree + r]) % P
        for r in range(CHECKS)
    ]


def check_polynomials(
    polynomials: Sequence[Sequence[int]], rho: Sequence[Sequence[int]]
) -> list[list[int]]:
    """(t, 4): row m has the coefficients of x^m of U_0 .. U_3."""
    return [combined(row, rho) for row in polynomials]


def encode_check(check: Sequence[Sequence[int]]) -> bytes:
    return b"".join(element.to_bytes(4, "little") for row in check for element in row)


def decode_check(data: bytes) -> list[list[int]]:
    drawn = words(data, 4)
    return [drawn[at : at + CHECKS] for at in range(0, len(drawn), CHECKS)]


def holds(
    share: Sequence[int],
    holder: int,
    rho: Sequence[Sequence[int]],
    check: Sequence[Sequence[int]],
) -> bool:
    expected = [polynomial_at(column, holder + 1, P) for column in zip(*check, strict=True)]
    return combined(share, rho) == expected


def at_zero(sums: Mapping[int, Sequence[int]]) -> list[int]:
    """By Lagrange, centred."""
    width = len(next(iter(sums.values())))
    total = [0] * width
    for holder, values in sums.items():
        weight = 1
        for other in sums:
            if other != holder:
                weight = weight * (other + 1) * pow(other - holder, -1, P) % P
        total = [(a + weight * v) % P for a, v in zip(total, values, strict=True)]
    return [value - P if value > P // 2 else value for value in total]


def value_at(sums: Mapping[int, Sequence[int]], holder: int, place: int) -> int:
    """Of the polynomial through these sums' elements at one place."""
    value = 0
    for one, elements in sums.items():
        weight = 1
        for other in sums:
            if other != one:
                weight = weight * (holder - other) * pow(one - other, -1, P) % P
        value += weight * elements[place]
    return value % P


def open_sums(
    sums: Mapping[int, Sequence[int]], threshold: int, bound: int
) -> tuple[list[int], list[int]] | None:
    """(S, whose sums are wrong): by trying every choice of t sums; None if nothing opens."""
    most = (len(sums) - threshold) // 2
    for some in combinations(sorted(sums), threshold):
        basis = {holder: sums[holder] for holder in some}
        wrong = [
            holder
            for holder in sorted(set(sums) - set(some))
            if any(value_at(basis, holder, k) != v for k, v in enumerate(sums[holder]))
        ]
        if len(wrong) <= most:
            secret = at_zero(basis)
            return None if max(map(abs, secret)) > bound else (secret, wrong)
    return None


# ---------------------------------------------------------------------------- packing


@dataclass(frozen=True)
class Packing:
    """Packing `coefficients` of one plan."""

    parameters: Parameters
    n: int
    ring_bits: int
    weight_ring_bits: int

    @property
    def digits(self) -> int:
        return self.parameters.digits(self.n, self.ring_bits)

    @property
    def last_width(self) -> int:
        return self.parameters.last_width

    def places(self, values: int, last: bool) -> list[tuple[int, int]]:
        """(plane, column) of each value of a leaf."""
        width = self.last_width if last else self.parameters.width
        return [divmod(number, width) for number in range(values)]

    def coefficients(
        self, values: Sequence[int], weight: int | None, error: Sequence[int]
    ) -> list[int]:
        """e + 2^m sum_k v_k 2^(g k); `weight` stands in the last leaf alone."""
        m, g = self.parameters.margin_bits(self.n), self.ring_bits
        found = list(error)
        for value, (plane, column) in zip(
            values, self.places(len(values), weight is not None), strict=True
        ):
            found[column] += value << m + g * plane
        if weight is not None:
            found[self.last_width] += weight << m
        return found

    def read(
        self, coefficients: Sequence[int], count: int, last: bool
    ) -> tuple[list[int], int, list[int], int]:
        """(values, weight, errors, coefficients with something above their last digit)."""
        m, g = self.parameters.margin_bits(self.n), self.ring_bits
        errors, planes, beyond = [], [[0] * self.parameters.width for _ in range(self.digits)], 0
        for column, number in enumerate(coefficients):
            error = centred(number, m)
            errors.append(error)
            rest = number - error >> m
            for plane in planes:
                plane[column] = centred(rest, g)
                rest = rest - plane[column] >> g
            beyond += rest != 0
        values = [planes[plane][column] for plane, column in self.places(count, last)]
        weight = 0
        if last:
            weight = sum(plane[self.last_width] << g * k for k, plane in enumerate(planes))
        return values, weight, errors, beyond


def centred(number: int, bits: int) -> int:
    """In -2^(bits - 1) .. 2^(bits - 1) - 1."""
    half = 1 << bits - 1
    return (number + half) % (1 << bits) - half


def together(residues: Sequence[int], primes: Sequence[int], bias: int) -> int:
    """By the Chinese remainder theorem: the number from -bias to Q - 1 - bias."""
    modulus = prod(primes)
    number = bias
    for residue, prime in zip(residues, primes, strict=True):
        rest = modulus // prime
        number += residue * rest * pow(rest, -1, prime)
    return number % modulus - bias


def bias(digits: int, digit_bits: int, margin_bits: int) -> int:
    """Half a range for the errors and for each digit."""
    halves = [1 << margin_bits - 1]
    halves += [1 << margin_bits + digit_bits * k + digit_bits - 1 for k in range(digits)]
    return sum(halves)


def pack_planes(planes: Sequence[Sequence[int]], modulus_bits: Sequence[int]) -> bytes:
    return b"".join(pack(plane, bits) for plane, bits in zip(planes, modulus_bits, strict=True))


def unpack_planes(data: bytes, parameters: Parameters) -> list[list[int]]:
    planes, at = [], 0
    for bits, prime in zip(parameters.modulus_bits, parameters.primes, strict=True):
        size = parameters.degree * bits // 8
        plane = unpack(data[at : at + size], bits, parameters.degree)
        if max(plane) >= prime:
            raise ValueError("a residue is not below its prime")
        planes.append(plane)
        at += size
    if at != len(data):
        raise ValueError("a leaf of another length")
    return planes


# ---------------------------------------------------------------------------- a whole round


def read_parameters(cursor: Any) -> Parameters:
    cursor.tag("ckks")
    packing, security = cursor.blob().decode(), cursor.blob().decode()
    degree = cursor.number()
    return Parameters(degree, tuple(cursor.many(lambda: cursor.number(1))), packing, security)


@dataclass(frozen=True)
class CkksPlan:
    """What of a plan the derivations need."""

    data: bytes
    fields: dict[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        cursor = reading(self.data)
        cursor.tag("plan")
        found: dict[str, Any] = {"suite": cursor.blob().decode()}
        cursor.tag("ckks")
        cursor.take(32 + 8)  # roster digest, round number
        found["cohort"] = [name.decode() for name in cursor.many(cursor.blob)]
        cursor.take(4 + 4)  # f, size of the committee
        found["threshold"], found["quorum"] = cursor.number(), cursor.number()
        cursor.take(4)  # min_survivors
        cursor.many(cursor.blob)  # committee
        cursor.take(32)  # model
        cursor.tag("layout")
        found["length"] = sum(cursor.many(lambda: _tensor(cursor)))
        (found["clip"],) = struct.unpack(">d", cursor.take(8))
        found["value_bits"] = cursor.number(1)
        cursor.blob()  # rotation seed
        found["max_weight"] = cursor.number(8)
        found["weight_ring_bits"], found["ring_bits"] = cursor.number(1), cursor.number(1)
        cursor.take(1)  # guard bits
        cursor.tag("no noise")
        cursor.take(6 * 4)  # deadlines
        found["parameters"] = read_parameters(cursor)
        cursor.end()
        object.__setattr__(self, "fields", found)

    def __getattr__(self, name: str) -> Any:
        if name in self.fields:
            return self.fields[name]
        raise AttributeError(name)

    @property
    def context(self) -> bytes:
        return sha256(self.data)

    @property
    def packing(self) -> Packing:
        fields = self.fields
        n, ring_bits = len(fields["cohort"]), fields["ring_bits"]
        return Packing(fields["parameters"], n, ring_bits, fields["weight_ring_bits"])

    def leaves(self) -> list[tuple[int, int, bool]]:
        """(first coordinate, how many, whether it is the last) of each leaf."""
        parameters, fields = self.fields["parameters"], self.fields
        n, length, g = len(fields["cohort"]), fields["length"], fields["ring_bits"]
        full = parameters.digits(n, g) * parameters.width
        number = parameters.polynomials(length, n, g, fields["weight_ring_bits"])
        starts = [min(full * leaf, length) for leaf in range(number)] + [length]
        return [
            (begin, end - begin, leaf == number - 1)
            for leaf, (begin, end) in enumerate(pairwise(starts))
        ]


def _tensor(cursor: Any) -> int:
    cursor.blob(), cursor.blob()
    return prod(cursor.many(lambda: cursor.number(8)))


class CkksRound(Round):
    """What a coordinator of scheme `ckks` has, and what each tenant computes."""

    plan: Any

    @property
    def degree(self) -> int:
        return int(self.plan.parameters.degree)

    def transcript(self, roster: bytes) -> tuple[bytes, bytes]:
        """The answers in it are those that opened: the first t that arrived."""
        every = self.signed["unmask"]
        first = list(every)[: self.plan.threshold]
        self.signed["unmask"] = {sender: every[sender] for sender in first}
        try:
            return super().transcript(roster)
        finally:
            self.signed["unmask"] = every

    def upload_root(self, sender: int) -> bytes:
        size = sum(self.plan.parameters.modulus_bits) * self.degree // 8
        data = self.uploads[sender]
        leaves = [data[at : at + size] for at in range(0, len(data), size)]
        return merkle_root([merkle_bulk_leaf(leaf) for leaf in leaves])

    def key_of(self, seed: bytes) -> list[int]:
        """s, from the self-mask seed."""
        return gaussian_polynomial(seed, self.plan.context, "secret", 0, self.degree)

    def polynomials_of(
        self, seed: bytes, dealing_seed: bytes, holders: Sequence[int]
    ) -> list[list[int]]:
        key = self.key_of(seed)
        return sharing_polynomials(
            key, holders, self.plan.threshold, dealing_seed, self.plan.context
        )

    def rho(self, dealer: int, root: bytes) -> list[list[int]]:
        return challenge(self.plan.context, dealer, [root], self.degree)

    def bundles_of(self, holder: int, channel_seed: bytes) -> dict[int, bytes]:
        """The packed share of every other dealer, whose commitment has to hold."""
        context, found = self.plan.context, {}
        for dealer in sorted(self.leaves):
            if dealer == holder:
                continue
            leaf = self.leaf(dealer, holder)
            plain = open_bundle(
                self.plan.suite, context, dealer, holder, self.keys, channel_seed, leaf.before,
                leaf.sealed,
            )  # fmt: skip
            share, opening = plain[:-32], plain[-32:]
            place = u32(0, dealer, holder)
            committed = labelled("share commitment", context, place, share, opening)
            if (committed,) != leaf.commitments:
                raise ValueError("another share than committed to")
            found[dealer] = share
        return found

    def upload_of(  # type: ignore[override]
        self, seed: bytes, levels: Sequence[int], weight: int
    ) -> bytes:
        """c_j = m_j + e_j - a_j s, packed, leaf after leaf."""
        parameters, context = self.plan.parameters, self.plan.context
        key, upload = self.key_of(seed), b""
        secret = [ntt([s % prime for s in key], prime) for prime in parameters.primes]
        for number, (begin, count, last) in enumerate(self.plan.leaves()):
            error = gaussian_polynomial(seed, context, "errors", number, self.degree)
            values = levels[begin : begin + count]
            plain = self.plan.packing.coefficients(values, weight if last else None, error)
            public = public_polynomial(context, number, self.degree, parameters.primes)
            planes = []
            for prime, a, s in zip(parameters.primes, public, secret, strict=True):
                m = ntt([c % prime for c in plain], prime)
                planes.append([(x - y * z) % prime for x, y, z in zip(m, a, s, strict=True)])
            upload += pack_planes(planes, parameters.modulus_bits)
        return upload

    def key_sums(self) -> dict[int, list[int]]:
        """What was released, by holder."""
        found = {}
        for sender, signed in sorted(self.signed["unmask"].items()):
            cursor = reading(signed.body)
            cursor.tag("Unmask")
            cursor.take(32)
            if cursor.number():
                raise ValueError("shares, which scheme ckks never releases")
            found[sender] = unpack(cursor.blob(), 31, self.degree)
            cursor.end()
        return found

    def open(self) -> tuple[list[int], int]:
        """(summed levels, summed weights), from uploads and sums of shares alone."""
        survivors = len(self.survivors)
        opened = open_sums(self.key_sums(), self.plan.threshold, TAIL * survivors)
        if opened is None or opened[1]:
            raise ValueError("the sums of shares do not open")
        return self.open_with(opened[0])

    def open_with(self, key: Sequence[int]) -> tuple[list[int], int]:
        """The sum under S, if its errors can be those of honest survivors."""
        parameters = self.plan.parameters
        size = sum(parameters.modulus_bits) * self.degree // 8
        levels: list[int] = []
        weight = 0
        for number, (_, count, last) in enumerate(self.plan.leaves()):
            public = public_polynomial(self.plan.context, number, self.degree, parameters.primes)
            sums = added(
                [
                    unpack_planes(upload[number * size :][:size], parameters)
                    for upload in (self.uploads[one] for one in self.survivors)
                ],
                parameters.primes,
            )
            planes = []
            for prime, c, a in zip(parameters.primes, sums, public, strict=True):
                s = ntt([k % prime for k in key], prime)
                opened = [(x + y * z) % prime for x, y, z in zip(c, a, s, strict=True)]
                planes.append(inverse_ntt(opened, prime))
            packing = self.plan.packing
            margin = parameters.margin_bits(packing.n)
            below = bias(packing.digits, packing.ring_bits, margin)
            numbers = [
                together(residues, parameters.primes, below)
                for residues in zip(*planes, strict=True)
            ]
            values, weighed, errors, beyond = packing.read(numbers, count, last)
            if beyond or max(map(abs, errors)) > TAIL * len(self.survivors):
                raise ValueError("more than honest survivors add up to")
            levels, weight = levels + values, weight + weighed
        return levels, weight


def added(ciphertexts: Iterable[Sequence[Sequence[int]]], primes: Sequence[int]) -> list[list[int]]:
    return [
        [sum(column) % prime for column in zip(*planes, strict=True)]
        for prime, planes in zip(primes, zip(*ciphertexts, strict=True), strict=True)
    ]


def sum_root(plan: CkksPlan, levels: Sequence[int], weight: int) -> bytes:
    """Leaves as the uploads': the weight is the last value of the last one."""
    leaves = []
    for begin, count, last in plan.leaves():
        values = [*levels[begin : begin + count], *([weight] if last else [])]
        leaves.append(b"".join(value.to_bytes(8, "little", signed=True) for value in values))
    return merkle_root([merkle_bulk_leaf(leaf) for leaf in leaves])
