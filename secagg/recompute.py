"""The sum once more, from the survivors' uploads and the shares that were released.

    leaf of the sum = decode(sum over U3 of the uploads' leaves - what the shares take off)

A transcript that holds (`transcript.py`) fixes the root of every survivor's upload and everything
that opens their sum, so whoever has the uploads computes what an honest coordinator opened: all of
it, or leaves of its own choosing. A coordinator that has announced the Merkle root of its sum
(`sum_root`) and invented a fraction p of its leaves is found out by m random leaves with
probability 1 - (1 - p)^m; all leaves leave no doubt.

A sum's leaves lie where the uploads' do (`scheme.leaf_places`): the values of one place as
little-endian int64, hashed as in RFC 6962; the last value of the last leaf is the sum of the
weights.

What success does not imply: that the survivors' inputs were honest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from secagg import graph, merkle
from secagg.errors import ProtocolError, Step, UsageError
from secagg.plan import RoundPlan
from secagg.result import count_beyond, require_within
from secagg.scheme import LeafPlace, LeafSums, Opener, leaf_places, scheme_of
from secagg.secret import Randomness
from secagg.transcript import Verified


class Uploads(Protocol):
    """Where the survivors' uploads can be read; whoever serves them need not be trusted."""

    def leaf(self, participant: str, number: int) -> tuple[bytes, Sequence[bytes]]:
        """One leaf's bytes, and its audit path in the participant's upload."""


@dataclass(frozen=True, slots=True)
class SumLeaf:
    """One recomputed leaf: `values` is (place.count,) int64, exact sums of levels (or weights)."""

    number: int
    place: LeafPlace
    values: NDArray[np.int64]

    @property
    def digest(self) -> bytes:
        """Its leaf hash in the sum's tree (32 bytes)."""
        return _digest(self.values)


def sum_root(plan: RoundPlan, level_sum: NDArray[np.int64], total_weight: int) -> bytes:
    """The Merkle root that stands for a claimed sum, (d,) int64, with its weight (32 bytes)."""
    return merkle.root(_digests(plan, level_sum, total_weight))


def sum_path(
    plan: RoundPlan, level_sum: NDArray[np.int64], total_weight: int, number: int
) -> tuple[bytes, ...]:
    """The audit path of one leaf of a claimed sum: what a coordinator serves."""
    return merkle.path(_digests(plan, level_sum, total_weight), number)


def recompute(
    verified: Verified, uploads: Uploads, numbers: Iterable[int] | None = None
) -> Iterator[SumLeaf]:
    """The sum's leaves with these numbers, or all, in order. Memory is O(leaf).

    Raises:
        ProtocolError: in masked_input, a leaf is not the one that its participant signed (C40); in
            unmask, the released shares do not open what the dealers committed to (C26, C39).
        FaultyParticipantOrCoordinator: the sum is out of range (C27).
        UsageError: there is no leaf with such a number.
    """
    plan = verified.plan
    places = leaf_places(plan)
    chosen = range(len(places)) if numbers is None else list(numbers)
    if any(not 0 <= number < len(places) for number in chosen):
        raise UsageError(f"the sum has leaves 0 to {len(places) - 1}")
    scheme = scheme_of(plan)
    opener, sums = scheme.opener(plan, verified.opening), scheme.leaf_sums(plan)
    for number in chosen:
        yield _leaf(verified, uploads, opener, sums, number)


def check_sum(
    verified: Verified,
    uploads: Uploads,
    root: bytes,
    paths: Callable[[int], Sequence[bytes]] | None = None,
    numbers: Iterable[int] | None = None,
) -> int:
    """Compare a claimed sum, by its root, with what uploads and shares give; returns how many
    leaves were compared. Without `numbers` all are, and no paths are needed.

    Choose numbers freshly and at random, after the root was announced: whoever knows them
    beforehand can invent the others.

    Raises:
        ProtocolError: in unmask, the claimed sum is another one (C41); else as `recompute`.
    """
    count = len(leaf_places(verified.plan))
    if numbers is None:
        digests = [leaf.digest for leaf in recompute(verified, uploads)]
        if merkle.root(digests) != root:
            raise ProtocolError("the claimed sum is not that of the uploads", step=Step.UNMASK)
        return count
    if paths is None:
        raise UsageError("a part of the sum is compared by the audit paths of the claimed one")
    checked = 0
    for leaf in recompute(verified, uploads, numbers):
        if not merkle.verify_path(leaf.digest, leaf.number, count, paths(leaf.number), root):
            raise ProtocolError(
                f"the claimed sum is not that of the uploads: leaf {leaf.number} differs",
                step=Step.UNMASK,
            )
        checked += 1
    return checked


def random_leaves(plan: RoundPlan, count: int, randomness: Randomness) -> tuple[int, ...]:
    """`count` leaf numbers of a sum, sorted; every choice is equally likely."""
    return graph.draw_subset(len(leaf_places(plan)), count, randomness)


def _leaf(
    verified: Verified, uploads: Uploads, opener: Opener, sums: LeafSums, number: int
) -> SumLeaf:
    place = leaf_places(verified.plan)[number]
    total = sums.zero(place)
    for survivor in verified.survivors:
        sums.add(total, upload_leaf(verified, uploads, survivor, number), place)
    values, marks = opener.open(total, place)
    require_within(marks + count_beyond(verified.plan, len(verified.survivors), place, values))
    return SumLeaf(number, place, values)


def upload_leaf(verified: Verified, uploads: Uploads, survivor: str, number: int) -> bytes:
    """One leaf of a survivor's upload, which hangs under the root that it signed (C40).

    Raises:
        ProtocolError: it does not.
    """
    data, path = uploads.leaf(survivor, number)
    places, root = leaf_places(verified.plan), verified.roots[survivor]
    digest = merkle.bulk_leaf_hash(data)
    if len(data) != places[number].size or not merkle.verify_path(
        digest, number, len(places), path, root
    ):
        raise ProtocolError(
            f"leaf {number} of the upload of {survivor!r} is not the one that it signed",
            step=Step.MASKED_INPUT,
        )
    return data


def _digests(plan: RoundPlan, level_sum: NDArray[np.int64], total_weight: int) -> list[bytes]:
    if len(level_sum) != plan.layout.size:
        raise UsageError(f"a sum of {len(level_sum)} values, and the plan has {plan.layout.size}")
    return [_digest(sum_values(place, level_sum, total_weight)) for place in leaf_places(plan)]


def sum_values(
    place: LeafPlace, level_sum: NDArray[np.int64], total_weight: int
) -> NDArray[np.int64]:
    """The (place.count,) values of one leaf of a sum."""
    data = level_sum[place.data]
    return np.append(data, np.int64(total_weight)) if place.weighs else data


def _digest(values: NDArray[np.int64]) -> bytes:
    return merkle.bulk_leaf_hash(np.ascontiguousarray(values, "<i8").data.cast("B"))
