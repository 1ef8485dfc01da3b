"""What a step asks its host to do, in order.

The core performs no I/O: it returns these values, and the host executes them from first to last.
A `Persist` must be durable before anything after it is executed; otherwise a crash in between
could make the same party say two different things.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from secagg.errors import SecaggError, Step

if TYPE_CHECKING:
    from secagg.result import Result


@dataclass(frozen=True, slots=True)
class Persist:
    """Make `data` durable under `name` (participants: the ledger holds it already)."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Send:
    """Participant to aggregator."""

    message: bytes


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Aggregator to one participant, by tenant id.

    A message comes in parts, since most of it is the same bytes for everybody: a host that serves
    a thousand participants need not hold a thousand copies.
    """

    recipient: str
    parts: tuple[bytes, ...]

    __match_args__ = ("recipient", "message")

    @property
    def message(self) -> bytes:
        """The whole message."""
        return b"".join(self.parts) if len(self.parts) > 1 else self.parts[0]


@dataclass(frozen=True, slots=True)
class Excluded:
    """A participant is out of the round from `step` on.

    Without `evidence` the reason is for logs and no verdict; with it, the signed messages with
    these digests prove the reason.
    """

    participant: str
    step: Step
    reason: str
    evidence: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The role's part in the round is done; the aggregator's carries what was opened."""

    result: Result | None = None


@dataclass(frozen=True, slots=True)
class Aborted:
    """The round is over for this role and nothing opened here."""

    error: SecaggError


ParticipantOutput = Persist | Send | Finished | Aborted
AggregatorOutput = Persist | Dispatch | Excluded | Finished | Aborted
