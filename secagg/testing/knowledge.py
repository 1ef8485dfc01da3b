"""What a coordinator and its colluders can compute from what honest tenants handed out.

Shares add up to secrets or they do not; masks that are left keep inputs apart or they do not. So
the question is linear algebra over unknown masks, and its answer is a set of sums. Scheme
`masking`:

    y_i = x_i + PRG(b_i) + sum over neighbours j of +-PRG(s_ij)

A combination of uploads tells something about inputs only if every unknown mask in it cancels. b_i
stands in y_i alone, so y_i counts only if b_i is rebuilt; s_ij stands in y_i and y_j with opposite
signs, so both count alike, or neither if one of the two lacks it. What is left are the connected
components of the graph of unknown s_ij among tenants whose b_i is known: the sum over each.

Scheme `ckks`: a combination sum_i k_i c_i opens with sum_i k_i s_i, where s_i = f_i(0). Of the
polynomials f_i of honest dealers the coalition knows f_i(j + 1) for each colluding holder j, and
for each honest holder j that answered the one sum over its U3 of f_i(j + 1). All that is linear in
the t coefficients of each f_i, so the combinations that open are an intersection of two spaces,
whatever sets and points were mixed.

Deliberately not here: computation against the primitives, and what a colluder's own upload adds
(it knows that). A coordinator that knows t shares of a kind is taken to know the secret.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from secagg.scheme import scheme_of
from secagg.testing.coalition import Coalition
from secagg.testing.invariants import require

SELF_MASK, MASK_SEED = 0, 1
_PRIME = 2**31 - 1


class Knowledge:
    """See the module's docstring; a picture of the moment at which it is made."""

    def __init__(self, coalition: Coalition) -> None:
        self._coalition = coalition
        self._honest = frozenset(coalition.honest)
        witness, cohort = coalition.witness, coalition.plan.cohort
        self._uploaded = {i for i in self._honest if witness.uploaded(cohort[i])}

    def knows(self, dealer: int, kind: int) -> bool:
        """Whether t shares of this kind are in the coalition's hands."""
        coalition = self._coalition
        own = coalition.colluders.keys() & set(coalition.holders(dealer))
        released = coalition.witness.released.get((dealer, kind), set())
        return len(own | released) >= coalition.plan.share_threshold

    def sums(self) -> frozenset[frozenset[int]]:
        """The sets of honest tenants of which the coalition can compute the sum of inputs."""
        if not scheme_of(self._coalition.plan).answers_are_proven:
            return frozenset(map(frozenset, self._opened_combinations()))
        hidden = {one for one in self._uploaded if not self.knows(one, SELF_MASK)}
        joined = {one: {one} for one in self._uploaded}
        for one, other in self._unknown_masks():
            if other not in self._uploaded or one not in self._neighbours(other):
                hidden.add(one)  # nothing cancels this mask
            elif joined[one] is not joined[other]:
                joined[one] |= joined[other]
                for member in joined[other]:
                    joined[member] = joined[one]
        return frozenset(
            frozenset(component) for component in joined.values() if component.isdisjoint(hidden)
        )

    def _neighbours(self, index: int) -> tuple[int, ...]:
        view = self._coalition.header_view(index)
        return () if view is None else view.edges.neighbours(index)

    def _unknown_masks(self) -> Iterator[tuple[int, int]]:
        """(uploader, neighbour) for each pairwise mask that neither end's secrets give away."""
        rebuilt = {one for one in self._honest if self.knows(one, MASK_SEED)}
        for one in sorted(self._uploaded - rebuilt):
            for other in self._neighbours(one):
                if other in self._honest and other not in rebuilt:
                    yield one, other

    def _opened_combinations(self) -> Iterator[set[int]]:
        """A basis of the combinations of uploads that open, as the sets of their uploaders.

        Raises:
            InvariantBroken: one is no plain sum.
        """
        uploaders = sorted(self._uploaded)
        known = _reduced(self._known_evaluations())
        secrets = np.array([self._evaluation({one}, 0) for one in uploaders], np.int64)
        for row in _annihilated(known, secrets):
            members = {one for one, factor in zip(uploaders, row.tolist(), strict=True) if factor}
            require(set(row.tolist()) <= {0, 1}, "a combination that is no sum can be computed")
            yield members

    def _known_evaluations(self) -> NDArray[np.int64]:
        """Each share or sum of shares that the coalition has, as a row over all coefficients."""
        coalition = self._coalition
        rows = [
            self._evaluation({dealer}, holder + 1)
            for dealer in self._honest
            for holder in coalition.colluders.keys() & set(coalition.holders(dealer))
        ]
        for holder, body in coalition.witness.summed.items():
            members = coalition.agreements[body].indices & self._honest
            rows.append(self._evaluation(members, holder + 1))
        width = len(self._honest) * coalition.plan.share_threshold
        return np.array(rows, np.int64).reshape(-1, width)

    def _evaluation(self, dealers: frozenset[int] | set[int], point: int) -> list[int]:
        """sum over dealers of f_i(point), in the coefficients of all f_i of honest dealers."""
        powers = [pow(point, k, _PRIME) for k in range(self._coalition.plan.share_threshold)]
        nothing = [0] * len(powers)
        parts = [powers if one in dealers else nothing for one in sorted(self._honest)]
        return [value for part in parts for value in part]


def _reduced(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The reduced row echelon form modulo _PRIME, without rows of zeros."""
    rows, rank = rows % _PRIME, 0
    for column in range(rows.shape[1]):
        found = np.flatnonzero(rows[rank:, column])
        if len(found):
            rows[[rank, rank + found[0]]] = rows[[rank + found[0], rank]]
            rows[rank] = rows[rank] * pow(int(rows[rank, column]), -1, _PRIME) % _PRIME
            factors = rows[:, column].copy()
            factors[rank] = 0
            rows = (rows - factors[:, None] * rows[rank] % _PRIME) % _PRIME
            rank += 1
    return rows[:rank]


def _annihilated(known: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """A reduced basis of the combinations of `rows` that lie in the space of the reduced `known`.

    What is left of each row modulo that space, with a unit vector beside it that says which row it
    was: where elimination leaves nothing on the left, the right is such a combination.
    """
    count = len(rows)
    if not count:
        return np.zeros((0, 0), np.int64)
    left = rows % _PRIME
    for row in known:
        factors = left[:, np.flatnonzero(row)[0]].copy()
        left = (left - factors[:, None] * row % _PRIME) % _PRIME
    both = _reduced(np.concatenate([left, np.eye(count, dtype=np.int64)], axis=1))
    return both[~both[:, :-count].any(axis=1), -count:]


def check_knowledge(coalition: Coalition) -> frozenset[frozenset[int]]:
    """At most one sum, over all honest members of the one U3 that a quorum signed; returns it.

    Raises:
        InvariantBroken: names the claim.
    """
    known, plan = Knowledge(coalition), coalition.plan
    for dealer in coalition.honest:
        both = known.knows(dealer, SELF_MASK) and known.knows(dealer, MASK_SEED)
        require(not both, f"both secrets of {plan.cohort[dealer]} can be rebuilt")
        alone = not scheme_of(plan).answers_are_proven and known.knows(dealer, SELF_MASK)
        require(not alone, f"the key of {plan.cohort[dealer]} can be rebuilt")
    sums = known.sums()
    require(len(sums) <= 1, "two different sums can be computed")
    for members in sums:
        require(len(members) >= 2, "the input of one tenant can be computed")
        enough = len(members) + len(coalition.colluders) >= plan.least
        require(enough, "a sum over too few tenants can be computed")
        agreed = [one & frozenset(coalition.honest) for one in _signed(coalition)]
        require(members in agreed, "a sum over others than the agreed ones is known")
    kinds = coalition.witness.kinds
    right = [all(k == (d not in one) for d, k in kinds.items()) for one in _signed(coalition)]
    require(not kinds or any(right), "other kinds of share were released than U3 asks for")
    return sums


def _signed(coalition: Coalition) -> list[frozenset[int]]:
    """Each set of survivors that a quorum may have signed."""
    need = coalition.plan.quorum - len(coalition.colluders)
    return [
        agreement.indices
        for body, agreement in coalition.agreements.items()
        if len(coalition.witness.signers_of(body)) >= need
    ]
