"""Sparse mask graphs: how many neighbours, what threshold, which guarantee, and the draw.

In a sparse round each of n participants draws k out-neighbours for itself, uniformly among the
others, and deals t-of-k shares to those alone; pairwise masks run over the union of out- and
in-edges. Three events then have a probability where the complete graph has a certainty:

    c     more than c of the k holders of one honest participant collude;
    part  honest survivors fall apart into sets with no mask between them, each summed apart;
    open  fewer than t holders of one participant are left, and nothing opens.

The adversary is a coordinator that sees every list, with f tenants that collude with it, fixed
before the lists are drawn; it then chooses who counts as dropped, any n - least of the cohort.
What makes the bounds hold: lists are drawn independently, by their owners, before U1 is known;
U3 is unique (a quorum of the whole cohort); and whoever signs U3 checks that every member of U2
has t holders in it (C21). docs/sparse-graphs.md derives every term.

Source: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead" (CCS 2020),
sections 3 and 4, for the events and for neighbours that are drawn by their owners; the union bound
with C21 in it is our own.

Deliberately not here: who is a neighbour of whom in a round (the signed lists say that), and any
bound for colluders chosen after the lists are seen: there is none once f >= t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from secagg.errors import ConfigError
from secagg.secret import Randomness

SECURITY_BITS = 40
"""Each event that costs privacy has probability 2^-40 a round at most."""

CORRECTNESS_BITS = 20
"""With as many silent as planned, a round fails for want of holders once in 2^20 at most."""

_LARGEST = 1 << 14
# A sum of up to 2^14 rounded logarithms, each partial sum below 2^18, is off by less than 2^-21.9.
# A probability takes nine entries of that table at most: less than 2^-18, by which it is raised.
_ROUNDING = 2.0**-18
_NEVER = -math.inf


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What a sparse round promises, per round, against f colluders fixed before the draw.

    `colluding_neighbours` (c): no honest participant has more than c colluders among its k
    holders, except with probability 2^-40 (exact).

    `smallest_part` (t - c + 1): while c holds, every set of honest survivors that is summed apart
    has at least so many members, whatever the coordinator does; 1 says that colluders alone may
    open an input.

    `one_sum_bits`: the honest survivors fall apart at all, under some admissible choice of
    dropouts, with probability 2^-one_sum_bits at most; `inf` if there is no such choice. Where
    it is 40 or more, the coordinator learns one sum, as on the complete graph.

    Not implied: anything about colluders that are chosen after the lists are seen, about more than
    f, or about participants whose random numbers are bad. A coordinator that starts R rounds
    has R chances.
    """

    colluding_neighbours: int
    smallest_part: int
    one_sum_bits: float


@lru_cache(maxsize=256)
def guarantee(n: int, f: int, k: int, t: int, least: int) -> Guarantee:
    """What n participants with f colluders, t-of-k lists and |U3| >= `least` are promised.

    c is exact and the same on every machine; `one_sum_bits` is rounded down (by less than 0.1
    bits) and may differ in its last digits between C libraries.

    Raises:
        ConfigError: the sizes fit no sparse round. A low guarantee is returned, not refused.

    Source: docs/sparse-graphs.md, "Colluding holders" and "One sum".
    """
    _check_sizes(n, f)
    if not 1 <= t <= k < n:
        raise ConfigError(f"graph: 1 <= t <= k < n is required, not t = {t}, k = {k}, n = {n}")
    if not f + 2 <= least <= n:
        raise ConfigError(f"graph: a least of {least} survivors is not in f + 2..n = {f + 2}..{n}")
    c = _most_marked(n - 1, f, k, parties=n - f, bits=SECURITY_BITS)
    if t <= c:
        return Guarantee(c, 1, 0.0)
    return Guarantee(c, t - c + 1, _one_sum_bits(n, f, k, t, least, t - c + 1))


def opens_bits(n: int, k: int, t: int, silent: int) -> float:
    """-log2 of the chance that somebody keeps fewer than t holders when `silent` random ones go.

    Union bound over the n participants of an exact hypergeometric tail, rounded down; `inf` if it
    cannot happen, 0 if the bound says nothing. `silent` counts everybody who stops
    answering, colluders included.

    Not implied: that the round opens against a coordinator or colluders that want it to fail.

    Raises:
        ConfigError: the sizes fit no sparse round.
    """
    _check_sizes(n, 0)
    if not (1 <= t <= k < n and 0 <= silent < n):
        raise ConfigError(
            f"graph: 1 <= t <= k < n and 0 <= silent < n are required, not t = {t}, k = {k}, "
            f"silent = {silent}, n = {n}"
        )
    failing = n * sum(_ways_from_most(n - 1, silent, k)[: max(0, min(silent, k) - (k - t))])
    if failing == 0:
        return math.inf
    bits = math.log2(math.comb(n - 1, k)) - math.log2(failing)
    return max(0.0, bits - _ROUNDING)


@lru_cache(maxsize=256)
def choose(n: int, f: int, silent: int) -> tuple[int, int]:
    """The smallest k with a workable t, and the largest such t, for f colluders and dropouts.

    Workable: t > c; 2t > k + c, so that even two different U3 would not open both kinds of one
    participant's shares; `one_sum_bits` >= 40 at least = max(q, f + 2, 3); and at most 2^-20 that
    somebody keeps fewer than t holders when `silent` random participants stop answering.

    Raises:
        ConfigError: there is none with k <= n - 1; the message says what to change.

    Source: docs/sparse-graphs.md, "Choosing k and t".
    """
    _check_sizes(n, f)
    least = max((n + f) // 2 + 1, f + 2, 3)
    if silent < 0 or n < f + 2 * silent + 2:
        raise ConfigError(
            f"graph: {n} participants cannot stand {f} colluders and {silent} silent at once; "
            f"f + 2 * silent + 2 has to be at most n: enlarge the cohort, lower the "
            "colluders or the dropouts, or use the complete graph"
        )
    k = 1
    while True:
        c = _most_marked(n - 1, f, k, parties=n - f, bits=SECURITY_BITS)
        lost = _most_marked(n - 1, silent, k, parties=n, bits=CORRECTNESS_BITS)
        # floor((k + c) / 2) + 1 <= t <= k - lost has a solution iff k > c + 2 lost. Both grow
        # with k, so no smaller k than this one is worth a look. k = n - 1 always ends the loop.
        if k <= c + 2 * lost:
            k = c + 2 * lost + 1
        elif guarantee(n, f, k, k - lost, least).one_sum_bits >= SECURITY_BITS:
            return k, k - lost
        else:
            k += 1


def threshold(n: int, f: int, k: int) -> int:
    """The smallest t with 2t > k + c for a k that somebody has chosen; it opens most readily.

    Not implied: that `guarantee` or `opens_bits` say enough; a plan is checked for the first.

    Raises:
        ConfigError: the sizes fit no sparse round.
    """
    _check_sizes(n, f)
    if not 1 <= k < n:
        raise ConfigError(f"graph: 1 <= k < n is required of the neighbours, not k = {k}, n = {n}")
    return (k + _most_marked(n - 1, f, k, parties=n - f, bits=SECURITY_BITS)) // 2 + 1


def draw_neighbours(n: int, index: int, k: int, randomness: Randomness) -> tuple[int, ...]:
    """k of the n - 1 others of participant `index`, every subset equally likely, sorted.

    Indices in [0, n). The list becomes public once it is signed; it must be drawn before U1 is
    seen, from a CSPRNG, and never be drawn again in the same round.

    Raises:
        ConfigError: no such participant, or more neighbours than there are others.
    """
    if not (0 <= index < n and 1 <= k < n):
        raise ConfigError(
            f"graph: 0 <= index < n and 1 <= k < n are required, not index = {index}, k = {k}, "
            f"n = {n}"
        )
    others = draw_subset(n - 1, k, randomness)
    return tuple(other + (other >= index) for other in others)


def draw_subset(size: int, k: int, randomness: Randomness) -> tuple[int, ...]:
    """k of the integers in [0, size), sorted; every subset is equally likely.

    Floyd's algorithm (Bentley and Floyd, CACM 1987) over bounded integers by rejection: no modulo
    bias.
    """
    chosen: set[int] = set()
    for last in range(size - k, size):
        candidate = _below(last + 1, randomness)
        chosen.add(last if candidate in chosen else candidate)
    return tuple(sorted(chosen))


def _below(bound: int, randomness: Randomness) -> int:
    """A uniform integer in [0, bound)."""
    bits = (bound - 1).bit_length()
    while True:
        value = int.from_bytes(randomness((bits + 7) // 8)) & ((1 << bits) - 1)
        if value < bound:
            return value


def _check_sizes(n: int, f: int) -> None:
    if not 3 <= n <= _LARGEST:
        raise ConfigError(f"graph: 3 to {_LARGEST} participants, not {n}")
    if not 0 <= f <= n - 2:
        raise ConfigError(f"graph: colluders f = {f} have to leave two honest among n = {n}")


def _ways_from_most(others: int, marked: int, k: int) -> list[int]:
    """In how many of the k-subsets of `others` lie x of the `marked`: x falls from its maximum."""
    most, fewest = min(marked, k), max(0, k - (others - marked))
    ways = [math.comb(marked, most) * math.comb(others - marked, k - most)]
    for x in range(most, fewest, -1):
        up = x * (others - marked - k + x)
        ways.append(ways[-1] * up // ((marked - x + 1) * (k - x + 1)))
    return ways


def _most_marked(others: int, marked: int, k: int, *, parties: int, bits: int) -> int:
    """The smallest m with parties * P[more than m of k draws are marked] <= 2^-bits; exact."""
    allowed, most = math.comb(others, k), min(marked, k)
    seen = accumulate(_ways_from_most(others, marked, k))
    return most - next(
        above for above, ways in enumerate(seen) if (ways * parties) << bits > allowed
    )


def _one_sum_bits(n: int, f: int, k: int, t: int, least: int, smallest: int) -> float:
    """-log2 of the sum over s of the bounds on a part of s honest survivors; never too high."""
    table = _log2_factorials(n)
    sizes = range(smallest, (n - f) // 2 + 1)
    logs = [_log2_part(table, n, f, k, t, least, s) for s in sizes]
    top = max(logs, default=_NEVER)
    if top == _NEVER:
        return math.inf
    total = top + math.log2(math.fsum(2.0 ** (log - top) for log in logs))
    return max(0.0, -total - _ROUNDING)


def _log2_part(
    table: tuple[float, ...], n: int, f: int, k: int, t: int, least: int, s: int
) -> float:
    """log2 of the bound on: some s honest survivors are cut off from the others.

    C(h, s) P[X >= t]^s min(1, C(h - s, r) z^r), where h = n - f, X counts how many of k draws lie
    in the part or collude, r = max(s, least - f - s) others survive at least, and z is the
    probability that a list misses the part.
    """
    h, r = n - f, max(s, least - f - s)
    inside = _log2_tail(table, n - 1, s - 1 + f, k, t)
    if inside == _NEVER or k > n - 1 - s:
        return _NEVER
    misses = _log2_comb(table, n - 1 - s, k) - _log2_comb(table, n - 1, k) + _ROUNDING
    apart = min(0.0, _log2_comb(table, h - s, r) + r * misses + _ROUNDING)
    return _log2_comb(table, h, s) + s * inside + apart + _ROUNDING


def _log2_tail(table: tuple[float, ...], others: int, marked: int, k: int, t: int) -> float:
    """log2 of an upper bound on P[at least t of k draws are marked].

    P[X = t] times a geometric series: the quotient of neighbouring terms falls with x.
    """
    rest = others - marked
    if t > min(marked, k):
        return _NEVER
    if t <= k - rest:
        return 0.0
    rising, falling = (marked - t) * (k - t), (t + 1) * (rest - k + t + 1)
    if rising >= falling:
        return 0.0
    series = math.log2(falling / (falling - rising))
    term = (
        _log2_comb(table, marked, t)
        + _log2_comb(table, rest, k - t)
        - _log2_comb(table, others, k)
        + _ROUNDING
    )
    return min(0.0, term + series)


def _log2_comb(table: tuple[float, ...], n: int, k: int) -> float:
    return table[n] - table[k] - table[n - k]


@lru_cache(maxsize=4)
def _log2_factorials(n: int) -> tuple[float, ...]:
    """log2(i!) for i in 0..n, each off by less than 2^-21.9."""
    return tuple(accumulate(map(math.log2, range(1, n + 1)), initial=0.0))
