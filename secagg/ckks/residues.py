"""Residues: how they lie on the wire, and how signed levels become residues and come back.

On the wire a polynomial is its L planes one after another, each packed as `secagg.packing` packs:
`modulus_bits` bits a residue, little-endian bit order, so that eight residues end at a byte.

As a plaintext, coefficient c is the integer e_c + 2^m * sum_k v_k,c * 2^(g k): k signed digits of
g bits above a margin of m bits for the noise e. Encoding reduces it modulo every prime without
writing it down: each term is multiplied by its power of two, and one Montgomery reduction
(Montgomery 1985, "Modular multiplication without trial division") ends the sum. Decoding adds a
bias that makes everything nonnegative, finds the mixed-radix digits (Garner 1959, "The residue
number system"), writes the integer in 32-bit limbs, and cuts its fields out.

Not here: levels and scales (`secagg.encoding`), the sampling of noise, and the judgement of what
was decoded: `Digits.decode` reports the noise and counts what does not fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from secagg.ckks.jit import kernel
from secagg.ckks.ntt import MAX_PRIME_BITS, Residues
from secagg.errors import ConfigError, MalformedMessage, Step

Bytes = NDArray[np.uint8]
_I32 = NDArray[np.int32]
_I64 = NDArray[np.int64]
_U64 = NDArray[np.uint64]
_Scalar = np.unsignedinteger[Any]

_BLOCK: Final = 512
"""Coefficients that decoding and encoding handle at once: their intermediates stay in cache."""
_LOW: Final = np.uint64((1 << 32) - 1)
_HALF: Final = np.uint64(32)
_ONE: Final = np.uint64(1)
_SHIFT: Final = np.int64(1 << 31)
_MAX_MARGIN: Final = 32
_MAX_DIGIT: Final = 50


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the sum of a polynomial's coefficients holds."""

    values: NDArray[np.int64]
    """(k, N): summed signed levels."""
    noise: NDArray[np.int64]
    """(N,): summed noise."""
    overflows: int
    """Coefficients with anything above their last digit: honest sums have none."""


@dataclass(frozen=True, slots=True, eq=False)
class Wire:
    """The packed form of one polynomial. Threads may share it for different polynomials."""

    degree: int
    primes: tuple[int, ...]
    modulus_bits: tuple[int, ...]
    _moduli: Residues
    _bits: _U64
    _spare: list[Residues] = field(default_factory=list, repr=False)

    @property
    def size(self) -> int:
        """Bytes of one packed polynomial."""
        return self.degree // 8 * sum(self.modulus_bits)

    def pack(self, residues: Residues) -> bytes:
        """Pack (L, N) residues below their primes."""
        room = self._room()
        out = room.reshape(-1).view(np.uint8)
        _pack(residues, self._bits, out)
        packed = out[: self.size].tobytes()
        self._spare.append(room)
        return packed

    def unpack_into(self, out: Residues, leaf: bytes | memoryview) -> None:
        """Write the residues of a packed polynomial to (L, N) `out`.

        Raises:
            MalformedMessage: another length, or a residue that is not below its prime; `out` then
                holds what was read.
        """
        if len(leaf) != self.size:
            raise MalformedMessage(
                f"a packed polynomial has {self.size} bytes here, and not {len(leaf)}",
                step=Step.MASKED_INPUT,
            )
        data = np.frombuffer(leaf, np.uint8)
        data.flags.writeable = False  # of whatever kind the buffer is: one compilation for all
        bad = int(_unpack(out, data, self._bits, self._moduli))
        if bad < len(self.primes):
            place = int((out[bad] >= self._moduli[bad]).argmax())
            raise MalformedMessage(
                f"residue {place} of plane {bad} is not below the plane's prime",
                step=Step.MASKED_INPUT,
            )

    def add(self, total: Residues, leaf: bytes | memoryview) -> None:
        """Add a packed polynomial to `total`, which is below the primes before and after.

        Raises:
            MalformedMessage: see `unpack_into`; `total` is as it was.
        """
        one = self._room()
        self.unpack_into(one, leaf)
        _add(total, one, self._moduli)
        self._spare.append(one)

    def subtract(self, total: Residues, leaf: bytes | memoryview) -> None:
        """Take out what `add` added. Raises as `add` does."""
        one = self._room()
        self.unpack_into(one, leaf)
        _subtract(total, one, self._moduli)
        self._spare.append(one)

    def _room(self) -> Residues:
        try:
            return self._spare.pop()
        except IndexError:  # one for each thread that adds at this moment
            return np.empty((len(self.primes), self.degree), np.uint32)


@lru_cache(maxsize=8)
def wire(degree: int, primes: tuple[int, ...], modulus_bits: tuple[int, ...]) -> Wire:
    """The wire format of polynomials of `degree`, a multiple of 8, modulo `primes`."""
    if degree < 8 or degree % 8:
        raise ConfigError(f"planes of {degree} residues do not end at bytes; use a multiple of 8")
    for prime, bits in zip(primes, modulus_bits, strict=True):
        if not 8 <= prime.bit_length() <= bits <= MAX_PRIME_BITS:
            raise ConfigError(f"residues below {prime} are not packed at {bits} bits")
    return Wire(
        degree, primes, modulus_bits, np.array(primes, np.uint32), np.array(modulus_bits, np.uint64)
    )


@dataclass(frozen=True, slots=True, eq=False)
class Digits:
    """Packing of `digits` signed levels and a noise into one coefficient."""

    primes: tuple[int, ...]
    digit_bits: int
    digits: int
    margin_bits: int
    _encoding: _Encoding = field(repr=False)
    _decoding: _Decoding = field(repr=False)

    def encode(self, values: _I32, noise: NDArray[np.signedinteger[Any]], out: Residues) -> None:
        """out = noise + 2^m * sum of values[k] * 2^(g k), mod each prime, below *twice* the prime.

        `values`: (k, N) int32, any; `noise`: (N,) of int32 or less. `out`: (L, N), coefficients as
        `Ring.forward` takes them.
        """
        e, at = noise.astype(np.int32, copy=False), self._encoding
        values = np.ascontiguousarray(values)
        if self.digits * int(_span(values)) + int(_span(e[None])) <= 1 << 31:
            _encode(values, e, at.moduli, at.inverses, at.weights, out)
        else:
            _encode_any(values, e, at.moduli, at.inverses, at.wide_weights, at.constants, out)

    def decode(self, residues: Residues) -> Decoded:
        """What (L, N) residues below the primes, in coefficient form, hold."""
        at, degree = self._decoding, residues.shape[1]
        values = np.empty((self.digits, degree), np.int64)
        noise = np.empty(degree, np.int64)
        overflows = _decode(
            residues,
            at.moduli,
            at.bias,
            at.inverses,
            at.shoup,
            at.offsets,
            at.limbs,
            self.margin_bits,
            self.digit_bits,
            values,
            noise,
        )
        return Decoded(values, noise, int(overflows))


@dataclass(frozen=True, slots=True, eq=False)
class _Encoding:
    moduli: Residues
    inverses: Residues
    """q^-1 mod 2^32."""
    weights: _I32
    """(L, 1 + k + 3): 2^32 times 1 (the noise) or 2^(m + g k), mod q, and zeros."""
    wide_weights: Residues
    """(L, 1 + k): the same with 2^64."""
    constants: Residues
    """(L,): what takes out 2^31, added to every term, times 2^32."""


@dataclass(frozen=True, slots=True, eq=False)
class _Decoding:
    moduli: Residues
    bias: Residues
    inverses: Residues
    """(L, L): q_j^-1 mod q_l at [l, j], j < l."""
    shoup: Residues
    offsets: Residues
    """(L, L): the least multiple of q_l that is q_j or more."""
    limbs: int


@lru_cache(maxsize=8)
def digits(primes: tuple[int, ...], digit_bits: int, count: int, margin_bits: int) -> Digits:
    """`count` digits of `digit_bits` bits above `margin_bits` bits of noise, modulo `primes`."""
    bits = margin_bits + digit_bits * count
    if not (count >= 1 and 1 <= digit_bits <= _MAX_DIGIT and 1 <= margin_bits <= _MAX_MARGIN):
        raise ConfigError(
            f"{count} digits of {digit_bits} bits above {margin_bits} bits are not supported; "
            f"digits have up to {_MAX_DIGIT} bits and the margin up to {_MAX_MARGIN}"
        )
    if math.prod(primes) < 1 << bits:
        raise ConfigError(
            f"{count} digits of {digit_bits} bits above {margin_bits} bits take {bits} bits, and "
            f"the primes' product has less; use fewer digits or more primes"
        )
    shifts = [0, *(margin_bits + digit_bits * place for place in range(count))]
    bias = sum(1 << (shift + digit_bits - 1) for shift in shifts[1:]) + (1 << (margin_bits - 1))
    return Digits(
        primes, digit_bits, count, margin_bits, _encoding(primes, shifts), _decoding(primes, bias)
    )


def _encoding(primes: tuple[int, ...], shifts: list[int]) -> _Encoding:
    return _Encoding(
        np.array(primes, np.uint32),
        np.array([pow(q, -1, 1 << 32) for q in primes], np.uint32),
        np.array([[pow(2, 32 + s, q) for s in shifts] + [0] * 3 for q in primes], np.int32),
        np.array([[pow(2, 64 + s, q) for s in shifts] for q in primes], np.uint32),
        np.array([-sum(1 << (63 + s) for s in shifts) % q for q in primes], np.uint32),
    )


def _decoding(primes: tuple[int, ...], bias: int) -> _Decoding:
    inverses = [[pow(b, -1, a) if b != a else 0 for b in primes] for a in primes]
    shoup = [[(x << 32) // q for x in row] for q, row in zip(primes, inverses, strict=True)]
    return _Decoding(
        np.array(primes, np.uint32),
        np.array([bias % q for q in primes], np.uint32),
        np.array(inverses, np.uint32),
        np.array(shoup, np.uint32),
        np.array([[-(-b // a) * a for b in primes] for a in primes], np.uint32),
        math.prod(primes).bit_length() // 32 + 3,
    )


@kernel
def _word(data: Bytes, at: _Scalar) -> _Scalar:
    """Eight bytes, little-endian. Unsigned indices are not wrapped: one load remains of this."""
    low = (
        np.uint64(data[at])
        | np.uint64(data[at + np.uint64(1)]) << np.uint64(8)
        | np.uint64(data[at + np.uint64(2)]) << np.uint64(16)
        | np.uint64(data[at + np.uint64(3)]) << np.uint64(24)
    )
    return (
        low
        | np.uint64(data[at + np.uint64(4)]) << np.uint64(32)
        | np.uint64(data[at + np.uint64(5)]) << np.uint64(40)
        | np.uint64(data[at + np.uint64(6)]) << np.uint64(48)
        | np.uint64(data[at + np.uint64(7)]) << np.uint64(56)
    )


@kernel
def _put_word(data: Bytes, at: _Scalar, word: _Scalar) -> None:
    """The reverse: one store."""
    byte = np.uint64(255)
    data[at] = np.uint8(word & byte)
    data[at + np.uint64(1)] = np.uint8((word >> np.uint64(8)) & byte)
    data[at + np.uint64(2)] = np.uint8((word >> np.uint64(16)) & byte)
    data[at + np.uint64(3)] = np.uint8((word >> np.uint64(24)) & byte)
    data[at + np.uint64(4)] = np.uint8((word >> np.uint64(32)) & byte)
    data[at + np.uint64(5)] = np.uint8((word >> np.uint64(40)) & byte)
    data[at + np.uint64(6)] = np.uint8((word >> np.uint64(48)) & byte)
    data[at + np.uint64(7)] = np.uint8((word >> np.uint64(56)) & byte)


@kernel
def _pair(x: Residues, i: int, width: _Scalar) -> _Scalar:
    return np.uint64(x[i]) | (np.uint64(x[i + 1]) << width)


@kernel
def _pairs(width: _Scalar) -> tuple[_Scalar, ...]:
    """In which byte of a group the second, third and fourth pair begin, and at which of its bits.

    Eight residues of b bits are a group of b bytes. The 8 bytes from where a pair begins have all
    of it: pairs of 30 bits begin at bit 0 or 4 of a byte, those of 29 at an even bit.
    """
    two, byte, rest = width + width, np.uint64(3), np.uint64(7)
    four, six = two + two, two + two + two
    return two >> byte, four >> byte, six >> byte, two & rest, four & rest, six & rest


@kernel
def _pack(residues: Residues, bits: _U64, out: Bytes) -> None:
    """Four stores a group, each with the last bits of the store before it.

    `out` has room for 32 bits a residue, so that the last store is inside.

    The shift by `_ONE` alone: two shifts may be 64 bits together, which one cannot.
    """
    at = np.uint64(0)
    for plane in range(len(residues)):
        x, width = residues[plane], bits[plane]
        second, third, fourth, shift2, shift3, shift4 = _pairs(width)
        used1, used2, used3 = (
            np.uint64(8) * second,
            np.uint64(8) * (third - second) - _ONE,
            np.uint64(8) * (fourth - third),
        )
        for i in range(len(x) // 8):
            word1 = _pair(x, 8 * i, width)
            word2 = (_pair(x, 8 * i + 2, width) << shift2) | (word1 >> used1)
            word3 = (_pair(x, 8 * i + 4, width) << shift3) | ((word2 >> used2) >> _ONE)
            word4 = (_pair(x, 8 * i + 6, width) << shift4) | (word3 >> used3)
            _put_word(out, at, word1)
            _put_word(out, at + second, word2)
            _put_word(out, at + third, word3)
            _put_word(out, at + fourth, word4)
            at += width


@kernel
def _unpack_group(x: Residues, i: int, data: Bytes, at: _Scalar, width: _Scalar) -> None:
    """Eight residues; reads up to 8 bytes from where the last pair begins."""
    mask = (_ONE << width) - _ONE
    second, third, fourth, shift2, shift3, shift4 = _pairs(width)
    word1, word2 = _word(data, at), _word(data, at + second) >> shift2
    word3, word4 = _word(data, at + third) >> shift3, _word(data, at + fourth) >> shift4
    x[i], x[i + 1] = np.uint32(word1 & mask), np.uint32((word1 >> width) & mask)
    x[i + 2], x[i + 3] = np.uint32(word2 & mask), np.uint32((word2 >> width) & mask)
    x[i + 4], x[i + 5] = np.uint32(word3 & mask), np.uint32((word3 >> width) & mask)
    x[i + 6], x[i + 7] = np.uint32(word4 & mask), np.uint32((word4 >> width) & mask)


@kernel
def _unpack_end(x: Residues, data: Bytes, width: int) -> None:
    """The last eight residues of all, behind which nothing may be read: byte by byte."""
    first, mask = len(data) - width, (_ONE << np.uint64(width)) - _ONE
    for i in range(8):
        at, word = first + (i * width >> 3), np.uint64(0)
        for byte in range(min(5, len(data) - at)):
            word |= np.uint64(data[at + byte]) << np.uint64(8 * byte)
        x[len(x) - 8 + i] = np.uint32((word >> np.uint64(i * width & 7)) & mask)


@kernel
def _unpack(out: Residues, data: Bytes, bits: _U64, moduli: Residues) -> int:
    """The first plane with a residue that is not below its prime, or the number of planes."""
    at, bad = np.uint64(0), len(moduli)
    for plane in range(len(moduli)):
        x, width, q = out[plane], bits[plane], moduli[plane]
        ends = plane == len(moduli) - 1
        for i in range(len(x) // 8 - ends):
            _unpack_group(x, 8 * i, data, at, width)
            at += width
        if ends:
            _unpack_end(x, data, int(width))
        above = 0
        for i in range(len(x)):
            if x[i] >= q:
                above += 1
        if above and bad == len(moduli):
            bad = plane
    return bad


@kernel
def _add(total: Residues, one: Residues, moduli: Residues) -> None:
    for plane in range(len(moduli)):
        x, y, q = total[plane], one[plane], moduli[plane]
        for i in range(len(x)):
            both = np.uint32(x[i] + y[i])
            x[i] = np.uint32(both - q) if both >= q else both


@kernel
def _subtract(total: Residues, one: Residues, moduli: Residues) -> None:
    for plane in range(len(moduli)):
        x, y, q = total[plane], one[plane], moduli[plane]
        for i in range(len(x)):
            both = np.uint32(x[i] + (q - y[i]))
            x[i] = np.uint32(both - q) if both >= q else both


@kernel
def _span(values: _I32) -> int:
    """A power of two that no |value| exceeds."""
    found = np.int32(0)
    for k in range(len(values)):
        row = values[k]
        for c in range(len(row)):
            found |= row[c] ^ (row[c] >> np.int32(31))
    span = 1
    while span <= found:
        span *= 2
    return span


@kernel
def _encode(
    values: _I32, noise: _I32, moduli: Residues, inverses: Residues, weights: _I32, out: Residues
) -> None:
    """For a sum of |values| and |noise| below 2^31: one reduction, of the whole sum.

    Four digits at a time, so that the sum is loaded and stored less often; weights behind the last
    digit are zero.
    """
    total, last = np.empty(_BLOCK, np.int64), len(values) - 1
    for start in range(0, len(noise), _BLOCK):
        stop = min(start + _BLOCK, len(noise))
        e, size = noise[start:stop], stop - start
        for plane in range(len(moduli)):
            q, inverse, w = np.int64(moduli[plane]), np.uint64(inverses[plane]), weights[plane]
            by = np.int64(w[0])
            for c in range(size):
                total[c] = np.int64(e[c]) * by + q * _SHIFT
            for k in range(0, last + 1, 4):
                v1, w1 = values[k, start:stop], np.int64(w[k + 1])
                v2, w2 = values[min(k + 1, last), start:stop], np.int64(w[k + 2])
                v3, w3 = values[min(k + 2, last), start:stop], np.int64(w[k + 3])
                v4, w4 = values[min(k + 3, last), start:stop], np.int64(w[k + 4])
                for c in range(size):
                    left = np.int64(v1[c]) * w1 + np.int64(v2[c]) * w2
                    total[c] += left + (np.int64(v3[c]) * w3 + np.int64(v4[c]) * w4)
            x = out[plane, start:stop]
            for c in range(size):
                low = ((np.uint64(total[c]) & _LOW) * inverse) & _LOW
                x[c] = np.uint32(((total[c] - np.int64(low) * q) >> np.int64(32)) + q)


@kernel
def _reduced(t: _Scalar, q: _Scalar, inverse: _Scalar) -> _Scalar:
    """t / 2^32 mod q, below 2q, for t below 2^32 q."""
    low = ((t & _LOW) * inverse) & _LOW
    return (t >> _HALF) + q - ((low * q) >> _HALF)


@kernel
def _term(value: np.int32, weight: _Scalar, q: _Scalar, inverse: _Scalar) -> _Scalar:
    """(value + 2^31) * weight / 2^32 mod q, below 2q."""
    return _reduced(np.uint64(np.int64(value) + _SHIFT) * weight, q, inverse)


@kernel
def _encode_any(
    values: _I32,
    noise: _I32,
    moduli: Residues,
    inverses: Residues,
    weights: Residues,
    constants: Residues,
    out: Residues,
) -> None:
    """For any int32: 2^31 is added to each, and each product is reduced alone."""
    total = np.empty(_BLOCK, np.uint64)
    for start in range(0, len(noise), _BLOCK):
        stop = min(start + _BLOCK, len(noise))
        e, size = noise[start:stop], stop - start
        for plane in range(len(moduli)):
            q, inverse, w = np.uint64(moduli[plane]), np.uint64(inverses[plane]), weights[plane]
            constant, by = np.uint64(constants[plane]), np.uint64(w[0])
            for c in range(size):
                total[c] = constant + _term(e[c], by, q, inverse)
            for k in range(len(values)):
                v, by = values[k, start:stop], np.uint64(w[k + 1])
                for c in range(size):
                    total[c] += _term(v[c], by, q, inverse)
            x = out[plane, start:stop]
            for c in range(size):
                x[c] = np.uint32(_reduced(total[c], q, inverse))


@kernel
def _mixed_radix(
    x: Residues, moduli: Residues, inverses: Residues, shoup: Residues, offsets: Residues
) -> None:
    """In place: residues become digits d_l, the number being d_0 + q_0 (d_1 + q_1 (d_2 + ...))."""
    for here in range(len(moduli)):
        q, mine = moduli[here], x[here]
        for below in range(here):
            w, s = inverses[here, below], shoup[here, below]
            lower, offset = x[below], offsets[here, below]
            for c in range(len(mine)):
                y = np.uint64(np.uint32(mine[c] + (offset - lower[c])))
                high = (y * np.uint64(s)) >> _HALF
                product = np.uint32(y * np.uint64(w) - high * np.uint64(q))
                mine[c] = np.uint32(product - q) if product >= q else product


@kernel
def _limbs(limbs: Residues, x: Residues, moduli: Residues, carry: _U64) -> None:
    """The integer with mixed-radix digits x, in 32-bit limbs, the lowest first."""
    limbs[:] = np.uint32(0)
    for here in range(len(moduli) - 1, -1, -1):
        q, digit = np.uint64(moduli[here]), x[here]
        for c in range(len(carry)):
            carry[c] = np.uint64(digit[c])
        for place in range(min(len(limbs), len(moduli) - here)):
            limb = limbs[place]
            for c in range(len(carry)):
                product = np.uint64(limb[c]) * q + carry[c]
                limb[c] = np.uint32(product & _LOW)
                carry[c] = product >> _HALF


@kernel
def _field(limbs: Residues, first: int, bits: int, out: _I64) -> None:
    """`bits` bits (50 at most) from bit `first` on, less half their range."""
    place, shift = first >> 5, first & 31
    low, middle, high = limbs[place], limbs[place + 1], limbs[place + 2]
    mask, half = np.uint64((1 << bits) - 1), np.int64(1 << (bits - 1))
    right, left = np.uint64(shift), np.uint64(63 - shift)
    for c in range(len(out)):
        word = (np.uint64(low[c]) | (np.uint64(middle[c]) << _HALF)) >> right
        word |= (np.uint64(high[c]) << left) << np.uint64(1)
        out[c] = np.int64(word & mask) - half


@kernel
def _count_above(limbs: Residues, first: int, count: int) -> int:
    """Columns with any bit set from bit `first` on."""
    place, shift = first >> 5, np.uint32(first & 31)
    above = 0
    for c in range(count):
        found = limbs[place, c] >> shift
        for higher in range(place + 1, len(limbs)):
            found |= limbs[higher, c]
        above += found != 0
    return above


@kernel
def _decode(
    residues: Residues,
    moduli: Residues,
    bias: Residues,
    inverses: Residues,
    shoup: Residues,
    offsets: Residues,
    limb_count: int,
    margin: int,
    width: int,
    values: _I64,
    noise: _I64,
) -> int:
    overflows, degree = 0, len(noise)
    block = min(_BLOCK, degree)
    x, carry = np.empty((len(moduli), block), np.uint32), np.empty(block, np.uint64)
    limbs = np.empty((limb_count, block), np.uint32)
    for start in range(0, degree, block):
        for plane in range(len(moduli)):
            q, by, from_plane, to = moduli[plane], bias[plane], residues[plane], x[plane]
            for c in range(block):
                both = np.uint32(from_plane[start + c] + by)
                to[c] = np.uint32(both - q) if both >= q else both
        _mixed_radix(x, moduli, inverses, shoup, offsets)
        _limbs(limbs, x, moduli, carry)
        _field(limbs, 0, margin, noise[start : start + block])
        for k in range(len(values)):
            _field(limbs, margin + k * width, width, values[k, start : start + block])
        overflows += _count_above(limbs, margin + len(values) * width, block)
    return overflows
