"""Scheme `masking`: pairwise masks that cancel in the sum, and a self mask that does not.

    y_i = x_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)   (mod 2^w),  j in U2

Sources: Bonawitz et al. 2017, "Practical Secure Aggregation", figure 4; Bell et al. 2020, section
4. b_i and the mask seed are Shamir-shared; for each member of U2 the aggregator is given shares of
exactly one of them: b_i of a survivor, the mask seed of a dropout.

Not here: who is a survivor (`checks.py`) and what may be released when (`participant_steps.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from secagg import shamir, suite
from secagg.checks import secret_commitment
from secagg.edges import Edges
from secagg.errors import FaultyParticipant, MalformedMessage, Step
from secagg.messages import AdvertiseKeys, Answer
from secagg.plan import RoundPlan
from secagg.prg import Keystream, Words, add_masks, new_scratch, stream_key
from secagg.scheme import (
    DealtPad,
    LeafPlace,
    Opened,
    Opening,
    Pairwise,
    ProtectionSecrets,
    RoundSecrets,
    SharedSecrets,
)
from secagg.secret import (
    MaskKeyShare,
    MaskSeed,
    Pad,
    PairwiseSeed,
    Randomness,
    Seed,
    SelfMaskSeed,
    SelfMaskShare,
    Share,
)
from secagg.suite import Peer

SELF_MASK, MASK_KEY = 0, 1
_LABEL = "secagg/1 masking"


class MaskStreams:
    """The keystreams of one vector set, added with their signs. Serves protecting and opening.

    Threads may share it for different places: each takes a scratch of its own.
    """

    __slots__ = ("_minus", "_plus", "_scratches")

    def __init__(self, plan: RoundPlan, plus: Iterable[Seed], minus: Iterable[Seed]) -> None:
        self._plus = [_streams(plan, seed) for seed in plus]
        self._minus = [_streams(plan, seed) for seed in minus]
        self._scratches: list[NDArray[np.uint8]] = []

    def protect(self, words: Words, place: LeafPlace) -> None:
        """Add the masks of `place` to `words`, in place."""
        plus = [streams[place.vector] for streams in self._plus]
        minus = [streams[place.vector] for streams in self._minus]
        scratch = self._scratches.pop() if self._scratches else new_scratch()
        add_masks(words, place.chunk, plus, minus, scratch)
        self._scratches.append(scratch)

    open = protect


class Masking:
    """See `secagg.scheme.Scheme`."""

    share_kinds: ClassVar[Sequence[type[Share]]] = (SelfMaskShare, MaskKeyShare)

    def deal(
        self, secrets: RoundSecrets, holders: Sequence[int], threshold: int, randomness: Randomness
    ) -> dict[int, tuple[Share, ...]]:
        """t-of-k shares of the self-mask seed and of the mask seed."""
        self_mask = shamir.split(secrets.self_mask, holders, threshold, SelfMaskShare, randomness)
        mask = shamir.split(secrets.mask, holders, threshold, MaskKeyShare, randomness)
        return {holder: (self_mask[holder], mask[holder]) for holder in holders}

    def secret_commitment(self, plan: RoundPlan, index: int, secrets: RoundSecrets) -> bytes:
        """Commits to b_i; the mask seed is committed to by the advertised mask key."""
        return secret_commitment(plan.context, index, secrets.self_mask.expose())

    def protection(
        self,
        plan: RoundPlan,
        index: int,
        secrets: SharedSecrets,
        keys: Mapping[int, AdvertiseKeys],
        edges: Edges,
        pads: Mapping[tuple[int, int], DealtPad],
    ) -> ProtectionSecrets:
        """The pairwise seeds of participant `index` with its neighbours in U2."""
        mine, mask = Peer(index, keys[index]), suite.private_keys(plan.suite, secrets.mask)
        pairwise: list[Pairwise] = []
        for other in edges.neighbours(index):
            pad, commitment = None, b""
            if plan.suite != "x25519":
                dealer = edges.pad_dealer(index, other)
                dealt = pads[dealer, index + other - dealer]
                pad, commitment = dealt.pad, dealt.commitment
            theirs = Peer(other, keys[other])
            seed = suite.pairwise_seed(plan.context, mine, theirs, mask, pad, commitment)
            pairwise.append(Pairwise(other, seed))
        return ProtectionSecrets(secrets.self_mask, tuple(pairwise))

    def protector(self, plan: RoundPlan, index: int, secrets: ProtectionSecrets) -> MaskStreams:
        """The masks of participant `index`."""
        above, below = _by_sign(index, secrets.pairwise)
        return MaskStreams(plan, [secrets.self_mask, *above], below)

    def expected_kind(self, dealer: int, survivors: frozenset[int]) -> int:
        """Self-mask shares of survivors, mask-key shares of dropouts (C24)."""
        return SELF_MASK if dealer in survivors else MASK_KEY

    def answers(
        self, survivors: frozenset[int], held: Mapping[int, Sequence[Opened]]
    ) -> tuple[Answer, ...]:
        """One share for each held dealer in U2, of the one kind that may be released."""
        kinds = {dealer: self.expected_kind(dealer, survivors) for dealer in sorted(held)}
        return tuple(
            Answer(dealer, kind, held[dealer][kind].share.expose(), held[dealer][kind].opening)
            for dealer, kind in kinds.items()
        )

    def opener(self, plan: RoundPlan, opening: Opening) -> MaskStreams:
        """Rebuild every seed and return what removes the masks that did not cancel."""
        plus: list[Seed] = []
        minus: list[Seed] = []
        weights = _Interpolations()
        for dealer in sorted(opening.survivors):
            seed = weights.rebuild(opening.shares[dealer], plan.share_threshold)
            if secret_commitment(plan.context, dealer, seed) != opening.commitments[dealer]:
                raise _wrong_dealing(plan, dealer)
            minus.append(SelfMaskSeed(seed))
        for dropout in sorted(opening.edges.holders.keys() - opening.survivors):
            mask = MaskSeed(weights.rebuild(opening.shares[dropout], plan.share_threshold))
            # What the dropout would have added to cancel the survivors' masks.
            above, below = _by_sign(dropout, _masks_of_dropout(plan, opening, dropout, mask))
            plus += above
            minus += below
        return MaskStreams(plan, plus, minus)


class _Interpolations:
    """Lagrange weights, kept while the responders stay the same (C36)."""

    def __init__(self) -> None:
        self._last: tuple[tuple[int, ...], shamir.Interpolation] | None = None

    def rebuild(self, shares: Mapping[int, Share], threshold: int) -> bytes:
        holders = tuple(sorted(shares)[:threshold])
        if self._last is None or self._last[0] != holders:
            self._last = (holders, shamir.Interpolation(holders))
        secret = self._last[1].at_zero([shares[holder] for holder in holders])
        return bytes(32) if secret is None else secret


def _streams(plan: RoundPlan, seed: Seed) -> tuple[Keystream, ...]:
    purpose = "pairwise_mask" if isinstance(seed, PairwiseSeed) else "self_mask"
    return tuple(
        Keystream(
            stream_key(seed, label=_LABEL, context=plan.context, purpose=purpose, vector=vector)
        )
        for vector in range(len(plan.vectors))
    )


def _by_sign(
    index: int, pairwise: Iterable[Pairwise]
) -> tuple[list[PairwiseSeed], list[PairwiseSeed]]:
    """Pairwise seeds of `index` with larger and with smaller indices."""
    above: list[PairwiseSeed] = []
    below: list[PairwiseSeed] = []
    for one in pairwise:
        (above if one.other > index else below).append(one.seed)
    return above, below


def _masks_of_dropout(
    plan: RoundPlan, opening: Opening, dropout: int, seed: MaskSeed
) -> Iterator[Pairwise]:
    """The seeds that a dropout shares with survivors, from its rebuilt mask seed."""
    keys, mask = opening.keys, suite.private_keys(plan.suite, seed)
    if suite.public_keys(mask) != (keys[dropout].mask_key, keys[dropout].mask_kem):
        raise _wrong_dealing(plan, dropout)
    mine = Peer(dropout, keys[dropout])
    for other in opening.edges.neighbours(dropout):
        if other in opening.survivors:
            theirs = Peer(other, keys[other])
            pad, commitment = _pad_of_dropout(plan, opening, mine, theirs, seed, mask)
            yield Pairwise(
                other, suite.pairwise_seed(plan.context, mine, theirs, mask, pad, commitment)
            )


def _pad_of_dropout(
    plan: RoundPlan,
    opening: Opening,
    mine: Peer,
    theirs: Peer,
    seed: MaskSeed,
    mask: suite.PrivateKeys,
) -> tuple[Pad | None, bytes]:
    """The pad between a dropout and a survivor: derived again, or taken out of its box (C39).

    Either way a wrong one is the dropout's fault: as a dealer it committed to another pad than its
    seed gives, as a holder it acknowledged a box that it could not use.
    """
    if plan.suite == "x25519":
        return None, b""
    dealer = opening.edges.pad_dealer(mine.index, theirs.index)
    if dealer == mine.index:
        box, commitment = opening.boxes[mine.index, theirs.index]
        pad = suite.pad_of(plan.context, seed, mine.index, theirs.index)
        if suite.pad_commitment(plan.context, dealer, theirs.index, pad, box) != commitment:
            raise _wrong_dealing(plan, mine.index)
        return pad, commitment
    box, commitment = opening.boxes[theirs.index, mine.index]
    try:
        return suite.open_pad(plan.context, theirs, mine, mask, box, commitment), commitment
    except MalformedMessage:
        raise FaultyParticipant(
            plan.cohort[mine.index],
            f"it acknowledged a pad of participant {theirs.index} that does not open",
            step=Step.UNMASK,
        ) from None


def _wrong_dealing(plan: RoundPlan, dealer: int) -> FaultyParticipant:
    """C26: every share matched the dealer's own commitment, so only the dealer can be wrong."""
    return FaultyParticipant(
        plan.cohort[dealer],
        "its shares, each as it committed to them, rebuild another secret than it committed to",
        step=Step.UNMASK,
    )
