"""What the store holds, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from secagg.errors import Step
from secagg_wire.signed_manifest import ManifestSignature

Outcome = Literal["running", "opened", "aborted"]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of a round, measured by the coordinator's clock and sockets."""

    step: Step
    seconds: float
    bytes_received: int
    bytes_sent: int


@dataclass(frozen=True, slots=True)
class ExclusionRecord:
    """Who left, from which step on, and why (for operators)."""

    tenant: str
    step: Step
    reason: str


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """How much of a tenant's upload was taken."""

    tenant: str
    committed_size: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Opened:
    """What came out of a round: digests and counts; the sum itself lies on disk.

    `sum_root` is the Merkle root over the sum's leaves: announced when the round ends, so that it
    stands before anybody draws leaves to recompute.
    """

    survivors: tuple[str, ...]
    total_weight: int
    length: int
    level_sum_sha256: bytes
    sum_root: bytes


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """A round with all that belongs to it."""

    context: bytes
    round_number: int
    adapter_version: int
    plan: bytes
    outcome: Outcome
    reason: str
    step: Step
    opened_at_ms: int
    ended_at_ms: int
    opened: Opened
    transcript_sha256: bytes
    steps: tuple[StepRecord, ...] = ()
    exclusions: tuple[ExclusionRecord, ...] = ()
    uploads: tuple[UploadRecord, ...] = ()
    answered: dict[Step, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """A published model version; `signature` is None where the owner did not sign it."""

    version: int
    manifest: bytes
    manifest_sha256: bytes
    total_size: int
    published_at_ms: int
    signature: ManifestSignature | None = None


@dataclass(frozen=True, slots=True)
class EventRecord:
    """An event of one tenant: a serialised WatchRoundsResponse without its id."""

    event_id: int
    payload: bytes
