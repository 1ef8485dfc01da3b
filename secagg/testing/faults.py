"""What can go wrong between two parties, as values.

A fault names one tenant and one kind of message on its link, in either direction:

    up      advertise_keys, share_keys, acknowledge, upload_header, upload_chunk,
            upload_commitment, consistency_check, unmask
    down    plan, key_directory, share_delivery, agreed_view, survivor_set, quorum

Faults are applied in the order in which they are given, to every message that they match.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from secagg.errors import Step
from secagg.messages import (
    Acknowledge,
    AdvertiseKeys,
    AgreedView,
    KeyDirectory,
    Quorum,
    ShareDelivery,
    ShareKeysBody,
    Survivors,
    SurvivorSet,
    Unmask,
    UploadCommitment,
    UploadHeader,
)

PLAN = "plan"
UPLOAD_CHUNK = "upload_chunk"
UP = (
    AdvertiseKeys.LABEL, ShareKeysBody.LABEL, Acknowledge.LABEL, UploadHeader.LABEL, UPLOAD_CHUNK,
    UploadCommitment.LABEL, Survivors.LABEL, Unmask.LABEL,
)  # fmt: skip
DOWN_NAMES: dict[type, str] = {
    KeyDirectory: "key_directory",
    ShareDelivery: "share_delivery",
    AgreedView: "agreed_view",
    SurvivorSet: "survivor_set",
    Quorum: "quorum",
}
DOWN = (PLAN, *DOWN_NAMES.values())
UNREADABLE = "unreadable"
"""What a deviating aggregator sends that is no message at all."""
STEP_OF: dict[str, Step] = {
    AdvertiseKeys.LABEL: Step.ADVERTISE_KEYS,
    ShareKeysBody.LABEL: Step.SHARE_KEYS,
    Acknowledge.LABEL: Step.ACKNOWLEDGE,
    UploadHeader.LABEL: Step.MASKED_INPUT,
    UPLOAD_CHUNK: Step.MASKED_INPUT,
    UploadCommitment.LABEL: Step.MASKED_INPUT,
    Survivors.LABEL: Step.CONSISTENCY_CHECK,
    Unmask.LABEL: Step.UNMASK,
}


@dataclass(frozen=True, slots=True)
class Drop:
    """The message is lost for good. (A lost upload chunk is asked for again, as on the wire.)"""

    tenant: str
    label: str


@dataclass(frozen=True, slots=True)
class Delay:
    """The message arrives `seconds` of virtual time later."""

    tenant: str
    label: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The message arrives a second time, `seconds` of virtual time after the first."""

    tenant: str
    label: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Reorder:
    """The message is overtaken by the next `by` messages of anybody."""

    tenant: str
    label: str
    by: int = 1


@dataclass(frozen=True, slots=True)
class Tamper:
    """Its bytes are changed on the way. An empty result is still delivered."""

    tenant: str
    label: str
    change: Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Silence:
    """The tenant's process is gone after it has finished step `after`; None: it never came."""

    tenant: str
    after: Step | None


@dataclass(frozen=True, slots=True)
class KillDuringUpload:
    """The tenant's process is gone once `at_byte` bytes of its upload have been sent."""

    tenant: str
    at_byte: int


@dataclass(frozen=True, slots=True)
class Restart:
    """The tenant's process dies right after it handled (down) or sent (up) `label`, and comes back.

    It comes back with the state of that moment ("same") or of the event before ("stale"), with the
    same ledger. `lose` is a crash between making the answer durable and sending it. After it is
    back, the aggregator's last message reaches it again, as after any reconnection.
    `at_byte` belongs to `upload_chunk`: at least so many bytes have been sent.
    """

    tenant: str
    label: str
    state: Literal["same", "stale"] = "same"
    lose: bool = False
    at_byte: int = 0


Fault = Drop | Delay | Duplicate | Reorder | Tamper | Silence | KillDuringUpload | Restart
