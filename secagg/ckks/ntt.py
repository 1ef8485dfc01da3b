"""The number-theoretic transform of Z_q[X]/(X^N + 1), for several primes q below 2^30 at once.

Harvey 2014, "Faster arithmetic for number-theoretic transforms", sections 3 and 4: butterflies
with 32-bit Shoup constants, whose values stay below 4q (forward) or 2q (inverse) and are reduced
at the end alone. The order of the results is that of Microsoft SEAL: value i belongs to the power
2 * bitreverse(i) + 1 of the smallest primitive 2N-th root of unity mod q.

Every pass over memory does two or three stages. The stages over distances 4, 2 and 1 are done in
one pass over groups of eight, each of a group's eight values in a vector with those of the other
groups. Distances 8 and 32 have loops of their own, as long as the compiler must know.

Not here: reduction of inputs (the inverse wants residues below 2q), and protection from other
programs on the same core: times do not depend on values, as far as the processor promises that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from secagg.ckks.jit import kernel
from secagg.errors import ConfigError

Residues = NDArray[np.uint32]
_U32 = np.unsignedinteger[Any]
_WORD: Final = np.uint64(1 << 32)
_HALF: Final = np.uint64(32)

MAX_PRIME_BITS: Final = 30
"""Four times a prime must fit into 32 bits."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Factor:
    """A polynomial in NTT form, prepared to be multiplied with. As secret as the polynomial."""

    residues: Residues
    shoup: Residues
    """floor(residue * 2^32 / q)."""

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a prepared polynomial may be a key: it cannot be copied or pickled")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Roots:
    """Powers of a root: those of early stages, then those of the last three in seven planes."""

    early: Residues  # (L, N / 8)
    early_shoup: Residues
    late: Residues  # (L, 7, N / 8)
    late_shoup: Residues


@dataclass(frozen=True, slots=True, eq=False)
class Ring:
    """Z_q[X]/(X^N + 1) for each q in `primes`; residues are (L, N) uint32, C-contiguous."""

    degree: int
    primes: tuple[int, ...]
    moduli: Residues
    _forward: _Roots
    _inverse: _Roots
    _scale: Factor

    def forward(self, residues: Residues) -> None:
        """Coefficients, in natural order and below 4q, become the NTT form, below q, in place."""
        roots = self._forward
        _forward(
            residues, self.moduli, roots.early, roots.early_shoup, roots.late, roots.late_shoup
        )

    def inverse(self, residues: Residues) -> None:
        """The NTT form, below 2q, becomes coefficients, below q, in place."""
        roots = self._inverse
        _inverse(
            residues, self.moduli, roots.early, roots.early_shoup, roots.late, roots.late_shoup
        )
        _scale(residues, self.moduli, self._scale.residues, self._scale.shoup)

    def factor(self, residues: Residues) -> Factor:
        """What `multiply_add` takes, of a polynomial in NTT form below q."""
        return _factor(residues, self.moduli[:, None])

    def negative_factor(self, residues: Residues) -> Factor:
        """The same of the polynomial's negative."""
        moduli = self.moduli[:, None]
        return _factor((moduli - residues) * (residues != 0), moduli)

    def multiply_add(self, out: Residues, a: Residues, factor: Factor) -> None:
        """out += a * factor, place by place; `out` is below q before and after, `a` below 2^32."""
        _multiply_add(out, a, self.moduli, factor.residues, factor.shoup)

    def new(self) -> Residues:
        """Room for one polynomial."""
        return np.empty((len(self.primes), self.degree), np.uint32)


@lru_cache(maxsize=8)
def ring(degree: int, primes: tuple[int, ...]) -> Ring:
    """The ring of a degree (a power of two, 8 or more) and of primes that are 1 mod 2 * degree."""
    if degree < 8 or degree & (degree - 1):
        raise ConfigError(f"a ring's degree is a power of two, 8 or more, and not {degree}")
    for prime in primes:
        if prime % (2 * degree) != 1 or prime.bit_length() > MAX_PRIME_BITS:
            raise ConfigError(
                f"{prime} is not 1 mod {2 * degree} and below 2^{MAX_PRIME_BITS}: "
                f"no transform of degree {degree} has it"
            )
    moduli = np.array(primes, np.uint32)
    powers = [_powers(degree, prime) for prime in primes]
    inverses = [np.concatenate((one[:1], one[:0:-1])) for one in powers]  # psi^-i = psi^(2N-i)
    scale = [[pow(degree, -1, prime)] for prime in primes]
    return Ring(
        degree,
        primes,
        moduli,
        _roots(degree, powers, moduli),
        _roots(degree, inverses, moduli),
        _factor(np.array(scale, np.uint32), moduli[:, None]),
    )


def _powers(degree: int, prime: int) -> NDArray[np.uint64]:
    """All 2N powers of the smallest primitive 2N-th root of unity."""
    base, root = 1, 1
    while pow(root, degree, prime) != prime - 1:  # half of all bases do
        base += 1
        root = pow(base, (prime - 1) // (2 * degree), prime)
    powers = np.ones(1, np.uint64)
    while len(powers) < 2 * degree:
        step = np.uint64(pow(root, len(powers), prime))
        powers = np.concatenate((powers, powers * step % np.uint64(prime)))
    smallest = 2 * int(powers[1::2].argmin()) + 1
    return powers[np.arange(2 * degree) * smallest % (2 * degree)]


def _roots(degree: int, powers: list[NDArray[np.uint64]], moduli: Residues) -> _Roots:
    order = np.zeros(1, np.intp)
    while len(order) < degree:
        order = np.concatenate((2 * order, 2 * order + 1))
    table = np.stack([one[order] for one in powers]).astype(np.uint32)
    eighth = degree // 8
    late = np.stack(
        [
            table[:, (eighth << stage) + place :: 1 << stage][:, :eighth]
            for stage in range(3)
            for place in range(1 << stage)
        ],
        axis=1,
    )
    first = _factor(np.ascontiguousarray(table[:, :eighth]), moduli[:, None])
    last = _factor(late, moduli[:, None, None])
    return _Roots(first.residues, first.shoup, last.residues, last.shoup)


def _factor(residues: Residues, moduli: Residues) -> Factor:
    shoup = (residues.astype(np.uint64) << _HALF) // moduli.astype(np.uint64)
    return Factor(np.ascontiguousarray(residues), shoup.astype(np.uint32))


@kernel
def _times(y: _U32, w: _U32, shoup: _U32, q: _U32) -> _U32:
    """y * w mod q, below 2q, for any y below 2^32.

    Both products are cut to 32 bits before they are subtracted, and 2^32 is added: the compiler
    then multiplies 16 lanes of 32 bits, and ordinary Python sees no overflow.
    """
    high = (np.uint64(y) * np.uint64(shoup)) >> _HALF
    product = np.uint64(np.uint32(np.uint64(y) * np.uint64(w)))
    return np.uint32(product + _WORD - np.uint64(np.uint32(high * np.uint64(q))))


@kernel
def _below(x: _U32, p: _U32) -> _U32:
    """x mod p for x below 2p."""
    return np.uint32(x - p) if x >= p else np.uint32(x)


@kernel
def _butterfly(x: _U32, y: _U32, w: _U32, shoup: _U32, q: _U32, p: _U32) -> tuple[_U32, _U32]:
    """(x + wy, x - wy); all four below 4q. p is 2q."""
    x, y = _below(x, p), _times(y, w, shoup, q)
    return np.uint32(x + y), np.uint32(x + p - y)


@kernel
def _butterfly_back(x: _U32, y: _U32, w: _U32, shoup: _U32, q: _U32, p: _U32) -> tuple[_U32, _U32]:
    """(x + y, w(x - y)); all four below 2q. p is 2q."""
    return _below(np.uint32(x + y), p), _times(np.uint32(x + p - y), w, shoup, q)


@kernel
def _four(
    a: _U32, b: _U32, c: _U32, d: _U32, w: tuple[_U32, ...], q: _U32, p: _U32
) -> tuple[_U32, _U32, _U32, _U32]:
    """Two stages on four values; w has the constants of `_constants`."""
    a, c = _butterfly(a, c, w[0], w[1], q, p)
    b, d = _butterfly(b, d, w[0], w[1], q, p)
    a, b = _butterfly(a, b, w[2], w[3], q, p)
    c, d = _butterfly(c, d, w[4], w[5], q, p)
    return a, b, c, d


@kernel
def _four_back(
    a: _U32, b: _U32, c: _U32, d: _U32, w: tuple[_U32, ...], q: _U32, p: _U32
) -> tuple[_U32, _U32, _U32, _U32]:
    """What undoes `_four`, times 4."""
    a, b = _butterfly_back(a, b, w[2], w[3], q, p)
    c, d = _butterfly_back(c, d, w[4], w[5], q, p)
    a, c = _butterfly_back(a, c, w[0], w[1], q, p)
    b, d = _butterfly_back(b, d, w[0], w[1], q, p)
    return a, b, c, d


@kernel
def _constants(w: Residues, s: Residues, block: int) -> tuple[_U32, ...]:
    """The roots of one block in two stages, each with its Shoup constant."""
    left, right = 2 * block, 2 * block + 1
    return w[block], s[block], w[left], s[left], w[right], s[right]


@kernel
def _sixteen(x: Residues, w: Residues, s: Residues, q: _U32) -> None:
    """Distances 16 and 8. By hand: a short loop around `_four` is unrolled and not vectorised."""
    blocks, p = len(x) // 32, np.uint32(q + q)
    for i in range(blocks):
        block = x[32 * i : 32 * i + 32]
        w1, s1, w2, s2, w3, s3 = _constants(w, s, blocks + i)
        for j in range(8):
            a, c = _butterfly(block[j], block[j + 16], w1, s1, q, p)
            b, d = _butterfly(block[j + 8], block[j + 24], w1, s1, q, p)
            block[j], block[j + 8] = _butterfly(a, b, w2, s2, q, p)
            block[j + 16], block[j + 24] = _butterfly(c, d, w3, s3, q, p)


@kernel
def _two_stages(x: Residues, t: int, w: Residues, s: Residues, q: _U32) -> None:
    """Stages over distances 2t and t."""
    blocks, p = len(x) // (4 * t), np.uint32(q + q)
    for i in range(blocks):
        block, by = x[4 * t * i : 4 * t * (i + 1)], _constants(w, s, blocks + i)
        a, b, c, d = block[:t], block[t : 2 * t], block[2 * t : 3 * t], block[3 * t :]
        if t == 32:
            for j in range(32):
                a[j], b[j], c[j], d[j] = _four(a[j], b[j], c[j], d[j], by, q, p)
        else:
            for j in range(t):
                a[j], b[j], c[j], d[j] = _four(a[j], b[j], c[j], d[j], by, q, p)


@kernel
def _sixteen_back(x: Residues, w: Residues, s: Residues, q: _U32) -> None:
    """Distances 8 and 16. By hand, as in `_sixteen`."""
    blocks, p = len(x) // 32, np.uint32(q + q)
    for i in range(blocks):
        block = x[32 * i : 32 * i + 32]
        w1, s1, w2, s2, w3, s3 = _constants(w, s, blocks + i)
        for j in range(8):
            a, b = _butterfly_back(block[j], block[j + 8], w2, s2, q, p)
            c, d = _butterfly_back(block[j + 16], block[j + 24], w3, s3, q, p)
            block[j], block[j + 16] = _butterfly_back(a, c, w1, s1, q, p)
            block[j + 8], block[j + 24] = _butterfly_back(b, d, w1, s1, q, p)


@kernel
def _two_stages_back(x: Residues, t: int, w: Residues, s: Residues, q: _U32) -> None:
    """Stages over distances t and 2t."""
    blocks, p = len(x) // (4 * t), np.uint32(q + q)
    for i in range(blocks):
        block, by = x[4 * t * i : 4 * t * (i + 1)], _constants(w, s, blocks + i)
        a, b, c, d = block[:t], block[t : 2 * t], block[2 * t : 3 * t], block[3 * t :]
        if t == 32:
            for j in range(32):
                a[j], b[j], c[j], d[j] = _four_back(a[j], b[j], c[j], d[j], by, q, p)
        else:
            for j in range(t):
                a[j], b[j], c[j], d[j] = _four_back(a[j], b[j], c[j], d[j], by, q, p)


@kernel
def _last_three(x: Residues, w: Residues, s: Residues, q: _U32) -> None:
    """Stages over distances 4, 2 and 1, and the reduction below q."""
    p = np.uint32(q + q)
    for i in range(len(x) // 8):
        a, b, c, d = x[8 * i], x[8 * i + 1], x[8 * i + 2], x[8 * i + 3]
        e, f, g, h = x[8 * i + 4], x[8 * i + 5], x[8 * i + 6], x[8 * i + 7]
        a, e = _butterfly(a, e, w[0, i], s[0, i], q, p)
        b, f = _butterfly(b, f, w[0, i], s[0, i], q, p)
        c, g = _butterfly(c, g, w[0, i], s[0, i], q, p)
        d, h = _butterfly(d, h, w[0, i], s[0, i], q, p)
        a, c = _butterfly(a, c, w[1, i], s[1, i], q, p)
        b, d = _butterfly(b, d, w[1, i], s[1, i], q, p)
        e, g = _butterfly(e, g, w[2, i], s[2, i], q, p)
        f, h = _butterfly(f, h, w[2, i], s[2, i], q, p)
        a, b = _butterfly(a, b, w[3, i], s[3, i], q, p)
        c, d = _butterfly(c, d, w[4, i], s[4, i], q, p)
        e, f = _butterfly(e, f, w[5, i], s[5, i], q, p)
        g, h = _butterfly(g, h, w[6, i], s[6, i], q, p)
        x[8 * i] = _below(_below(a, p), q)
        x[8 * i + 1] = _below(_below(b, p), q)
        x[8 * i + 2] = _below(_below(c, p), q)
        x[8 * i + 3] = _below(_below(d, p), q)
        x[8 * i + 4] = _below(_below(e, p), q)
        x[8 * i + 5] = _below(_below(f, p), q)
        x[8 * i + 6] = _below(_below(g, p), q)
        x[8 * i + 7] = _below(_below(h, p), q)


@kernel
def _first_three_back(x: Residues, w: Residues, s: Residues, q: _U32) -> None:
    """Stages over distances 1, 2 and 4."""
    p = np.uint32(q + q)
    for i in range(len(x) // 8):
        a, b, c, d = x[8 * i], x[8 * i + 1], x[8 * i + 2], x[8 * i + 3]
        e, f, g, h = x[8 * i + 4], x[8 * i + 5], x[8 * i + 6], x[8 * i + 7]
        a, b = _butterfly_back(a, b, w[3, i], s[3, i], q, p)
        c, d = _butterfly_back(c, d, w[4, i], s[4, i], q, p)
        e, f = _butterfly_back(e, f, w[5, i], s[5, i], q, p)
        g, h = _butterfly_back(g, h, w[6, i], s[6, i], q, p)
        a, c = _butterfly_back(a, c, w[1, i], s[1, i], q, p)
        b, d = _butterfly_back(b, d, w[1, i], s[1, i], q, p)
        e, g = _butterfly_back(e, g, w[2, i], s[2, i], q, p)
        f, h = _butterfly_back(f, h, w[2, i], s[2, i], q, p)
        a, e = _butterfly_back(a, e, w[0, i], s[0, i], q, p)
        b, f = _butterfly_back(b, f, w[0, i], s[0, i], q, p)
        c, g = _butterfly_back(c, g, w[0, i], s[0, i], q, p)
        d, h = _butterfly_back(d, h, w[0, i], s[0, i], q, p)
        x[8 * i], x[8 * i + 1], x[8 * i + 2], x[8 * i + 3] = a, b, c, d
        x[8 * i + 4], x[8 * i + 5], x[8 * i + 6], x[8 * i + 7] = e, f, g, h


@kernel
def _forward(
    x: Residues, moduli: Residues, w: Residues, s: Residues, late: Residues, late_s: Residues
) -> None:
    for prime in range(len(moduli)):
        q, plane, t = moduli[prime], x[prime], x.shape[1] // 4
        left = t
        while left > 8:
            left //= 4
        if left not in (2, 8):  # an odd number of stages: the first one alone
            p, by, shoup = np.uint32(q + q), w[prime, 1], s[prime, 1]
            a, b = plane[: 2 * t], plane[2 * t :]
            for j in range(2 * t):
                a[j], b[j] = _butterfly(a[j], b[j], by, shoup, q, p)
            t //= 2
        while t > 8:
            _two_stages(plane, t, w[prime], s[prime], q)
            t //= 4
        if t == 8:
            _sixteen(plane, w[prime], s[prime], q)
        _last_three(plane, late[prime], late_s[prime], q)


@kernel
def _inverse(
    x: Residues, moduli: Residues, w: Residues, s: Residues, late: Residues, late_s: Residues
) -> None:
    for prime in range(len(moduli)):
        q, plane, t = moduli[prime], x[prime], 8
        _first_three_back(plane, late[prime], late_s[prime], q)
        if 4 * t <= x.shape[1]:
            _sixteen_back(plane, w[prime], s[prime], q)
            t *= 4
        while 4 * t <= x.shape[1]:
            _two_stages_back(plane, t, w[prime], s[prime], q)
            t *= 4
        if t < x.shape[1]:
            p, by, shoup = np.uint32(q + q), w[prime, 1], s[prime, 1]
            a, b = plane[:t], plane[t:]
            for j in range(t):
                a[j], b[j] = _butterfly_back(a[j], b[j], by, shoup, q, p)


@kernel
def _scale(x: Residues, moduli: Residues, by: Residues, shoup: Residues) -> None:
    """x = x * by mod q, one factor for each prime."""
    for prime in range(len(moduli)):
        q, w, s = moduli[prime], by[prime, 0], shoup[prime, 0]
        for i in range(x.shape[1]):
            x[prime, i] = _below(_times(x[prime, i], w, s, q), q)


@kernel
def _multiply_add(
    out: Residues, a: Residues, moduli: Residues, by: Residues, shoup: Residues
) -> None:
    for prime in range(len(moduli)):
        q = moduli[prime]
        for i in range(out.shape[1]):
            product = _below(_times(a[prime, i], by[prime, i], shoup[prime, i], q), q)
            out[prime, i] = _below(np.uint32(out[prime, i] + product), q)
