"""Tenants that deviate, each in one way: what a coordinator has to live with.

Each class is a real participant with its keys, whose messages, dealing or upload are changed. Put
them into a round by `make_round(kinds={"t001": FalseComplaint})`. One of them among up to f costs
at most f tenants their place and never the round, but for those in `ends_rounds(plan)`.

    complaints      FalseComplaint, RefusesEverybody
    dealings        WrongShare, UnopenableBundle, OffPolynomial, OtherSecret, BadPadBox, OtherPad,
                    ChosenHolders
    uploads         ForeignView, PoisonedUpload, RandomUpload, OtherRoot
    answers         WrongAnswers, MissingAnswer, OtherKind, AnotherU3
    messages        TwoFaced, Nonsense, BorrowedName, ForeignDirectory

`ckks_deviations.py` has those that scheme `ckks` alone knows; `deviations(plan)` are all that make
sense in a round of this plan.

Not here: coordinators that deviate (`coalition.py`), and faults of links (`faults.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import comb
from typing import cast

import numpy as np

from secagg import checks, merkle, suite
from secagg import participant_steps as steps
from secagg.encoding import Levels
from secagg.messages import (
    Acknowledge,
    AdvertiseKeys,
    Answer,
    Body,
    KeyDirectory,
    Leaf,
    ShareKeys,
    ShareKeysBody,
    Signed,
    Survivors,
    Unmask,
    UploadCommitment,
    UploadHeader,
    decode_message,
)
from secagg.plan import RoundPlan
from secagg.records import encode
from secagg.scheme import DealtPad, LeafPlace, RoundSecrets, scheme_of
from secagg.secret import Pad, Share
from secagg.suite import Peer
from secagg.testing.randomness import SeededRandomness
from secagg.testing.tenant import SimulatedTenant


class DeviatingTenant(SimulatedTenant):
    """An honest tenant; subclasses change what it says. Each change is signed as its own."""

    def offer(self, plan: bytes) -> list[bytes]:
        """See `SimulatedTenant`."""
        return self._changed(super().offer(plan))

    def receive(self, message: bytes) -> list[bytes]:
        """See `SimulatedTenant`."""
        return self._changed(super().receive(message))

    def submit(self) -> list[bytes]:
        """See `SimulatedTenant`."""
        return self._changed(super().submit())

    def finish_upload(self) -> list[bytes]:
        """See `SimulatedTenant`."""
        return self._changed(super().finish_upload())

    def deviate(self, body: Body) -> Sequence[Body]:
        """What is said in place of a signed body; by default that body."""
        return (body,)

    def deal(self, message: ShareKeys) -> ShareKeys:
        """What is dealt in place of an honest dealing."""
        return message

    @property
    def me(self) -> steps.Self:
        """Who it is, as the steps take it."""
        return self.running._me

    def _changed(self, messages: list[bytes]) -> list[bytes]:
        changed: list[bytes] = []
        for data in messages:
            message = decode_message(data)
            if isinstance(message, ShareKeys):
                changed.append(encode(self.deal(message)))
            else:
                changed += self._said(cast(Signed, message))
        return changed

    def _said(self, signed: Signed) -> list[bytes]:
        kind = _KINDS[signed.label]
        body = signed.read(kind)
        return [
            encode(signed if said == body else self.me.sign(said)) for said in self.deviate(body)
        ]

    def keep_own(self, signed: Signed) -> None:
        """Go on with this as its own message, so that its own checks let it."""
        state = cast(steps.Acknowledged, self.running._state)
        self.running._state = replace(state, own=signed)

    def others(self) -> tuple[int, ...]:
        """The other members of the cohort."""
        return tuple(index for index in range(self.me.setting.plan.n) if index != self.me.index)


_KINDS: dict[str, type[Body]] = {
    kind.LABEL: kind
    for kind in (AdvertiseKeys, Acknowledge, UploadHeader, UploadCommitment, Survivors, Unmask)
}


# ---------------------------------------------------------------------------- complaints


class FalseComplaint(DeviatingTenant):
    """Refuses the shares of one dealer, which are right."""

    def deviate(self, body: Body) -> Sequence[Body]:
        """An acknowledgement that refuses the first other dealer whose shares it holds."""
        return (self._refusing(body, 1),) if isinstance(body, Acknowledge) else (body,)

    def _refusing(self, body: Acknowledge, most: int) -> Acknowledge:
        state = self.running._state
        held = state.held if isinstance(state, steps.Acknowledged) else ()
        dealers = [one.dealer for one in held if one.dealer != self.me.index]
        false = replace(body, refused=tuple(sorted({*body.refused, *dealers[:most]})))
        self.keep_own(self.me.sign(false))
        return false


class RefusesEverybody(FalseComplaint):
    """Refuses the shares of every other dealer."""

    def deviate(self, body: Body) -> Sequence[Body]:
        """An acknowledgement that refuses everybody."""
        if isinstance(body, Acknowledge):
            return (self._refusing(body, self.me.setting.plan.n),)
        return (body,)


# ---------------------------------------------------------------------------- dealings


class DeviatingDealer(DeviatingTenant):
    """Deals anew, with changed leaves, holders or degree."""

    degree = 0

    def receive(self, message: bytes) -> list[bytes]:
        """Deal in its own way when U1 comes; else as an honest tenant."""
        before = self.running._state
        self._directory = decode_message(message)
        self._before = before
        return super().receive(message)

    def deal(self, message: ShareKeys) -> ShareKeys:
        """A dealing under a new signature, from the same secrets."""
        before, directory = self._before, self._directory
        if not isinstance(before, steps.Advertised) or not isinstance(directory, KeyDirectory):
            return message
        me, plan = self.me, self.me.setting.plan
        keys = {one.sender: one.read(AdvertiseKeys) for one in directory.keys}
        holders = self.chosen(message.body.read(ShareKeysBody).holders)
        dealer = steps._Dealer(me, before.secrets, keys, self.randomness)
        threshold = plan.share_threshold + self.degree
        dealt = scheme_of(plan).deal(
            plan, me.index, self.shared(before.secrets), holders, threshold, self.randomness
        )
        leaves = tuple(
            self.leaf(dealer, keys, dealer.leaf(holder, self.shares(holder, dealt.shares[holder])))
            for holder in holders
        )
        root = merkle.root([checks.leaf_digest(leaf.outline) for leaf in leaves])
        commitment = dealt.commitment(root)[: scheme_of(plan).commitment_bytes(plan)]
        own = me.sign(self._body(ShareKeysBody(holders, commitment, root), leaves))
        self.running._state = steps.Dealt(
            before.secrets, directory, own, tuple(dealer.kept), tuple(dealer.pads)
        )
        return ShareKeys(own, leaves)

    def chosen(self, holders: tuple[int, ...]) -> tuple[int, ...]:
        """Whom it deals to."""
        return holders

    def shared(self, secrets: RoundSecrets) -> RoundSecrets:
        """What it shares."""
        return secrets

    def shares(self, holder: int, honest: tuple[Share, ...]) -> tuple[Share, ...]:
        """What it commits to and seals for a holder."""
        return honest

    def leaf(self, dealer: steps._Dealer, keys: dict[int, AdvertiseKeys], leaf: Leaf) -> Leaf:
        """One leaf, as it is dealt."""
        return leaf

    def _body(self, honest: ShareKeysBody, leaves: tuple[Leaf, ...]) -> ShareKeysBody:
        return honest

    def is_victim(self, holder: int) -> bool:
        """Whether this is the one holder that it wrongs: the other of smallest index."""
        state = self._directory
        present = state.keys if isinstance(state, KeyDirectory) else ()
        return holder == next(one.sender for one in present if one.sender != self.me.index)


class WrongShare(DeviatingDealer):
    """Commits to another share than it seals, for one holder: that one complains."""

    def leaf(self, dealer: steps._Dealer, keys: dict[int, AdvertiseKeys], leaf: Leaf) -> Leaf:
        """See the class."""
        wrong = (flipped(leaf.commitments[0]), *leaf.commitments[1:])
        return replace(leaf, commitments=wrong) if self.is_victim(leaf.holder) else leaf


class UnopenableBundle(DeviatingDealer):
    """Seals nothing that opens, for one holder."""

    def leaf(self, dealer: steps._Dealer, keys: dict[int, AdvertiseKeys], leaf: Leaf) -> Leaf:
        """See the class."""
        return replace(leaf, sealed=flipped(leaf.sealed)) if self.is_victim(leaf.holder) else leaf


class OffPolynomial(DeviatingDealer):
    """Shares of too high a degree, each as committed to: noticed when t of them are opened; in
    scheme `ckks` by every holder."""

    degree = 1


class OtherSecret(DeviatingDealer):
    """Commits to another self-mask seed than it shares; in scheme `ckks` to another key."""

    def _body(self, honest: ShareKeysBody, leaves: tuple[Leaf, ...]) -> ShareKeysBody:
        size = len(honest.secret_commitment)
        return replace(honest, secret_commitment=bytes(size))


class BadPadBox(DeviatingDealer):
    """A pad box that does not open, for one holder (hybrid suites)."""

    def leaf(self, dealer: steps._Dealer, keys: dict[int, AdvertiseKeys], leaf: Leaf) -> Leaf:
        """See the class."""
        spoilt = bool(leaf.pad_box) and leaf.holder == self._padded(dealer)
        return replace(leaf, pad_box=flipped(leaf.pad_box)) if spoilt else leaf

    def _padded(self, dealer: steps._Dealer) -> int:
        return dealer.pads[0].holder


class OtherPad(DeviatingDealer):
    """Deals pads that do not follow from its mask seed: noticed if it drops out."""

    def leaf(self, dealer: steps._Dealer, keys: dict[int, AdvertiseKeys], leaf: Leaf) -> Leaf:
        """See the class."""
        if not leaf.pad_box:
            return leaf
        me, pad = self.me, Pad(self.randomness(32))
        mine, theirs = Peer(me.index, keys[me.index]), Peer(leaf.holder, keys[leaf.holder])
        box, commitment = suite.seal_pad(me.setting.context, mine, theirs, pad)
        dealer.pads[-1] = DealtPad(me.index, leaf.holder, pad, commitment)
        return replace(leaf, pad_box=box, pad_commitment=commitment)


class ChosenHolders(DeviatingDealer):
    """On a sparse graph, deals to the first t others in place of those it drew."""

    def chosen(self, holders: tuple[int, ...]) -> tuple[int, ...]:
        """See the class."""
        plan, directory = self.me.setting.plan, self._directory
        if plan.complete or not isinstance(directory, KeyDirectory):
            return holders
        others = [one.sender for one in directory.keys if one.sender != self.me.index]
        return tuple(others[: plan.share_threshold])


# ---------------------------------------------------------------------------- uploads


class ForeignView(DeviatingTenant):
    """Announces its upload under another view: it is a dropout, and nobody else is harmed."""

    def deviate(self, body: Body) -> Sequence[Body]:
        """See the class."""
        if isinstance(body, UploadHeader | UploadCommitment):
            return (replace(body, view=flipped(body.view)),)
        return (body,)


class PoisonedUpload(DeviatingTenant):
    """Honest in form: its levels are what no quantiser makes, and a sum beyond range is seen."""

    def submit(self) -> list[bytes]:
        """See the class."""
        messages = super().submit()
        upload = self.running._submitted()
        upload.levels = self._poisoned(upload.levels)  # type: ignore[method-assign, assignment]
        self.levels = self.running.encoded_levels()
        return messages

    def _poisoned(self, honest: Callable[[LeafPlace], Levels]) -> Callable[[LeafPlace], Levels]:
        most = self.running.plan.quantiser.max_level
        return lambda place: honest(place) * 0 + most * 4 if place.vector == 0 else honest(place)


class RandomUpload(DeviatingTenant):
    """Uploads random bytes, well signed. What its levels were cannot be said."""

    def submit(self) -> list[bytes]:
        """See the class."""
        messages = super().submit()
        self.running._submitted().levels = self._random  # type: ignore[method-assign]
        self.levels = None
        return messages

    def _random(self, place: LeafPlace) -> Levels:
        draw = SeededRandomness(f"random upload {self.name} {place.vector} {place.chunk}")
        words = np.frombuffer(draw(8 * place.count), "<i8")
        return words >> np.int64(64 - place.bits)


class OtherRoot(DeviatingTenant):
    """Commits to another root than that of the bytes it sent."""

    def deviate(self, body: Body) -> Sequence[Body]:
        """See the class."""
        return (replace(body, root=bytes(32)) if isinstance(body, UploadCommitment) else body,)


# ---------------------------------------------------------------------------- answers


class WrongAnswers(DeviatingTenant):
    """Opens a share of each dealer that is not the one it was dealt, or another sum of shares."""

    def deviate(self, body: Body) -> Sequence[Body]:
        """See the class."""
        return (self._answering(body),) if isinstance(body, Unmask) else (body,)

    def _answering(self, body: Unmask) -> Unmask:
        wrong = [replace(one, share=flipped(one.share)) for one in body.answers]
        return replace(body, answers=tuple(wrong), key_sum=flipped(body.key_sum))


class MissingAnswer(WrongAnswers):
    """Withholds its share of one dealer, or the sum of them."""

    def _answering(self, body: Unmask) -> Unmask:
        return replace(body, answers=body.answers[:-1], key_sum=b"")


class OtherKind(WrongAnswers):
    """Opens the other kind of share of each dealer, which must not count for anything."""

    def receive(self, message: bytes) -> list[bytes]:
        """See the class."""
        state = self.running._state
        self._held = state.uploaded.held if isinstance(state, steps.Confirmed) else ()
        return super().receive(message)

    def _answering(self, body: Unmask) -> Unmask:
        held = {one.dealer: one.opened for one in self._held}
        if not held:
            return body  # asked again: the shares are gone
        scheme = scheme_of(self.me.setting.plan)
        asked = frozenset(one.dealer for one in body.answers if one.kind == 0)
        swapped: list[Answer] = []
        for one in body.answers:
            other = asked - {one.dealer} if one.dealer in asked else asked | {one.dealer}
            swapped += scheme.answer(
                self.me.setting.plan, body.view, other, {one.dealer: held[one.dealer]}
            ).answers
        return replace(body, answers=tuple(swapped))


class AnotherU3(DeviatingTenant):
    """Signs another set of survivors than the announced one, and nothing else."""

    def deviate(self, body: Body) -> Sequence[Body]:
        """See the class."""
        return (replace(body, members_digest=bytes(32)) if isinstance(body, Survivors) else body,)


# ---------------------------------------------------------------------------- messages


class TwoFaced(DeviatingTenant):
    """Signs a second, different message wherever it can: that is proof against it."""

    def deviate(self, body: Body) -> Sequence[Body]:
        """See the class."""
        match body:
            case AdvertiseKeys():
                return (body, replace(body, channel_key=flipped(body.channel_key)))
            case Acknowledge():
                return (body, replace(body, directory_digest=bytes(32)))
            case UploadHeader():
                return (body, replace(body, length=body.length + 1))
            case UploadCommitment():
                return (body, replace(body, root=bytes(32)))
            case Survivors():
                return (body, replace(body, members_digest=bytes(32)))
            case Unmask():
                return (body, replace(body, view=bytes(32)))
            case _:
                raise TypeError("dealings go through `deal`")


class Nonsense(DeviatingTenant):
    """Says what is no message, before and after each right one."""

    def _changed(self, messages: list[bytes]) -> list[bytes]:
        spoilt = [[b"", b"\x01nonsense", one, one[:-1], one + b"\0"] for one in messages]
        return [one for group in spoilt for one in group]


class BorrowedName(DeviatingTenant):
    """Says everything a second time in another's name, with its own signature."""

    def _said(self, signed: Signed) -> list[bytes]:
        borrowed = replace(signed, sender=self.others()[0])
        return [encode(borrowed), *super()._said(signed)]


class ForeignDirectory(DeviatingTenant):
    """Acknowledges another U1 than the one it was shown."""

    def deviate(self, body: Body) -> Sequence[Body]:
        """See the class."""
        if isinstance(body, Acknowledge):
            return (replace(body, directory_digest=bytes(32)),)
        return (body,)


ENDS_ROUNDS: tuple[type[SimulatedTenant], ...] = (
    OffPolynomial, OtherSecret, PoisonedUpload, RandomUpload,
)  # fmt: skip
"""Those that can end a round of scheme `masking`: a wrong dealing comes out when shares are opened,
a poisoned sum when it is read. The first two are named with proof."""

DEVIATIONS: tuple[type[SimulatedTenant], ...] = (
    FalseComplaint, RefusesEverybody, WrongShare, UnopenableBundle, OffPolynomial, OtherSecret,
    BadPadBox, OtherPad, ChosenHolders, ForeignView, PoisonedUpload, RandomUpload, OtherRoot,
    WrongAnswers, MissingAnswer, OtherKind, AnotherU3, TwoFaced, Nonsense, BorrowedName,
    ForeignDirectory,
)  # fmt: skip

_ONLY_MASKING = (BadPadBox, OtherPad, ChosenHolders, OtherKind)


def deviations(plan: RoundPlan) -> tuple[type[SimulatedTenant], ...]:
    """Every kind that can deviate in a round of this plan."""
    if plan.scheme == "masking":
        return DEVIATIONS
    from secagg.testing import ckks_deviations as ckks

    return (*(kind for kind in DEVIATIONS if kind not in _ONLY_MASKING), *ckks.CKKS_DEVIATIONS)


def ends_rounds(plan: RoundPlan) -> tuple[type[SimulatedTenant], ...]:
    """Those that can end a round of this plan, among up to f that deviate."""
    if plan.scheme == "masking":
        return ENDS_ROUNDS
    from secagg.ckks.scheme import _MOST_CHOICES
    from secagg.testing import ckks_deviations as ckks

    # Every choice of t sums is tried in small cohorts; in larger ones enough others have to agree.
    t, f = plan.share_threshold, plan.max_colluders
    few = plan.share_count >= t + f and comb(t + f, t) <= _MOST_CHOICES
    tellable = few or plan.share_count >= t + 2 * f
    return ckks.UNOPENABLE if tellable else (*ckks.UNOPENABLE, *ckks.WRONG_SUMS)


def flipped(data: bytes) -> bytes:
    """The same with its last bit changed."""
    return data[:-1] + bytes([data[-1] ^ 1]) if data else data
