"""What a round costs on the wire: bytes of one tenant by step, from the messages' own encoders.

For a round without dropouts, complaints or transport framing. Messages are not built in full: they
grow by the same bytes with each member, and are counted from one of them. In scheme `ckks` a tenant
outside the committee receives no shares and releases none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from secagg.checks import bundle_bytes
from secagg.errors import Step
from secagg.messages import (
    Acknowledge,
    AdvertiseKeys,
    AgreedView,
    Answer,
    DeliveredLeaf,
    KeyDirectory,
    Leaf,
    Quorum,
    ShareDelivery,
    ShareKeys,
    ShareKeysBody,
    Signed,
    Survivors,
    SurvivorSet,
    Unmask,
    UploadCommitment,
    UploadHeader,
)
from secagg.plan import RoundPlan
from secagg.records import encode
from secagg.scheme import scheme_of, upload_bytes
from secagg.suite import KEM_KEY_BYTES, TAG_BYTES, encapsulation_bytes, pad_box_bytes

_DIGEST, _SIGNATURE = bytes(32), bytes(64)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one tenant in one step."""

    up: int
    down: int


def traffic(plan: RoundPlan, *, holds: bool = True) -> dict[Step, Traffic]:
    """Every step's bytes, for one tenant (on a sparse graph: with as many leaves as holders).

    `holds`: whether it is one of those who hold shares, as all are but in a `ckks` committee.
    """
    return {step: count(plan, holds) for step, count in _TRAFFIC.items()}


def everybodys_bytes(plan: RoundPlan) -> Traffic:
    """All tenants over all steps: what the coordinator receives (`up`) and sends (`down`)."""
    outside = 0 if not plan.same_holders else plan.n - len(plan.same_holders)
    parts = [(plan.n - outside, traffic(plan).values())]
    if outside:
        parts.append((outside, traffic(plan, holds=False).values()))
    return Traffic(
        sum(count * sum(one.up for one in steps) for count, steps in parts),
        sum(count * sum(one.down for one in steps) for count, steps in parts),
    )


def _advertise_keys(plan: RoundPlan, holds: bool) -> Traffic:
    kem = b"" if plan.suite == "x25519" else bytes(KEM_KEY_BYTES)
    masks = (_DIGEST, kem) if scheme_of(plan).has_mask_keys else (b"", b"")
    one = _signed(plan, AdvertiseKeys(_DIGEST, masks[0], kem, masks[1]))
    return Traffic(_size(one), _many(plan.n, lambda count: KeyDirectory((one,) * count)))


def _share_keys(plan: RoundPlan, holds: bool) -> Traffic:
    commitment = bytes(scheme_of(plan).commitment_bytes(plan))
    body = _signed(plan, ShareKeysBody(tuple(range(plan.share_count)), commitment, _DIGEST))
    dealt, received = _leaves(plan, holds)
    return Traffic(
        _size(ShareKeys(body, dealt)),
        _many(plan.n, lambda count: ShareDelivery((body,) * count, ()))
        + _size(ShareDelivery((), received))
        - _size(ShareDelivery((), ())),
    )


def _leaves(plan: RoundPlan, holds: bool) -> tuple[tuple[Leaf, ...], tuple[DeliveredLeaf, ...]]:
    """What one tenant deals and what it is dealt."""
    scheme, k = scheme_of(plan), plan.share_count
    commitments = (_DIGEST,) * len(scheme.share_kinds)
    sealed = (bytes(encapsulation_bytes(plan.suite)), bytes(bundle_bytes(plan) + TAG_BYTES))
    pad_box = bytes(pad_box_bytes(plan.suite)) if scheme.has_mask_keys else b""
    leaf = Leaf(0, *sealed, commitments, pad_box, _DIGEST if pad_box else b"")
    bare = Leaf(0, *sealed, commitments)
    path = (_DIGEST,) * (k - 1).bit_length()
    own = (Leaf(0, b"", b"", commitments),) * (holds and bool(plan.same_holders))
    # On the complete graph one of each pair seals a pad; the own leaf is a hash's worth of bytes.
    others = k - len(own)
    pads = (others // 2 if plan.complete else others) * scheme.has_mask_keys
    leaves = (leaf,) * pads + (bare,) * (others - pads)
    if scheme.has_mask_keys:
        return own + leaves, tuple(DeliveredLeaf(0, one, path) for one in leaves)
    return own + leaves, (DeliveredLeaf(0, bare, path),) * ((plan.n - 1) * holds)


def _acknowledge(plan: RoundPlan, holds: bool) -> Traffic:
    one = _signed(plan, Acknowledge(_DIGEST, _DIGEST, ()))
    return Traffic(_size(one), _many(plan.n, lambda count: AgreedView((one,) * count)))


def _masked_input(plan: RoundPlan, holds: bool) -> Traffic:
    header = _signed(plan, UploadHeader(_DIGEST, 0))
    commitment = _signed(plan, UploadCommitment(_DIGEST, _DIGEST, 0))
    return Traffic(
        _size(header) + upload_bytes(plan) + _size(commitment),
        _many(plan.n, lambda count: SurvivorSet((commitment,) * count)),
    )


def _consistency_check(plan: RoundPlan, holds: bool) -> Traffic:
    one = _signed(plan, Survivors(_DIGEST, _DIGEST))
    return Traffic(_size(one), _many(plan.quorum, lambda count: Quorum((one,) * count)))


def _unmask(plan: RoundPlan, holds: bool) -> Traffic:
    if plan.ckks is None:
        answer = Unmask(_DIGEST, (Answer(0, 0, bytes(33), _DIGEST),) * plan.share_count)
    else:
        answer = Unmask(_DIGEST, (), bytes(plan.ckks.share_bytes * holds))
    return Traffic(_size(_signed(plan, answer)), 0)


_TRAFFIC: dict[Step, Callable[[RoundPlan, bool], Traffic]] = {
    Step.ADVERTISE_KEYS: _advertise_keys,
    Step.SHARE_KEYS: _share_keys,
    Step.ACKNOWLEDGE: _acknowledge,
    Step.MASKED_INPUT: _masked_input,
    Step.CONSISTENCY_CHECK: _consistency_check,
    Step.UNMASK: _unmask,
}


def _signed(plan: RoundPlan, body: Any) -> Signed:
    return Signed(body.LABEL, 0, encode(body), _SIGNATURE)


def _size(record: object) -> int:
    return len(encode(record))


def _many(count: int, record: Callable[[int], object]) -> int:
    """The size of a record of `count` equal items: records grow by the same bytes with each."""
    none, one = _size(record(0)), _size(record(1))
    return none + count * (one - none)
