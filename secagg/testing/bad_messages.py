"""What a participant must refuse, message by message: each a right one with one thing wrong.

Each generator yields (why, message) for the step that a `Stage` stands in; `why` names the check in
docs/protocol.md. `BAD_LEAVES` are not refused: they are complained about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from secagg import checks, merkle
from secagg.messages import (
    Acknowledge,
    AdvertiseKeys,
    AgreedView,
    Body,
    DeliveredLeaf,
    KeyDirectory,
    Quorum,
    ShareKeys,
    ShareKeysBody,
    Signed,
    Survivors,
    SurvivorSet,
    UploadCommitment,
)
from secagg.testing.stage import ME, BadMessage, Stage


def bad_directories(stage: Stage) -> Iterator[BadMessage]:
    """U1 (C02 to C07)."""
    right = stage.coalition.directory(stage.everybody).keys
    for why, records in _bad_records(stage, right, AdvertiseKeys):
        yield f"U1: {why}", KeyDirectory(records)
    yield "U1 without itself (C07)", KeyDirectory(tuple(r for r in right if r.sender != ME))
    few = [*stage.others[: stage.plan.least - 2], ME]
    yield "U1 too small (C05)", stage.coalition.directory(few)
    for why, keys in _bad_keys(stage, right):
        yield f"U1: {why} (C06)", KeyDirectory(_with(right, stage.sign(0, keys)))


def _bad_keys(stage: Stage, records: tuple[Signed, ...]) -> Iterator[tuple[str, AdvertiseKeys]]:
    keys = records[0].read(AdvertiseKeys)
    other = records[2].read(AdvertiseKeys)
    for name, key in (
        ("the point 0", bytes(32)),
        ("the point 1", (1).to_bytes(32, "little")),
        ("a point that is not canonical", (2**255 - 19 + 9).to_bytes(32, "little")),
        ("a point with its top bit set", keys.channel_key[:-1] + b"\xff"),
    ):
        yield name, replace(keys, mask_key=key)
        yield name, replace(keys, channel_key=key)
    yield "one key twice", replace(keys, mask_key=keys.channel_key)
    if keys.mask_key:
        yield "another's key", replace(keys, mask_key=other.mask_key)
    yield "another's channel key", replace(keys, channel_key=other.channel_key)
    for kem in (keys.mask_kem + b"\0", keys.mask_kem[:-1] or b"\0", b"\xff" * 1184):
        yield "a malformed KEM key", replace(keys, mask_kem=kem)
        yield "a malformed KEM key", replace(keys, channel_kem=kem)


def _bad_records(
    stage: Stage, right: tuple[Signed, ...], kind: type[Body]
) -> Iterator[tuple[str, tuple[Signed, ...]]]:
    """What may be wrong with any list of signed records (C02, C03, C04)."""
    first, last = right[0], right[-1]
    later = stage.plan.next_round(stage.plan.round_number + 1)
    identity = stage.members.identity(stage.plan.cohort[first.sender])
    elsewhere = Signed.create(later, identity, first.read(kind))
    yield "a sender outside the cohort (C02)", (*right[:-1], replace(last, sender=stage.plan.n))
    yield "a signature of zeros (C03)", (replace(first, signature=bytes(64)), *right[1:])
    yield "another's signature (C03)", (replace(first, signature=last.signature), *right[1:])
    yield "another's record (C03)", (replace(last, sender=first.sender), *right[1:])
    yield "signed for another round (C03)", (elsewhere, *right[1:])
    yield "signed under another label (C03)", (replace(first, label="unmask"), *right[1:])
    yield "a record twice (C04)", (first, *right)
    yield "out of order (C04)", (right[1], first, *right[2:])


def _with(records: tuple[Signed, ...], changed: Signed) -> tuple[Signed, ...]:
    return tuple(changed if one.sender == changed.sender else one for one in records)


def bad_deliveries(stage: Stage) -> Iterator[BadMessage]:
    """Dealings and leaves (C03, C04, C08, C10)."""
    right = stage.coalition.delivery(stage.mark, stage.everybody)
    for why, records in _bad_records(stage, right.bodies, ShareKeysBody):
        yield f"dealings: {why}", replace(right, bodies=records)
    without = tuple(one for one in right.bodies if one.sender != ME)
    yield "dealings without its own (C10)", replace(right, bodies=without)
    body = right.bodies[0].read(ShareKeysBody)
    for why, holders in (
        ("none", ()),
        ("too few holders", body.holders[: stage.plan.share_threshold - 1]),
        ("a holder outside U1", (*body.holders[:-1], stage.plan.n + 3)),
        ("holders out of order", tuple(reversed(body.holders))),
        ("a holder twice", (body.holders[0], *body.holders[:-1])),
    ):
        wrong = stage.sign(0, replace(body, holders=holders))
        yield f"dealings: {why} (C08)", replace(right, bodies=_with(right.bodies, wrong))
    leaves = right.leaves
    yield "leaves out of order (C08)", replace(right, leaves=(leaves[1], leaves[0], *leaves[2:]))
    yield "a leaf twice (C08)", replace(right, leaves=(leaves[0], *leaves))
    dropped = tuple(one for one in right.bodies if one.sender != leaves[0].dealer)
    yield "a leaf of nobody's dealing (C08)", replace(right, bodies=dropped)


def _bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1]) if data else data


BadLeaf = Callable[[DeliveredLeaf, DeliveredLeaf], DeliveredLeaf | None]


def _changed_leaf(field: str, longer: bool = False) -> BadLeaf:
    def change(one: DeliveredLeaf, other: DeliveredLeaf) -> DeliveredLeaf:
        value = getattr(one.leaf, field)
        if not value and not longer:
            return one
        changes: dict[str, Any] = {field: value + b"\0" if longer else _bit(value)}
        return replace(one, leaf=replace(one.leaf, **changes))

    return change


def _other_commitment(one: DeliveredLeaf, other: DeliveredLeaf) -> DeliveredLeaf:
    return replace(one, leaf=replace(one.leaf, commitments=other.leaf.commitments))


BAD_LEAVES: dict[str, BadLeaf] = {
    "a leaf that is missing": lambda one, other: None,
    "a path of another leaf (C09)": lambda one, other: replace(one, path=other.path[::-1]),
    "no path (C09)": lambda one, other: replace(one, path=()),
    "another holder's leaf (C09)": lambda one, other: replace(
        one, leaf=replace(one.leaf, holder=one.dealer)
    ),
    "another dealer's leaf (C11)": lambda one, other: replace(one, leaf=other.leaf),
    "a bundle that does not open (C11)": _changed_leaf("sealed"),
    "a bundle that is too long (C09)": _changed_leaf("sealed", longer=True),
    "another encapsulation (C11)": _changed_leaf("encapsulation"),
    "an encapsulation that is too long (C09)": _changed_leaf("encapsulation", longer=True),
    "other commitments (C11)": _other_commitment,
    "a pad box that does not open (C39)": _changed_leaf("pad_box"),
    "a pad that is not committed to (C39)": _changed_leaf("pad_commitment"),
    "a pad box where none belongs (C09)": _changed_leaf("pad_box", longer=True),
}


def redealt(stage: Stage, dealer: int, dealing: ShareKeys, change: BadLeaf) -> ShareKeys | None:
    """A dealer's other dealing, in which the host's leaf is changed; None where it cannot be."""
    place = [leaf.holder for leaf in dealing.leaves].index(ME)
    other = next(n for n, leaf in enumerate(dealing.leaves) if leaf.holder not in (ME, dealer))
    one = DeliveredLeaf(dealer, dealing.leaves[place], ())
    bad = change(one, DeliveredLeaf(dealer, dealing.leaves[other], ()))
    if bad is None or bad.leaf == one.leaf or bad.leaf.holder != ME:
        return None
    leaves = (*dealing.leaves[:place], bad.leaf, *dealing.leaves[place + 1 :])
    root = merkle.root([checks.leaf_digest(leaf.outline) for leaf in leaves])
    body = replace(dealing.body.read(ShareKeysBody), leaves_root=root)
    return ShareKeys(stage.sign(dealer, body), leaves)


def bad_views(stage: Stage) -> Iterator[BadMessage]:
    """U2 (C03 to C05, C13 to C15)."""
    right = stage.coalition.agreed(stage.mark, stage.everybody).acknowledgements
    for why, records in _bad_records(stage, right, Acknowledge):
        yield f"U2: {why}", AgreedView(records)
    yield "U2 without itself (C15)", AgreedView(tuple(r for r in right if r.sender != ME))
    few = [*stage.others[: stage.plan.least - 2], ME]
    yield "U2 too small (C05)", stage.coalition.agreed(stage.mark, few)
    body = right[0].read(Acknowledge)
    for why, changed in (
        ("another U1 (C13)", replace(body, directory_digest=bytes(32))),
        ("other dealings (C14)", replace(body, dealings_digest=bytes(32))),
        ("a member refused (C14)", replace(body, refused=(2,))),
        ("the host refused (C14)", replace(body, refused=(ME,))),
    ):
        yield f"U2: {why}", AgreedView(_with(right, stage.sign(0, changed)))


def bad_survivors(stage: Stage) -> Iterator[BadMessage]:
    """U3 (C03, C04, C18, C20 to C22)."""
    right = stage.coalition.survivors(stage.mark, stage.everybody).commitments
    for why, records in _bad_records(stage, right, UploadCommitment):
        yield f"U3: {why}", SurvivorSet(records)
    yield "U3 without itself (C22)", SurvivorSet(tuple(r for r in right if r.sender != ME))
    few = [*stage.others[: stage.plan.least - 2], ME]
    yield "U3 too small (C20)", stage.coalition.survivors(stage.mark, few)
    body = right[0].read(UploadCommitment)
    for why, changed in (
        ("another view (C18)", replace(body, view=bytes(32))),
        ("another length (C18)", replace(body, length=body.length + 1)),
    ):
        yield f"U3: {why}", SurvivorSet(_with(right, stage.sign(0, changed)))
    if (left := _too_few_holders(stage)) is not None:
        yield "U3 with too few holders of one (C21)", stage.coalition.survivors(stage.mark, left)


def _too_few_holders(stage: Stage) -> list[int] | None:
    """Survivors, enough of them, among whom somebody has fewer than t holders (sparse graphs)."""
    view, plan = stage.mark.view, stage.plan
    for dealer, holders in view.edges.holders.items() if view else ():
        lost = sorted(holders - {ME})[: plan.n - plan.least]
        left = [one for one in stage.everybody if one not in lost]
        if len(holders & set(left)) < plan.share_threshold and dealer != ME:
            return left
    return None


def bad_quorums(stage: Stage) -> Iterator[BadMessage]:
    """Signatures over U3 (C03, C04, C23)."""
    right = stage.coalition.quorum(stage.mark, stage.everybody).signatures
    for why, records in _bad_records(stage, right, Survivors):
        yield f"quorum: {why}", Quorum(records)
    for count in range(stage.plan.quorum):
        yield f"{count} signatures (C23)", Quorum(right[:count])
    body = right[0].read(Survivors)
    for why, changed in (
        ("over another U3", replace(body, members_digest=bytes(32))),
        ("under another view", replace(body, view=bytes(32))),
    ):
        yield f"a signature {why} (C23)", Quorum(_with(right, stage.sign(0, changed)))
