"""Scheme `masking`: pairwise masks that cancel in the sum, and a self mask that does not.

    y_i = x_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)   (mod 2^w),  j in U2

Sources: Bonawitz et al. 2017, "Practical Secure Aggregation", figure 4; Bell et al. 2020, section
4. b_i and the mask seed are Shamir-shared; for each member of U2 the aggregator is given shares of
exactly one of them: b_i of a survivor, the mask seed of a dropout.

Not here: who is a survivor (`checks.py`) and what may be released when (`participant_steps.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from secagg import shamir, suite
from secagg.checks import secret_commitment
from secagg.edges import Edges
from secagg.encoding import Levels, from_ring, to_ring
from secagg.errors import FaultyParticipant, MalformedMessage, Step
from secagg.messages import AdvertiseKeys, Answer, ShareKeysBody, Unmask
from secagg.packing import Packer, packed_size
from secagg.plan import RoundPlan
from secagg.prg import (
    Keystream,
    Words,
    add_masks,
    chunk_coordinates,
    new_scratch,
    stream_key,
    word_dtype,
)
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
    SeedShare,
    SelfMaskSeed,
    SelfMaskShare,
    Share,
)
from secagg.suite import Peer

SELF_MASK, MASK_KEY = 0, 1
_LABEL = "secagg/1 masking"


class MaskStreams:
    """The keystreams of one vector set, added with their signs. Serves protecting and opening.

    Threads may share it for different places, to open: each takes a scratch of its own.
    """

    __slots__ = ("_minus", "_packers", "_plus", "_scratches")
    left_out: ClassVar[tuple[int, ...]] = ()

    def __init__(self, plan: RoundPlan, plus: Iterable[Seed], minus: Iterable[Seed]) -> None:
        self._plus = [_streams(plan, seed) for seed in plus]
        self._minus = [_streams(plan, seed) for seed in minus]
        self._scratches: list[NDArray[np.uint8]] = []
        self._packers = _packers(plan)

    def leaf(self, levels: Levels, place: LeafPlace) -> bytes:
        """See `secagg.scheme.Protector`."""
        words = to_ring(levels, place.bits)
        self.mask(words, place)
        return self._packers[place.vector].pack(words)

    def open(self, total: Words, place: LeafPlace) -> tuple[NDArray[np.int64], int]:
        """See `secagg.scheme.Opener`: a wrong sum has no marks but its values."""
        self.mask(total, place)
        return from_ring(total, place.bits), 0

    def mask(self, words: Words, place: LeafPlace) -> None:
        """Add the masks of `place` to `words`, in place."""
        plus = [streams[place.vector] for streams in self._plus]
        minus = [streams[place.vector] for streams in self._minus]
        scratch = self._scratches.pop() if self._scratches else new_scratch()
        add_masks(words, place.chunk, plus, minus, scratch)
        self._scratches.append(scratch)


class MaskedSums:
    """Sums of masked leaves, modulo the ring. See `secagg.scheme.LeafSums`."""

    __slots__ = ("_packers",)

    def __init__(self, plan: RoundPlan) -> None:
        self._packers = _packers(plan)

    def zero(self, place: LeafPlace) -> Words:
        """(place.count,) words."""
        return np.zeros(place.count, word_dtype(place.bits))

    def add(self, total: Words, leaf: bytes | memoryview, place: LeafPlace) -> None:
        """Modulo 2^bits; what is above means nothing."""
        self._packers[place.vector].add(total, leaf)

    def take_out(self, total: Words, leaf: bytes | memoryview, place: LeafPlace) -> None:
        """As `add`, with the other sign."""
        np.negative(total, out=total)
        self.add(total, leaf, place)
        np.negative(total, out=total)


@dataclass(frozen=True, slots=True)
class _Dealt:
    """See `secagg.scheme.DealtShares`: the mask seed is committed to by the advertised key."""

    shares: Mapping[int, tuple[Share, ...]]
    own: bytes

    def commitment(self, leaves_root: bytes) -> bytes:
        return self.own


class Masking:
    """See `secagg.scheme.Scheme`."""

    share_kinds: ClassVar[Sequence[type[Share]]] = (SelfMaskShare, MaskKeyShare)
    has_mask_keys: ClassVar[bool] = True
    answers_are_proven: ClassVar[bool] = True

    def places(self, plan: RoundPlan) -> tuple[LeafPlace, ...]:
        """Vector after vector, one leaf for each chunk of keystream; the weight has its own."""
        return tuple(
            LeafPlace(
                vector, start // step, start, count, bits, packed_size(count, bits),
                weighs=vector == 1, spare=-count * bits % 8,
            )
            for vector, (length, bits) in enumerate(plan.vectors)
            for step in (chunk_coordinates(bits),)
            for start in range(0, length, step)
            for count in (min(step, length - start),)
        )  # fmt: skip

    def share_bytes(self, plan: RoundPlan) -> int:
        """See `shamir.py`."""
        return shamir.SHARE_BYTES

    def commitment_bytes(self, plan: RoundPlan) -> int:
        """A digest."""
        return 32

    def deal(
        self,
        plan: RoundPlan,
        index: int,
        secrets: RoundSecrets,
        holders: Sequence[int],
        threshold: int,
        randomness: Randomness,
    ) -> _Dealt:
        """t-of-k shares of the self-mask seed and of the mask seed."""
        self_mask = shamir.split(secrets.self_mask, holders, threshold, SelfMaskShare, randomness)
        mask = shamir.split(secrets.mask, holders, threshold, MaskKeyShare, randomness)
        shares = {holder: (self_mask[holder], mask[holder]) for holder in holders}
        own = secret_commitment(plan.context, index, secrets.self_mask.expose())
        return _Dealt(shares, own)

    def check_shares(
        self,
        plan: RoundPlan,
        dealer: int,
        holder: int,
        body: ShareKeysBody,
        shares: Sequence[Share],
    ) -> None:
        """Field elements; whether they rebuild what was committed to shows when they do (C26)."""
        for share in shares:
            shamir.parse_share(share.expose(), SeedShare)

    def leaf_sums(self, plan: RoundPlan) -> MaskedSums:
        """Modulo the ring."""
        return MaskedSums(plan)

    def released(self, members: Sequence[int], shares: Mapping[int, Sized], sums: Sized) -> int:
        """Of each dealer the one kind that may be released."""
        return min(len(shares.get(dealer, ())) for dealer in members)

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

    def check_sum_of_shares(self, plan: RoundPlan, holds: bool, key_sum: bytes) -> None:
        """Here shares are released one by one, and never a sum."""
        raise MalformedMessage("scheme masking releases no sums of shares", step=Step.UNMASK)

    def expected_kind(self, dealer: int, survivors: frozenset[int]) -> int:
        """Self-mask shares of survivors, mask-key shares of dropouts (C24)."""
        return SELF_MASK if dealer in survivors else MASK_KEY

    def answer(
        self,
        plan: RoundPlan,
        view: bytes,
        survivors: frozenset[int],
        held: Mapping[int, Sequence[Opened]],
    ) -> Unmask:
        """One share for each held dealer in U2, of the one kind that may be released."""
        kinds = {dealer: self.expected_kind(dealer, survivors) for dealer in sorted(held)}
        answers = tuple(
            Answer(dealer, kind, held[dealer][kind].share.expose(), held[dealer][kind].opening)
            for dealer, kind in kinds.items()
        )
        return Unmask(view, answers)

    def candidates(self, plan: RoundPlan, opening: Opening) -> Iterator[MaskStreams]:
        """The one that there is."""
        yield self.opener(plan, opening)

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


def _packers(plan: RoundPlan) -> tuple[Packer, ...]:
    return tuple(Packer(bits, chunk_coordinates(bits)) for _, bits in plan.vectors)


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
