"""Who holds whose shares, and along which pairs masks run.

In step 1 every participant deals to its holders: on the complete graph all of U1, itself included;
in scheme `ckks` with more than a few participants the committee; on a sparse graph those of U1 that
it drew, before it knew U1, with its own randomness. Nobody else can choose them, and its signed
body says who they are. Masks run between two members of U2 if one
of them holds shares of the other, in either direction.

Source: Bell et al. CCS'20, section 4, with drawn out-neighbours in place of a public graph; see
docs/sparse-graphs.md. The sizes are `graph.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from secagg import graph
from secagg.plan import RoundPlan
from secagg.secret import Randomness


def draw(plan: RoundPlan, index: int, randomness: Randomness) -> tuple[int, ...]:
    """The k participants whom `index` would deal to, sorted: on a sparse graph of its own drawing,
    else the same for everybody."""
    if plan.same_holders:
        return plan.same_holders
    return graph.draw_neighbours(plan.n, index, plan.share_count, randomness)


def seals_pad(plan: RoundPlan, dealer: int, holder: int) -> bool:
    """Whether `dealer` draws a pad for `holder`: one of each pair must, and only one's counts.

    On the complete graph both deal to each other, and the smaller index draws it. On a sparse graph
    a dealer does not know whether its holder deals to it too.
    """
    if plan.suite == "x25519" or plan.scheme != "masking" or dealer == holder:
        return False
    return holder > dealer or not plan.complete


@dataclass(frozen=True, slots=True)
class Edges:
    """The graph of one U2: each member's holders, which may lie outside U2."""

    holders: Mapping[int, frozenset[int]]

    @classmethod
    def of(cls, holders: Mapping[int, Iterable[int]], members: Iterable[int]) -> Edges:
        """The graph of these members."""
        return cls({member: frozenset(holders[member]) for member in members})

    def holds(self, holder: int) -> tuple[int, ...]:
        """The members whose shares `holder` has, in index order."""
        return tuple(dealer for dealer in sorted(self.holders) if holder in self.holders[dealer])

    def neighbours(self, index: int) -> tuple[int, ...]:
        """The other members with which `index` shares a mask, in index order."""
        own = self.holders[index]
        return tuple(
            other
            for other in sorted(self.holders)
            if other != index and (other in own or index in self.holders[other])
        )

    def pad_dealer(self, one: int, other: int) -> int:
        """Of two neighbours the one whose pad counts: the smaller index, if it dealt."""
        low, high = min(one, other), max(one, other)
        return low if high in self.holders[low] else high

    def fewest_holders(self, within: frozenset[int]) -> int:
        """The least number of holders that any member has among `within`."""
        return min(len(holders & within) for holders in self.holders.values())

    def without_too_few(self, threshold: int) -> Edges:
        """What is left when members with fewer than `threshold` holders among the rest leave."""
        left = dict(self.holders)
        while True:
            within = frozenset(left)
            stay = {m: h for m, h in left.items() if len(h & within) >= threshold}
            if len(stay) == len(left):
                return Edges(left)
            left = stay


def opening_pairs(edges: Edges, survivors: frozenset[int]) -> tuple[tuple[int, int], ...]:
    """(dealer, holder) of the pad between each dropout and each surviving neighbour, in order."""
    pairs: set[tuple[int, int]] = set()
    for dropout in edges.holders.keys() - survivors:
        for other in edges.neighbours(dropout):
            if other in survivors:
                dealer = edges.pad_dealer(dropout, other)
                pairs.add((dealer, dropout + other - dealer))
    return tuple(sorted(pairs))
