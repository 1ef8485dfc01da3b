"""The graph of one U2: who holds whose shares, who shares masks, whose pad counts."""

import pytest

from secagg import edges
from secagg.edges import Edges, draw, opening_pairs, seals_pad
from secagg.plan import RoundPlan, Suite
from secagg.testing import SeededRandomness, cohort

HYBRID: Suite = "x25519-mlkem768"
CLASSIC: Suite = "x25519"

# 0 and 1 hold each other's shares, 2 deals to 1 alone, 3 to 0 and to 9, who is not in U2.
GRAPH = Edges(
    {
        3: frozenset({0, 9}),
        0: frozenset({1}),
        1: frozenset({0}),
        2: frozenset({1, 3}),
    }
)


def plan(suite: Suite, neighbours: int | None) -> RoundPlan:
    colluders = 2 if neighbours else None
    return cohort(20).plan(4, suite=suite, neighbours=neighbours, max_colluders=colluders)


def test_everybody_is_a_holder_on_the_complete_graph() -> None:
    assert draw(plan(HYBRID, None), 3, SeededRandomness("draw")) == tuple(range(20))


def test_a_sparse_draw_has_k_others() -> None:
    drawn = draw(plan(HYBRID, 12), 3, SeededRandomness("draw"))
    assert len(set(drawn)) == 12
    assert 3 not in drawn
    assert drawn == tuple(sorted(drawn))


@pytest.mark.parametrize("neighbours", [None, 12])
def test_there_are_no_pads_without_a_kem_and_none_for_oneself(neighbours: int | None) -> None:
    assert not any(seals_pad(plan(CLASSIC, neighbours), 3, holder) for holder in (1, 3, 5))
    assert not seals_pad(plan(HYBRID, neighbours), 3, 3)


def test_the_smaller_index_draws_the_pad_on_the_complete_graph_and_every_dealer_elsewhere() -> None:
    complete, sparse = plan(HYBRID, None), plan(HYBRID, 12)
    assert [seals_pad(complete, 3, holder) for holder in (1, 5)] == [False, True]
    assert [seals_pad(sparse, 3, holder) for holder in (1, 5)] == [True, True]


def test_edges_keep_the_members_alone_and_their_holders_wherever_those_are() -> None:
    assert Edges.of({0: (1, 2), 1: (0,), 2: (9,)}, (0, 2)).holders == {
        0: frozenset({1, 2}),
        2: frozenset({9}),
    }


def test_holds_lists_the_dealers_in_index_order() -> None:
    assert [GRAPH.holds(holder) for holder in (0, 1, 2, 3, 9)] == [(1, 3), (0, 2), (), (2,), (3,)]


def test_neighbours_are_holders_and_dealers_within_u2_in_index_order() -> None:
    assert [GRAPH.neighbours(index) for index in (0, 1, 2, 3)] == [
        (1, 3),
        (0, 2),
        (1, 3),
        (0, 2),
    ]
    oneself = Edges({0: frozenset({0, 1}), 1: frozenset({0, 1})})
    assert oneself.neighbours(0) == (1,)


@pytest.mark.parametrize(
    ("pair", "dealer"), [((0, 1), 0), ((1, 0), 0), ((0, 3), 3), ((3, 0), 3), ((1, 2), 2)]
)
def test_the_pad_of_the_smaller_index_counts_if_it_dealt(
    pair: tuple[int, int], dealer: int
) -> None:
    assert GRAPH.pad_dealer(*pair) == dealer


def test_the_fewest_holders_are_counted_among_those_within() -> None:
    graph = Edges({0: frozenset({1, 2, 3}), 1: frozenset({0, 2})})
    assert graph.fewest_holders(frozenset({0, 1, 2, 3})) == 2
    assert graph.fewest_holders(frozenset({1, 2, 3})) == 1
    assert graph.fewest_holders(frozenset()) == 0


def test_members_with_too_few_holders_leave_and_take_others_with_them() -> None:
    ring = {0: {1, 2}, 1: {0, 2}, 2: {0, 1}, 3: {0, 4}, 4: {0, 5}, 5: {1, 9}}
    graph = Edges({member: frozenset(holders) for member, holders in ring.items()})
    # 9 is not a member: 5 leaves, then 4 for want of 5, then 3 for want of 4.
    assert graph.without_too_few(2).holders.keys() == {0, 1, 2}
    assert graph.without_too_few(1) == graph
    assert not graph.without_too_few(3).holders


def test_only_pads_between_dropouts_and_survivors_are_opened_each_once_and_in_order() -> None:
    survivors = frozenset({1, 2})
    # 0 dealt to 1; 2 dealt to 3; 0 and 3 are neighbours, and neither survived.
    assert opening_pairs(GRAPH, survivors) == ((0, 1), (2, 3))
    assert opening_pairs(GRAPH, frozenset({0, 3})) == ((0, 1), (2, 3))
    assert opening_pairs(GRAPH, frozenset({0, 1, 2, 3})) == ()
    many = Edges({one: frozenset(range(12)) - {one} for one in range(12)})
    left = frozenset(range(12)) - {4, 7}
    pairs = opening_pairs(many, left)
    assert list(pairs) == sorted({(min(a, b), max(a, b)) for a in (4, 7) for b in left})


def test_masks_of_a_pair_run_both_ways() -> None:
    for one in GRAPH.holders:
        for other in GRAPH.neighbours(one):
            assert one in GRAPH.neighbours(other)
    assert edges.Edges.of({}, ()).holders == {}
