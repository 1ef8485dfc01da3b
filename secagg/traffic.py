"""What a round costs on the wire: bytes of one tenant by step, from the messages' own encoders.

For a round without dropouts, complaints or transport framing. Messages are not built in full: they
grow by the same bytes with each member, and are counted from one of them.
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
from secagg.scheme import upload_bytes
from secagg.suite import KEM_KEY_BYTES, TAG_BYTES, encapsulation_bytes, pad_box_bytes

_DIGEST, _SIGNATURE = bytes(32), bytes(64)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one tenant in one step."""

    up: int
    down: int


def traffic(plan: RoundPlan) -> dict[Step, Traffic]:
    """Every step's bytes, for one tenant (on a sparse graph: with as many leaves as holders)."""
    return {step: count(plan) for step, count in _TRAFFIC.items()}


def _advertise_keys(plan: RoundPlan) -> Traffic:
    kem = b"" if plan.suite == "x25519" else bytes(KEM_KEY_BYTES)
    one = _signed(plan, AdvertiseKeys(_DIGEST, _DIGEST, kem, kem))
    return Traffic(_size(one), _many(plan.n, lambda count: KeyDirectory((one,) * count)))


def _share_keys(plan: RoundPlan) -> Traffic:
    body = _signed(plan, ShareKeysBody(tuple(range(plan.share_count)), _DIGEST, _DIGEST))
    sealed = (bytes(encapsulation_bytes(plan.suite)), bytes(bundle_bytes(plan) + TAG_BYTES))
    pad_box = bytes(pad_box_bytes(plan.suite))
    leaf = Leaf(0, *sealed, (_DIGEST,) * 2, pad_box, _DIGEST if pad_box else b"")
    bare = Leaf(0, *sealed, (_DIGEST,) * 2)
    path = (_DIGEST,) * (plan.share_count - 1).bit_length()
    # On the complete graph one of each pair seals a pad; the own leaf is a hash's worth of bytes.
    others = plan.share_count - plan.complete
    pads = others // 2 if plan.complete else others
    leaves = (leaf,) * pads + (bare,) * (others - pads)
    delivered = tuple(DeliveredLeaf(0, one, path) for one in leaves)
    own = (Leaf(0, b"", b"", (_DIGEST,) * 2),) * plan.complete
    return Traffic(
        _size(ShareKeys(body, own + leaves)),
        _many(plan.n, lambda count: ShareDelivery((body,) * count, ()))
        + _size(ShareDelivery((), delivered))
        - _size(ShareDelivery((), ())),
    )


def _acknowledge(plan: RoundPlan) -> Traffic:
    one = _signed(plan, Acknowledge(_DIGEST, _DIGEST, ()))
    return Traffic(_size(one), _many(plan.n, lambda count: AgreedView((one,) * count)))


def _masked_input(plan: RoundPlan) -> Traffic:
    header = _signed(plan, UploadHeader(_DIGEST, 0))
    commitment = _signed(plan, UploadCommitment(_DIGEST, _DIGEST, 0))
    return Traffic(
        _size(header) + upload_bytes(plan) + _size(commitment),
        _many(plan.n, lambda count: SurvivorSet((commitment,) * count)),
    )


def _consistency_check(plan: RoundPlan) -> Traffic:
    one = _signed(plan, Survivors(_DIGEST, _DIGEST))
    return Traffic(_size(one), _many(plan.quorum, lambda count: Quorum((one,) * count)))


def _unmask(plan: RoundPlan) -> Traffic:
    answers = (Answer(0, 0, bytes(33), _DIGEST),) * plan.share_count
    return Traffic(_size(_signed(plan, Unmask(_DIGEST, answers))), 0)


_TRAFFIC: dict[Step, Callable[[RoundPlan], Traffic]] = {
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
