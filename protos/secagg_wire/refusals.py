"""Why a node refuses a call, beside the core's own errors (secagg/errors.py).

Each class is one row of the table in `codec.py`, which gives it a gRPC status. As in the core, a
message names cause and cure and holds ids, counts, lengths and steps, never a value.
"""

from __future__ import annotations

from typing import final

from secagg.errors import SecaggError, Step


class Refusal(SecaggError):
    """A call that was refused; nothing changed."""

    def __init__(self, message: str, *, step: Step | None = None) -> None:
        super().__init__(message)
        self.step = step


@final
class InvalidRequest(Refusal):
    """A field is missing, too long or contradicts the bytes beside it."""


@final
class DigestMismatch(Refusal):
    """The bytes are not those that their digest names."""


@final
class OffsetMismatch(Refusal):
    """A piece does not begin where the last one ended; ask for the committed size."""


@final
class WrongStep(Refusal):
    """The round is in another step."""


@final
class RoundEnded(Refusal):
    """The round is over."""


@final
class LeftRound(Refusal):
    """The caller is out of this round: it was silent for too long, declined, or was left out."""


@final
class RoundConflict(Refusal):
    """Another round runs, or the round number has been used."""


@final
class ConflictingMessage(Refusal):
    """Another message stands in this place already; both are kept as evidence."""


@final
class UnknownRound(Refusal):
    """No round has this context."""


@final
class NoLongerKept(Refusal):
    """The round's uploads were deleted when their retention ended: its sum cannot be recomputed."""


@final
class UnknownVersion(Refusal):
    """No such model version, or no such file in it."""


@final
class NotAuthenticated(Refusal):
    """The caller's certificate names nobody."""


@final
class UnknownTenant(Refusal):
    """The caller is not in the roster, or not in the round's cohort."""


@final
class ForeignIdentity(Refusal):
    """The request claims another name than the caller's certificate."""


@final
class RoleRefused(Refusal):
    """The caller's role may not make this call."""


@final
class QuotaExceeded(Refusal):
    """A quota or the disk is full; later, or after the operator made room, it may pass."""


@final
class Superseded(Refusal):
    """A newer stream of the same caller took this one's place."""


@final
class ShuttingDown(Refusal):
    """The node is stopping; connect again."""


@final
class InternalError(Refusal):
    """The node failed; its own log says how."""


@final
class CallFailed(Refusal):
    """The call failed below this protocol (connection, deadline); `code` is gRPC's name for it."""

    def __init__(self, message: str, *, code: str = "UNKNOWN", step: Step | None = None) -> None:
        super().__init__(message, step=step)
        self.code = code
