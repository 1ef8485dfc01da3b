"""Which ring, which primes, how many digits: the public parameters of scheme `ckks`.

A ciphertext is one polynomial of R_Q = Z_Q[X] / (X^N + 1), N = `degree`, Q the product of primes
that are 1 mod 2N and below 2^30. Secrets and errors are discrete Gaussians with |x| <= TAIL (see
gaussian.py). That tail is a bound and no probability: the errors of n participants add up to
TAIL n at most, so parameters that satisfy `clauses` never decode an honest sum wrongly.

Security: HomomorphicEncryption.org, "Homomorphic Encryption Standard" v1.1 (2018), its tables
for 128 bits, rows for ternary secrets, stricter than those for secrets like ours. Newer:
Bossuat et al., "Security Guidelines for Implementing Homomorphic Encryption" (IACR ePrint
2024/463). The script of its authors (github.com/gong-cr/FHE-Security-Guidelines,
output_max_logQ_tables.txt) prints, for N = 2048, 4096, 8192 and 16384,

    ternary, quantum      50 101 203 409        here   51 101 202 411
    ternary, classical    53 107 214 431        here   54 109 218 438
    Gaussian, quantum     53 103 206 412        (sigma 3.19 for secret and error alike)
    Gaussian, classical   55 109 216 433

so of the limits that are used here only the classical ones at N = 8192 and 16384 exceed the newer
table for Gaussian secrets, by 2 and 5 bits. What the round publishes, the sum of the secrets and
of the errors, leaves two honest participants with a width of sigma / sqrt(2) = 3.25.

Packing `coefficients`. A coefficient is e + 2^m sum_k v_k 2^(g k): m = `margin_bits`, g the ring
width of a value, v_k signed sums. m is such that |sum e| <= TAIL n < 2^(m-1), and k = `digits` is
the largest with 2^(m + g k) <= Q; biased by half a range in each field, an honest sum lies in
[0, 2^(m + g k)) and its fields can be cut out.

Packing `slots`. z in R^(N/2) becomes m = round(D / N * U* z) where U holds the N powers of the
complex roots, D = 2^`scale_bits`: integers at scale D. The decoded slot is U m / D. With
M = 2^(ring_bits - 1 - GUARD) above n max_level, the errors of a slot of the sum are these:
 - errors, dither and rounding, each coefficient by its absolute value:
   N n (TAIL + DITHER_TAIL + 1/2) / D <= 7/16;
 - SEAL transforms in doubles. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed.,
   theorem 24.2: the error of a transform is at most log2(N) eta times its result, in the 2-norm,
   eta < 8 u for roots that are right to 2 u, u = 2^-53. We take (log2 N + 2) 16 u for a transform
   and what stands around it. Coefficients have a 2-norm of at most D M, so encoding n vectors
   and decoding the sum each move a slot by sqrt(N) M (log2 N + 2) 16 u, together <= 1/16.
Together that is below 1/2 for sure: rounding gives the integer. It limits ring_bits to 38 at
N = 8192, whatever D is: doubles are relative, and a D beyond 2^53 costs nothing. Coefficients stay
below 2^(ring_bits + scale_bits - 4), Q is at least 2^(ring_bits + scale_bits). One clause more is
about SEAL's decoder: it subtracts negative coefficients from Q word by word, in doubles, which
is exact to the last place only if no word borrows, so Q's lowest 64-bit word has to be above
every coefficient.

The dither. Rounding D / N U* z alone is a function of one participant's values, and the opened sum
has it: errors of a known width would not hide it from whoever has guesses for z. So a real Gaussian
of width DITHER_SIGMA is added first (slots.py). What is left of single fractions in the sum's
distribution is exp(-2 pi^2 s^2 t^2 / (s^2 + t^2)) = 2^-95, s = SIGMA and t = DITHER_SIGMA: the
largest alias in the Poisson summation of rounding, times the errors' characteristic function.

In both packings the weight is one value in the last column of the last polynomial; `coefficients`
has it as one integer over all digits, which carry: the sum of weights is all that it tells.

Deliberately not here: arithmetic (ntt.py, residues.py), SEAL (seal.py), and which plans use this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from math import prod
from typing import Final, Literal, TypeVar, get_args

from secagg.canonical import Reader, Writer
from secagg.errors import ConfigError

Packing = Literal["coefficients", "slots"]
Security = Literal["quantum", "classical"]
PACKINGS: Final[tuple[Packing, ...]] = get_args(Packing)
SECURITIES: Final[tuple[Security, ...]] = get_args(Security)

SIGMA: Final = 4.6
"""Width of secrets and errors."""

TAIL: Final = 51
"""No secret and no error is larger: 11 SIGMA."""

DITHER_SIGMA: Final = 2.0
"""Width of the real Gaussian that is added before slots are rounded."""

DITHER_TAIL: Final = 18
"""No such number is larger: sqrt(2 ln 2^53) DITHER_SIGMA = 17.2."""

GUARD: Final = 4
"""Sums of honest values stay below 2^(ring_bits - 1 - GUARD): the fewest guard bits of a plan."""

SHARE_BITS: Final = 31
"""A share of one coefficient of a secret: an element of the field of 2^31 - 1."""

DEGREES: Final = (2048, 4096, 8192, 16384)
LEAST_PRIME_BITS: Final = 18
MOST_PRIME_BITS: Final = 30
MOST_PRIMES: Final = 24
MOST_RING_BITS: Final = 50
MOST_VALUE_BITS: Final = 31
"""Values and digits of weights are signed 32-bit integers."""
MOST_LEAF_VALUES: Final = 131_072
"""As many values have rounding words of their own in one chunk (encoding.RoundingStream)."""

MAX_MODULUS_BITS: Final[dict[Security, dict[int, int]]] = {
    "quantum": {1024: 25, 2048: 51, 4096: 101, 8192: 202, 16384: 411},
    "classical": {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438},
}
"""Homomorphic Encryption Standard v1.1, 128 bits, ternary: log2 Q is at most this."""

Clauses = tuple[tuple[str, bool, str], ...]
_Name = TypeVar("_Name", bound=str)


@dataclass(frozen=True, slots=True)
class Parameters:
    """Degree N, the sizes of the primes in bits, how values are packed, and against whom.

    Any value can be made and encoded; it is fit for use once all `clauses` hold.
    """

    degree: int
    modulus_bits: tuple[int, ...]
    packing: Packing = "coefficients"
    security: Security = "quantum"

    @property
    def primes(self) -> tuple[int, ...]:
        """For each size in order the largest prime of that size, 1 mod 2N, that is not taken yet.

        Raises:
            ConfigError: there are fewer primes of a size.
        """
        return _primes(self.degree, self.modulus_bits)

    @property
    def modulus(self) -> int:
        """Q, the product of the primes."""
        return prod(self.primes)

    @property
    def width(self) -> int:
        """Values of one digit plane of a leaf."""
        return self.degree if self.packing == "coefficients" else self.degree // 2

    @property
    def leaf_bytes(self) -> int:
        """Bytes of one packed polynomial."""
        return sum(self.modulus_bits) * self.degree // 8

    @property
    def share_bytes(self) -> int:
        """Bytes of one holder's share of a secret, without its envelope and blinding."""
        return (self.degree * SHARE_BITS + 7) // 8

    def margin_bits(self, n: int) -> int:
        """m: |sum of n errors| <= TAIL n < 2^(m-1). Packing `slots` has no margin: 0."""
        return (TAIL * n).bit_length() + 1 if self.packing == "coefficients" else 0

    def scale_bits(self, n: int) -> int:
        """log2 of the least scale at which errors and rounding move a slot by 7/16 at most.

        Packing `coefficients` has no scale: 0.
        """
        if self.packing == "coefficients":
            return 0
        return _bits_above(8 * self.degree * n * (2 * (TAIL + DITHER_TAIL) + 1), 7)

    def digits(self, n: int, ring_bits: int) -> int:
        """Values in one coefficient or slot: the most with 2^(margin + ring_bits digits) <= Q."""
        if self.packing == "slots":
            return 1
        return max(0, self.modulus.bit_length() - 1 - self.margin_bits(n)) // ring_bits

    def leaf_values(self, n: int, ring_bits: int) -> int:
        """Values in every polynomial but the last."""
        return self.digits(n, ring_bits) * self.width

    @property
    def last_width(self) -> int:
        """Values of one digit plane of the last leaf; the weight's column comes behind them."""
        return self.width - 1

    def polynomials(self, length: int, n: int, ring_bits: int, weight_ring_bits: int) -> int:
        """P, the fewest polynomials that hold `length` values and the weight."""
        leaf = self.leaf_values(n, ring_bits)
        last = self.digits(n, ring_bits) * self.last_width
        if leaf < 1 or last < 0:
            raise ConfigError(f"ckks: {self} holds no value of {ring_bits} bits; choose a larger Q")
        return 1 + max(0, -(-(length - last) // leaf))

    def cost(self, length: int, n: int, ring_bits: int, weight_ring_bits: int, holders: int) -> int:
        """Bytes that one participant uploads: its polynomials, and its shares to other holders."""
        leaves = self.polynomials(length, n, ring_bits, weight_ring_bits)
        return leaves * self.leaf_bytes + max(0, holders - 1) * self.share_bytes

    def clauses(self, n: int, ring_bits: int, weight_ring_bits: int) -> Clauses:
        """(what must hold, whether it does, the cure), first those that the later ones rest on."""
        form = _form_clauses(self)
        if not all(holds for _, holds, _ in form):
            return form
        if n < 1 or min(ring_bits, weight_ring_bits) < 1:
            return (("n and the ring widths are positive", False, "give the plan's"),)
        most = MAX_MODULUS_BITS[self.security][self.degree]
        common = (
            *form,
            (
                f"log2 Q is at most {most} at degree {self.degree} ({self.security}, 128 bits)",
                self.modulus < 1 << most,
                "take fewer or smaller primes, or a larger degree",
            ),
        )
        packed = _digit_clauses if self.packing == "coefficients" else _slot_clauses
        weighed = _weight_clauses(self, n, ring_bits, weight_ring_bits)
        return common + packed(self, n, ring_bits) + weighed

    def write(self, writer: Writer) -> None:
        """Append the canonical form."""
        writer.tag("ckks").tag(self.packing).tag(self.security)
        writer.u32(self.degree).u32(len(self.modulus_bits))
        for size in self.modulus_bits:
            writer.u8(size)

    @classmethod
    def read(cls, reader: Reader) -> Parameters:
        """Read the canonical form; whether it can work is for `clauses` to say."""
        reader.tag("ckks")
        packing, security = _one_of(reader, PACKINGS), _one_of(reader, SECURITIES)
        degree = reader.u32()
        sizes = tuple(reader.u8() for _ in range(reader.count(MOST_PRIMES)))
        return cls(degree, sizes, packing, security)


def choose(
    *,
    n: int,
    length: int,
    ring_bits: int,
    weight_ring_bits: int,
    holders: int,
    packing: Packing = "coefficients",
    security: Security = "quantum",
) -> Parameters:
    """The parameters with which one participant uploads the fewest bytes (`Parameters.cost`).

    The primes' sizes differ by one at most; of two that cost the same, the smaller degree and
    modulus win. Degree 16384 is never needed, and is for those who state parameters themselves.

    Raises:
        ConfigError: none has room for such sums.
    """

    def price(parameters: Parameters) -> tuple[int, int, int]:
        bytes_up = parameters.cost(length, n, ring_bits, weight_ring_bits, holders)
        return bytes_up, parameters.degree, sum(parameters.modulus_bits)

    fit = [
        parameters
        for degree in DEGREES[:-1]
        for parameters in _candidates(degree, n, ring_bits, weight_ring_bits, packing, security)
    ]
    if fit:
        return min(fit, key=price)
    raise ConfigError(
        f"ckks: no parameters hold sums over {n} participants in {ring_bits} bits (weights in "
        f"{weight_ring_bits}) with packing {packing} and {security} security; quantise to fewer "
        "bits, or take packing coefficients"
    )


def _candidates(
    degree: int, n: int, ring_bits: int, weight_ring_bits: int, packing: Packing, security: Security
) -> Iterator[Parameters]:
    """For each number of digits the fewest bits of primes with which all clauses hold."""
    most = MAX_MODULUS_BITS[security][degree]
    bare = Parameters(degree, (), packing, security)
    if packing == "slots":
        needs = [ring_bits + bare.scale_bits(n)]
    else:
        needs = list(range(bare.margin_bits(n) + ring_bits, most, ring_bits))
    for need in needs:
        for total in range(max(need + 1, LEAST_PRIME_BITS), most + 1):
            parameters = Parameters(degree, _sizes(total), packing, security)
            held = parameters.clauses(n, ring_bits, weight_ring_bits)
            if all(holds for _, holds, _ in held):
                yield parameters
                break


def _sizes(total: int) -> tuple[int, ...]:
    """`total` bits over the fewest primes, the larger ones first."""
    count = -(-total // MOST_PRIME_BITS)
    size, larger = divmod(total, count)
    return (size + 1,) * larger + (size,) * (count - larger)


def _form_clauses(parameters: Parameters) -> Clauses:
    """The clauses without which there are no primes."""
    degree, sizes = parameters.degree, parameters.modulus_bits
    least, most = LEAST_PRIME_BITS, MOST_PRIME_BITS
    form: Clauses = (
        (
            f"the packing is one of {PACKINGS}",
            parameters.packing in PACKINGS,
            "choose one that is built",
        ),
        (
            f"the security is one of {SECURITIES}",
            parameters.security in SECURITIES,
            "choose one with a table",
        ),
        (f"the degree is one of {DEGREES}", degree in DEGREES, "choose one of them"),
        (
            f"Q has 1 to {MOST_PRIMES} primes of {least} to {most} bits",
            0 < len(sizes) <= MOST_PRIMES and all(least <= size <= most for size in sizes),
            "choose their sizes by `secagg plan`",
        ),
    )
    if not all(holds for _, holds, _ in form):
        return form
    enough = all(
        len(_largest_primes(degree, size, sizes.count(size))) == sizes.count(size)
        for size in set(sizes)
    )
    clause = f"there are enough primes of {sizes} bits that are 1 mod {2 * degree}"
    return (*form, (clause, enough, "take larger primes"))


def _digit_clauses(parameters: Parameters, n: int, ring_bits: int) -> Clauses:
    digits = parameters.digits(n, ring_bits)
    margin, values = parameters.margin_bits(n), digits * parameters.degree
    return (
        (
            f"a digit has {ring_bits} bits, at most {MOST_RING_BITS}",
            ring_bits <= MOST_RING_BITS,
            "quantise to fewer bits",
        ),
        (
            f"Q holds {margin} bits of errors and a digit of {ring_bits} bits",
            digits >= 1,
            "take more primes or quantise to fewer bits",
        ),
        (
            f"the {values} values of a polynomial are at most {MOST_LEAF_VALUES}",
            values <= MOST_LEAF_VALUES,
            "take fewer primes",
        ),
    )


def _slot_clauses(parameters: Parameters, n: int, ring_bits: int) -> Clauses:
    scale, modulus, degree = parameters.scale_bits(n), parameters.modulus, parameters.degree
    stages = degree.bit_length() - 1
    moved = (stages + 2) << (1 + (stages + 1) // 2 + max(0, ring_bits - 1 - GUARD))
    return (
        (
            f"Q holds {ring_bits} bits of a sum at a scale of {scale} bits",
            modulus >= 1 << (ring_bits + scale),
            "take more primes or quantise to fewer bits",
        ),
        (
            f"doubles are exact to 1/16 for sums of {ring_bits} bits at degree {degree}",
            16 * moved <= 1 << 49,
            "quantise to fewer bits or take packing coefficients",
        ),
        (
            f"Q's lowest 64-bit word is above coefficients of {ring_bits + scale - GUARD} bits",
            modulus < 1 << 64 or modulus % (1 << 64) >= 1 << (ring_bits + scale - GUARD),
            "take other primes",
        ),
    )


def _weight_clauses(
    parameters: Parameters, n: int, ring_bits: int, weight_ring_bits: int
) -> Clauses:
    """The sum of weights is one integer in one column: its digits carry, and say nothing alone."""
    digits = parameters.digits(n, ring_bits)
    weight_bits = weight_ring_bits - 1 - GUARD - (n - 1).bit_length()
    return (
        (
            f"{digits} digits of {ring_bits} bits hold a sum of weights of {weight_ring_bits} bits",
            digits * ring_bits >= weight_ring_bits,
            "cap the weights lower or take more primes",
        ),
        (
            f"a weight's digits have at most {MOST_VALUE_BITS} bits",
            min(ring_bits, weight_bits) <= MOST_VALUE_BITS,
            "cap the weights lower",
        ),
    )


def _bits_above(numerator: int, denominator: int) -> int:
    """The least s with 2^s >= numerator / denominator."""
    return (-(-numerator // denominator) - 1).bit_length()


@lru_cache(maxsize=64)
def _primes(degree: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    left = {size: iter(_largest_primes(degree, size, sizes.count(size))) for size in set(sizes)}
    try:
        return tuple([next(left[size]) for size in sizes])
    except StopIteration:
        raise ConfigError(
            f"ckks: there are too few primes of {sizes} bits that are 1 mod {2 * degree}; "
            "take larger ones"
        ) from None


@lru_cache(maxsize=1024)
def _largest_primes(degree: int, size: int, count: int) -> tuple[int, ...]:
    """At most `count` primes of just `size` bits that are 1 mod 2 `degree`, descending."""
    step = 2 * degree
    largest = ((1 << size) - 2) // step * step + 1
    candidates = range(largest, 1 << (size - 1), -step)
    return tuple(islice((number for number in candidates if _is_prime(number)), count))


def _is_prime(number: int) -> bool:
    """Miller-Rabin with bases 2, 3, 5 and 7, which lets no composite below 3,215,031,751 pass.

    Source: Jaeschke, "On strong pseudoprimes to several bases", Math. Comp. 61 (1993).
    """
    if number < 11 or number % 2 == 0:
        return number in (2, 3, 5, 7)
    twos = ((number - 1) & (1 - number)).bit_length() - 1
    odd = (number - 1) >> twos
    return all(
        (power := pow(base, odd, number)) == 1
        or any(pow(power, 1 << turn, number) == number - 1 for turn in range(twos))
        for base in (2, 3, 5, 7)
    )


def _one_of(reader: Reader, allowed: tuple[_Name, ...]) -> _Name:
    data = reader.blob(64)
    for name in allowed:
        if data == name.encode():
            return name
    raise reader.error(f"expected one of {allowed}")
