"""Sparse graphs: the tails are exact, the bounds hold, the draw is uniform, nothing can be cut.

The coordinator here is an active one: it sees every list and picks the dropouts. Against weak
parameters it wins (so it can attack at all), against chosen ones it does not.
"""

import hashlib
import math
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, product
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from secagg import graph
from secagg.errors import ConfigError
from secagg.graph import (
    CORRECTNESS_BITS,
    SECURITY_BITS,
    Guarantee,
    choose,
    draw_neighbours,
    guarantee,
    opens_bits,
    threshold,
)
from secagg.plan import MAX_COHORT, quorum
from secagg.secret import Randomness

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sparse-graphs.md"


def least_of(n: int, f: int) -> int:
    return max(quorum(n, f), f + 2, 3)


def tail(others: int, marked: int, k: int, t: int) -> Fraction:
    """P[at least t of k draws are marked], by the definition."""
    ways = sum(
        math.comb(marked, x) * math.comb(others - marked, k - x) for x in range(max(t, 0), k + 1)
    )
    return Fraction(ways, math.comb(others, k))


def log2(value: Fraction) -> float:
    return math.log2(value.numerator) - math.log2(value.denominator)


@st.composite
def sizes(draw: st.DrawFn, largest: int = 60) -> tuple[int, int, int, int, int]:
    """(n, f, k, t, least) of some sparse round, good or bad."""
    n = draw(st.integers(3, largest))
    f = draw(st.integers(0, (n - 1) // 2))
    k = draw(st.integers(1, n - 1))
    return n, f, k, draw(st.integers(1, k)), draw(st.integers(min(n, least_of(n, f)), n))


# ------------------------------------------------------------------ tails


@pytest.mark.parametrize("others", [1, 2, 4, 7, 8])
def test_tails_equal_a_count_over_every_subset(others: int) -> None:
    for marked, k in product(range(others + 1), range(1, others + 1)):
        counted = Counter(
            sum(place < marked for place in subset) for subset in combinations(range(others), k)
        )
        every = sum(counted.values())
        for bits, parties in product(range(1, 6), (1, 3)):
            expected = next(
                m
                for m in range(k + 1)
                if parties * sum(c for x, c in counted.items() if x > m) << bits <= every
            )
            assert graph._most_marked(others, marked, k, parties=parties, bits=bits) == expected


@pytest.mark.parametrize("n", [3, 5, 8])
def test_the_chance_to_open_equals_a_count_over_every_subset(n: int) -> None:
    for k, silent in product(range(1, n), range(n)):
        lists = list(combinations(range(n - 1), k))
        for t in range(1, k + 1):
            short = sum(sum(place >= silent for place in chosen) < t for chosen in lists)
            bits = opens_bits(n, k, t, silent)
            if short == 0:
                assert bits == math.inf
            else:
                assert bits == pytest.approx(max(0, -math.log2(n * short / len(lists))), abs=1e-5)
                assert 2**-bits >= min(1, n * short / len(lists))


@pytest.mark.parametrize(
    ("n", "f", "k"), [(1000, 50, 51), (1000, 100, 95), (1000, 333, 217), (5000, 1666, 291)]
)
def test_colluding_holders_are_the_exact_quantile(n: int, f: int, k: int) -> None:
    c = guarantee(n, f, k, k, least_of(n, f)).colluding_neighbours
    assert (n - f) * tail(n - 1, f, k, c + 1) <= Fraction(1, 2**SECURITY_BITS)
    assert (n - f) * tail(n - 1, f, k, c) > Fraction(1, 2**SECURITY_BITS)


@given(st.integers(1, 200), st.data())
@settings(max_examples=300)
def test_the_logarithm_of_a_tail_is_never_too_low(others: int, data: st.DataObject) -> None:
    marked = data.draw(st.integers(0, others))
    k = data.draw(st.integers(1, others))
    t = data.draw(st.integers(1, k))
    bound = graph._log2_tail(graph._log2_factorials(others), others, marked, k, t)
    exact = tail(others, marked, k, t)
    if exact == 0:
        assert bound == -math.inf
    else:
        assert log2(exact) <= bound <= 0.0


def documented_bits(n: int, f: int, k: int, t: int, least: int, smallest: int) -> float:
    """The union bound of docs/sparse-graphs.md in rational numbers."""
    h, total = n - f, Fraction(0)
    for s in range(smallest, h // 2 + 1):
        marked, r = s - 1 + f, max(s, least - f - s)
        inside = geometric(n - 1, marked, k, t)
        misses = Fraction(math.comb(n - 1 - s, k), math.comb(n - 1, k))
        total += (
            math.comb(h, s)
            * Fraction(inside**s)
            * min(Fraction(1), math.comb(h - s, r) * Fraction(misses**r))
        )
    return math.inf if total == 0 else max(0.0, -log2(total))


def geometric(others: int, marked: int, k: int, t: int) -> Fraction:
    first, second = (
        tail(others, marked, k, x) - tail(others, marked, k, x + 1) for x in (t, t + 1)
    )
    if first == 0 or second >= first:
        return min(Fraction(1), Fraction(t <= min(marked, k)))
    return min(Fraction(1), first / (1 - second / first))


@given(sizes(40))
@settings(max_examples=60)
def test_one_sum_is_the_documented_bound_rounded_down(
    some: tuple[int, int, int, int, int],
) -> None:
    n, f, k, t, least = some
    promised = guarantee(n, f, k, t, least)
    assume(promised.smallest_part > 1)
    exact = documented_bits(n, f, k, t, least, promised.smallest_part)
    assert promised.one_sum_bits <= exact
    assert promised.one_sum_bits == pytest.approx(exact, abs=0.01)


# ------------------------------------------------------------------ what grows with what


@given(sizes())
def test_guarantee_grows_with_what_protects(some: tuple[int, int, int, int, int]) -> None:
    n, f, k, t, least = some
    promised = guarantee(n, f, k, t, least)
    assert 0 <= promised.colluding_neighbours <= min(k, f)
    assert promised.smallest_part == max(1, t - promised.colluding_neighbours + 1)
    if t < k:
        higher = guarantee(n, f, k, t + 1, least)
        assert higher.colluding_neighbours == promised.colluding_neighbours
        assert higher.smallest_part >= promised.smallest_part
        assert higher.one_sum_bits >= promised.one_sum_bits
    if least < n:
        assert guarantee(n, f, k, t, least + 1).one_sum_bits >= promised.one_sum_bits
    if k < n - 1:
        assert guarantee(n, f, k + 1, t, least).colluding_neighbours in (
            promised.colluding_neighbours,
            promised.colluding_neighbours + 1,
        )
    if f + 3 <= least:
        assert guarantee(n, f + 1, k, t, least).smallest_part <= promised.smallest_part


@given(sizes())
def test_opening_is_likelier_with_fewer_silent_and_lower_thresholds(
    some: tuple[int, int, int, int, int],
) -> None:
    n, silent, k, t, _ = some
    bits = opens_bits(n, k, t, silent)
    assert opens_bits(n, k, t, silent + 1) <= bits
    assert t == k or opens_bits(n, k, t + 1, silent) <= bits
    assert (bits == math.inf) == (min(silent, k) <= k - t)


@given(st.integers(4, 160), st.data())
@settings(max_examples=80)
def test_chosen_parameters_keep_every_promise_and_no_smaller_k_does(
    n: int, data: st.DataObject
) -> None:
    f = data.draw(st.integers(0, n // 3))
    assume(n >= f + 4)
    silent = data.draw(st.integers(0, (n - f - 2) // 2))
    k, t = choose(n, f, silent)
    least = least_of(n, f)
    promised = guarantee(n, f, k, t, least)
    assert t > promised.colluding_neighbours
    assert 2 * t > k + promised.colluding_neighbours
    assert promised.one_sum_bits >= SECURITY_BITS
    assert opens_bits(n, k, t, silent) >= CORRECTNESS_BITS
    assert t == k or opens_bits(n, k, t + 1, silent) < CORRECTNESS_BITS
    for smaller in range(max(1, k - 2), k):
        assert not any(
            works(n, f, smaller, lower, least, silent) for lower in range(1, smaller + 1)
        )


@pytest.mark.parametrize(
    ("n", "f", "silent", "expected"), [(18, 2, 0, (5, 5)), (18, 6, 0, (8, 8)), (20, 4, 2, (9, 7))]
)
def test_one_sum_decides_with_the_quorum_that_it_is_defined_with(
    n: int, f: int, silent: int, expected: tuple[int, int]
) -> None:
    """With one survivor less, (6, 6), (9, 9) and (10, 8) would be needed."""
    assert choose(n, f, silent) == expected
    k, t = expected
    fewer = least_of(n, f) - 1
    assert guarantee(n, f, k, t, fewer).one_sum_bits < SECURITY_BITS
    assert guarantee(n, f, k, t, fewer + 1).one_sum_bits >= SECURITY_BITS


@given(sizes())
def test_threshold_is_the_smallest_that_keeps_two_kinds_of_share_apart(
    some: tuple[int, int, int, int, int],
) -> None:
    n, f, k, _, least = some
    t = threshold(n, f, k)
    c = guarantee(n, f, k, 1, least).colluding_neighbours
    assert 2 * t > k + c >= 2 * (t - 1)


def works(n: int, f: int, k: int, t: int, least: int, silent: int) -> bool:
    promised = guarantee(n, f, k, t, least)
    return (
        t > promised.colluding_neighbours
        and 2 * t > k + promised.colluding_neighbours
        and promised.one_sum_bits >= SECURITY_BITS
        and opens_bits(n, k, t, silent) >= CORRECTNESS_BITS
    )


@pytest.mark.parametrize(("f", "silent"), [(50, 50), (100, 100), (333, 100)])
def test_fewer_colluders_than_planned_never_weaken_one_sum(f: int, silent: int) -> None:
    n = 1000
    k, t = choose(n, f, silent)
    planned = guarantee(n, f, k, t, least_of(n, f))
    for fewer in range(0, f, 7):
        promised = guarantee(n, fewer, k, t, least_of(n, f))
        assert promised.one_sum_bits >= planned.one_sum_bits
        assert promised.smallest_part >= planned.smallest_part


def test_a_list_of_everybody_is_the_complete_graph() -> None:
    for n in range(4, 41):
        for f in range((n - 2) // 2):
            t = (n - 1 + f) // 2 + 1
            assert guarantee(n, f, n - 1, t, least_of(n, f)) == Guarantee(f, t - f + 1, math.inf)


def test_colluders_who_reach_the_threshold_leave_no_guarantee() -> None:
    assert guarantee(40, 8, 10, 8, 25) == Guarantee(8, 1, 0.0)
    assert guarantee(40, 8, 10, 9, 25).smallest_part == 2


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: guarantee(2, 0, 1, 1, 2), "3 to"),
        (lambda: guarantee(MAX_COHORT + 1, 0, 1, 1, 9000), str(MAX_COHORT)),
        (lambda: guarantee(10, 9, 3, 2, 10), "two honest"),
        (lambda: guarantee(10, -1, 3, 2, 10), "two honest"),
        (lambda: guarantee(10, 2, 10, 2, 7), "k < n"),
        (lambda: guarantee(10, 2, 3, 4, 7), "t <= k"),
        (lambda: guarantee(10, 2, 3, 0, 7), "1 <= t"),
        (lambda: guarantee(10, 2, 3, 3, 3), "survivors"),
        (lambda: guarantee(10, 2, 3, 3, 11), "survivors"),
        (lambda: opens_bits(10, 3, 3, 10), "silent < n"),
        (lambda: opens_bits(10, 3, 4, 1), "t <= k"),
        (lambda: choose(10, 3, 3), "enlarge the cohort"),
        (lambda: choose(10, 3, -1), "enlarge the cohort"),
        (lambda: choose(4, 1, 1), "complete graph"),
        (lambda: threshold(10, 2, 10), "k < n"),
        (lambda: threshold(10, 9, 3), "two honest"),
        (lambda: draw_neighbours(5, 5, 2, bytes), "index < n"),
        (lambda: draw_neighbours(5, 0, 5, bytes), "k < n"),
        (lambda: draw_neighbours(5, 0, 0, bytes), "1 <= k"),
    ],
)
def test_sizes_that_fit_no_sparse_round_are_refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        call()


def test_a_participant_can_afford_the_guarantee_of_every_plan() -> None:
    def once() -> float:
        graph._log2_factorials.cache_clear()
        guarantee.cache_clear()
        start = time.process_time()
        guarantee(5000, 500, 114, 79, 2751)
        return time.process_time() - start

    assert min(once() for _ in range(3)) < 0.05


# ------------------------------------------------------------------ the draw


def from_values(values: Iterable[int]) -> Callable[[int], bytes]:
    """A randomness that yields these values, one a call."""
    left = iter(values)
    return lambda size: next(left).to_bytes(size)


@pytest.mark.parametrize("bound", [2, 3, 5, 64, 100, 255, 256])
def test_every_value_below_a_bound_is_met_equally_often(bound: int) -> None:
    """Exact: all 256 values of the byte are tried; a rejected one asks for a second byte."""
    met: Counter[int] = Counter()
    for byte in range(256):
        with suppress(StopIteration):
            met[graph._below(bound, from_values([byte]))] += 1
    assert set(met) == set(range(bound))
    assert len(set(met.values())) == 1


@pytest.mark.parametrize(("n", "k"), [(3, 1), (5, 2), (6, 3), (7, 4), (6, 5)])
def test_every_subset_of_the_others_is_drawn_equally_often(n: int, k: int) -> None:
    """Exact: every outcome of the k bounded draws is tried, for every participant."""
    bounds = [range(last + 1) for last in range(n - 1 - k, n - 1)]
    for index in range(n):
        met = Counter(
            draw_neighbours(n, index, k, from_values(values)) for values in product(*bounds)
        )
        others = [other for other in range(n) if other != index]
        assert set(met) == set(combinations(others, k))
        assert len(set(met.values())) == 1


def test_drawn_subsets_pass_a_chi_square_test() -> None:
    """20 subsets, 20,000 draws; 67.3 is exceeded once in 10^6 (19 degrees of freedom)."""
    randomness = random.Random(7).randbytes
    draws = 20_000
    met = Counter(draw_neighbours(7, 3, 3, randomness) for _ in range(draws))
    assert len(met) == 20
    assert sum((count - draws / 20) ** 2 / (draws / 20) for count in met.values()) < 67.3


def test_neighbours_of_a_large_cohort_pass_a_chi_square_test() -> None:
    """999 others, 2,000 lists of 95; 1227 is exceeded once in 10^6.

    Draws without replacement vary less than independent ones, which the scale corrects.
    """
    randomness = random.Random(8).randbytes
    lists, k = 2_000, 95
    met = Counter(
        other for _ in range(lists) for other in draw_neighbours(1000, 400, k, randomness)
    )
    variance = lists * k / 999 * (1 - k / 999)
    scaled = sum((met[other] - lists * k / 999) ** 2 for other in range(1000) if other != 400)
    assert met[400] == 0
    assert scaled / variance * 998 / 999 < 1227


@given(st.integers(3, 400), st.data())
def test_a_list_is_sorted_unique_and_without_its_owner(n: int, data: st.DataObject) -> None:
    index, k = data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, n - 1))
    drawn = draw_neighbours(n, index, k, random.Random(data.draw(st.integers())).randbytes)
    assert list(drawn) == sorted(set(drawn))
    assert len(drawn) == k
    assert index not in drawn
    assert set(drawn) <= set(range(n))


# ------------------------------------------------------------------ a coordinator that cuts


def members(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def mask_of(places: Iterable[int]) -> int:
    return sum(1 << place for place in set(places))


@dataclass(frozen=True)
class Board:
    """All lists of a round, as the coordinator sees them; sets are bit masks.

    Participants 0..f-1 collude: they survive, and their lists never stand in the way.
    """

    f: int
    t: int
    least: int
    lists: tuple[int, ...]

    @property
    def colluders(self) -> int:
        return (1 << self.f) - 1

    @property
    def honest(self) -> int:
        return ((1 << len(self.lists)) - 1) ^ self.colluders

    def edges(self) -> list[int]:
        """For each honest participant the honest ones that it shares a mask with."""
        found = [self.lists[i] & self.honest if i >= self.f else 0 for i in range(len(self.lists))]
        for i in members(self.honest):
            for j in members(self.lists[i] & self.honest):
                found[j] |= 1 << i
        return found

    def signable(self, part: int) -> int:
        """The largest subset of `part` whose members all have t holders in it or colluding."""
        while bad := [
            i
            for i in members(part)
            if (self.lists[i] & (part | self.colluders)).bit_count() < self.t
        ]:
            part &= ~mask_of(bad)
        return part


@dataclass(frozen=True)
class Coordinator:
    """Drops whomever it likes before U2, so that U3 is one part, the rest, and the colluders."""

    board: Board
    edges: list[int]

    @classmethod
    def facing(cls, board: Board) -> "Coordinator":
        return cls(board, board.edges())

    def around(self, part: int) -> int:
        found = 0
        for i in members(part):
            found |= self.edges[i]
        return found & ~part

    def splits_off(self, part: int) -> bool:
        """Whether honest participants sign a U3 in which `part` shares no mask with the rest."""
        part = self.board.signable(part)
        rest = self.board.signable(self.board.honest & ~part & ~self.around(part))
        survivors = part.bit_count() + rest.bit_count() + self.board.f
        return part != 0 and rest != 0 and survivors >= self.board.least

    def tries_everything(self) -> bool:
        """Every subset of the honest: exact, for a dozen of them."""
        part = self.board.honest
        while part and not self.splits_off(part):
            part = (part - 1) & self.board.honest
        return part != 0

    def grows_from(self, start: int) -> bool:
        """Greedy: take in whoever leaves the fewest to drop."""
        part = 1 << start
        for _ in range(self.board.honest.bit_count() // 2):
            if self.splits_off(part):
                return True
            near = self.around(part)
            costs = [
                ((near | self.edges[i]) & ~part & ~(1 << i)).bit_count() for i in members(near)
            ]
            if not costs:
                return False
            part |= 1 << list(members(near))[costs.index(min(costs))]
        return False

    def cuts_between(self, one: int, other: int) -> bool:
        """Flow: the fewest to drop that part two sets with no edge between them."""
        return self.splits_off(self._side_of(one, other))

    def _side_of(self, one: int, other: int) -> int:
        """The side of `one` in a smallest vertex cut: paths in the graph of (in, out) halves."""
        size = len(self.edges)
        room = [1 << (size + v) for v in range(size)] + list(self.edges)
        while True:
            came = dict.fromkeys((size + v for v in members(one)), -1)
            queue = list(came)
            for node in queue:
                for following in members(room[node]):
                    if following not in came:
                        came[following] = node
                        queue.append(following)
            ends = [v for v in members(other) if v in came]
            if not ends:
                return mask_of(v for v in range(size) if size + v in came)
            node = ends[0]
            while came[node] >= 0:
                before = came[node]
                if before < size or node == before - size:
                    room[before] &= ~(1 << node)
                room[node] |= 1 << before
                node = before

    def attacks(self, chance: random.Random, starts: int) -> bool:
        """Greedy from some, then flows between the surroundings of some pairs."""
        honest = list(members(self.board.honest))
        if any(self.grows_from(start) for start in chance.sample(honest, starts)):
            return True
        for first, second in (chance.sample(honest, 2) for _ in range(starts)):
            one, other = self._some_of(first, chance), self._some_of(second, chance)
            if not (one | self.around(one)) & other and self.cuts_between(one, other):
                return True
        return False

    def _some_of(self, centre: int, chance: random.Random) -> int:
        near = list(members(self.edges[centre]))
        return 1 << centre | mask_of(chance.sample(near, min(len(near), chance.randrange(4))))


def drawn_board(n: int, f: int, k: int, t: int, randomness: Randomness) -> Board:
    lists = tuple(mask_of(draw_neighbours(n, index, k, randomness)) for index in range(n))
    return Board(f, t, least_of(n, f), lists)


def exact_chance_to_fall_apart(n: int, f: int, k: int, t: int) -> Fraction:
    """Over all lists of the honest; those of colluders make no difference."""
    lists = [
        [mask_of(c) for c in combinations([j for j in range(n) if j != i], k)] for i in range(f, n)
    ]
    cut = sum(
        Coordinator.facing(Board(f, t, least_of(n, f), (*(0,) * f, *drawn))).tries_everything()
        for drawn in product(*lists)
    )
    return Fraction(cut, math.comb(n - 1, k) ** (n - f))


@pytest.mark.parametrize(("n", "f", "k", "t"), [(5, 0, 1, 1), (4, 0, 1, 1), (4, 0, 2, 2)])
def test_the_bound_holds_over_every_graph_of_a_tiny_cohort(n: int, f: int, k: int, t: int) -> None:
    promised = guarantee(n, f, k, t, least_of(n, f))
    assert exact_chance_to_fall_apart(n, f, k, t) <= 2**-promised.one_sum_bits


@pytest.mark.parametrize(("n", "f", "k", "t"), [(9, 1, 2, 2), (9, 2, 3, 3), (9, 0, 2, 2)])
def test_the_bound_holds_against_a_coordinator_that_tries_everything(
    n: int, f: int, k: int, t: int
) -> None:
    """A cut that exists is found. Allowed above the bound: 5 standard deviations."""
    randomness = random.Random(9).randbytes
    rounds = 150
    cut = sum(
        Coordinator.facing(drawn_board(n, f, k, t, randomness)).tries_everything()
        for _ in range(rounds)
    )
    chance = 2 ** -guarantee(n, f, k, t, least_of(n, f)).one_sum_bits
    assert cut <= rounds * chance + 5 * math.sqrt(rounds * chance)


def test_greedy_and_flow_find_most_cuts_that_exist() -> None:
    chance = random.Random(10)
    there = found = 0
    for _ in range(60):
        coordinator = Coordinator.facing(drawn_board(11, 1, 2, 1, chance.randbytes))
        there += coordinator.tries_everything()
        found += coordinator.attacks(chance, 10)
    assert found >= 0.9 * there
    assert there > 30


@pytest.mark.parametrize(("n", "f", "k", "t"), [(40, 0, 2, 1), (40, 4, 3, 1), (100, 0, 2, 1)])
def test_weak_parameters_are_cut(n: int, f: int, k: int, t: int) -> None:
    chance = random.Random(11)
    boards = [drawn_board(n, f, k, t, chance.randbytes) for _ in range(5)]
    assert all(Coordinator.facing(board).attacks(chance, 12) for board in boards)
    assert guarantee(n, f, k, t, least_of(n, f)).one_sum_bits < SECURITY_BITS


@pytest.mark.parametrize(("n", "f", "silent"), [(20, 2, 2), (40, 4, 4), (100, 10, 5)])
def test_chosen_parameters_are_not_cut(n: int, f: int, silent: int) -> None:
    chance = random.Random(12)
    k, t = choose(n, f, silent)
    boards = [drawn_board(n, f, k, t, chance.randbytes) for _ in range(5)]
    assert not any(Coordinator.facing(board).attacks(chance, 6) for board in boards)


def test_without_the_count_of_holders_a_victim_is_singled_out() -> None:
    """C21: its neighbours are few enough to be dropped, and then it holds no t of k alive."""
    chance = random.Random(13)
    n, f = 200, 10
    k, t = choose(n, f, 10)
    board = drawn_board(n, f, k, t, chance.randbytes)
    careless = Board(f, 0, board.least, board.lists)
    assert Coordinator.facing(careless).splits_off(1 << (n - 1))
    assert not Coordinator.facing(board).splits_off(1 << (n - 1))


def test_a_part_is_never_smaller_than_promised() -> None:
    """Deterministic while no honest list holds more than c colluders."""
    chance = random.Random(14)
    for n, f, k, t in [(40, 0, 2, 1), (40, 0, 3, 2), (24, 2, 4, 3)]:
        smallest = guarantee(n, f, k, t, least_of(n, f)).smallest_part
        board = drawn_board(n, f, k, t, chance.randbytes)
        for _ in range(300):
            part = mask_of(chance.sample(range(n), chance.randrange(1, n))) & board.honest
            kept = board.signable(part)
            assert kept == 0 or kept.bit_count() >= smallest


# ------------------------------------------------------------------ public rings


def ring(n: int, k: int) -> tuple[int, ...]:
    """The Harary graph: k/2 neighbours on either side."""
    steps = [step for step in range(-(k // 2), k // 2 + 1) if step]
    return tuple(mask_of((i + step) % n for step in steps) for i in range(n))


def test_a_ring_with_a_low_threshold_is_cut_by_two_windows() -> None:
    chance = random.Random(15)
    cut = Coordinator.facing(Board(0, 3, least_of(40, 0), ring(40, 6)))
    kept = Coordinator.facing(Board(0, 4, least_of(40, 0), ring(40, 6)))
    windows = mask_of([0, 1, 2, 20, 21, 22])
    one_arc = mask_of(range(3, 20))
    assert cut.around(one_arc) == windows
    assert cut.splits_off(one_arc)
    assert not kept.splits_off(one_arc)
    assert not kept.attacks(chance, 12)


def ring_around_a_victim(roster: int, colluders: int, left_out: int) -> tuple[int, int]:
    """(n, most colluders in a row with one honest member among them) after leaving some out.

    Positions are public hashes of names; the coordinator leaves out who stands between.
    """
    places = sorted(range(roster), key=lambda i: hashlib.sha256(b"tenant %d" % i).digest())
    at = [place for place, tenant in enumerate(places) if tenant < colluders]
    for count in range(colluders, 0, -1):
        spans = [at[i + count - 1] - at[i] + 1 for i in range(colluders - count + 1)]
        if min(spans) - count - 1 <= left_out:
            return roster - (min(spans) - count - 1), count
    return roster, 0


def test_a_public_ring_is_ground_through_the_cohort_and_own_lists_are_not() -> None:
    """2000 tenants, 100 of them colluding: a victim of the ring gets t colluding holders."""
    n, around = ring_around_a_victim(2000, 100, 1050)
    k, t = choose(n, 100, n // 20)
    assert around >= t
    assert t <= k - k % 2
    chance = random.Random(16)
    promised = guarantee(n, 100, k, t, least_of(n, 100))
    worst = max(
        sum(other < 100 for other in draw_neighbours(n, index, k, chance.randbytes))
        for index in range(100, n)
    )
    assert worst <= promised.colluding_neighbours < t


# ------------------------------------------------------------------ measured against the bound


def test_more_than_c_colluding_holders_are_as_rare_as_computed() -> None:
    """A bound near 2^-6, so that it can be seen; 5 standard deviations either way."""
    n, f, k, rounds = 40, 12, 10, 1500
    c = graph._most_marked(n - 1, f, k, parties=n - f, bits=6)
    randomness = random.Random(17).randbytes
    seen = sum(
        any(
            sum(other < f for other in draw_neighbours(n, index, k, randomness)) > c
            for index in range(f, n)
        )
        for _ in range(rounds)
    )
    one = float(tail(n - 1, f, k, c + 1))
    chance = 1 - (1 - one) ** (n - f)
    assert chance <= (n - f) * one <= 2**-6
    assert abs(seen - rounds * chance) < 5 * math.sqrt(rounds * chance)


def test_fewer_than_t_holders_alive_are_no_likelier_than_bounded() -> None:
    n, k, t, silent, rounds = 40, 12, 7, 6, 1500
    bound = 2 ** -opens_bits(n, k, t, silent)
    assert 2**-8 < bound < 2**-4
    chance = random.Random(18)
    seen = 0
    for _ in range(rounds):
        gone = set(chance.sample(range(n), silent))
        seen += any(
            len(gone.intersection(draw_neighbours(n, index, k, chance.randbytes))) > k - t
            for index in set(range(n)) - gone
        )
    assert rounds * bound / 4 < seen < rounds * bound + 5 * math.sqrt(rounds * bound)


# ------------------------------------------------------------------ the page


def test_the_page_states_what_the_code_computes() -> None:
    rows = re.findall(
        r"^\| (\d+) \| (\d+) \| (\d+) \| \((\d+), (\d+)\) \| (\d+) \| (\d+) \| (\d+) \|",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(rows) >= 8
    for n, f, silent, k, t, c, part, bits in (map(int, row) for row in rows):
        assert choose(n, f, silent) == (k, t)
        promised = guarantee(n, f, k, t, least_of(n, f))
        assert (promised.colluding_neighbours, promised.smallest_part) == (c, part)
        assert math.floor(promised.one_sum_bits) == bits
