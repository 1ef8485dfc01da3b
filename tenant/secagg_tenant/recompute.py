"""A round's claimed sum against the uploads, as this tenant can see it.

Besides what anybody can check (`secagg_wire.recomputation`), a tenant knows its own part: its
upload stands in the transcript as its ledger has it, or it is not in the sum at all; and where it
signed a survivor set, the sum was opened over that set and no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secagg.errors import ProtocolError, Step
from secagg.ledger import Act, Entry
from secagg.messages import Quorum, Signed, Survivors, UploadCommitment, decode_message
from secagg.records import decode
from secagg.scheme import leaf_places
from secagg.transcript import Transcript, Verified
from secagg_tenant.connection import Connection
from secagg_tenant.tenant import Tenant
from secagg_wire.manifest import Origin
from secagg_wire.recomputation import Fetched, Mode, Recomputation, chosen_leaves


@dataclass(frozen=True, slots=True)
class Recomputed:
    """A claimed sum of which `leaves` of `of` leaves were computed again and found equal."""

    verified: Verified
    leaves: int
    of: int
    own_part: bool
    """Whether this tenant's upload is in the sum."""


@dataclass(frozen=True, slots=True)
class SumCheck:
    """Fetches and recomputes; believes neither the coordinator nor whoever made the claim."""

    tenant: Tenant
    connection: Connection

    async def fetch(self, claim: Origin) -> Fetched:
        """The claimed round's transcript, which holds under this tenant's roster.

        Raises:
            ProtocolError, Refusal: see `Recomputation.transcript`.
        """
        return await self._recomputation.transcript(claim, self.tenant.roster)

    async def recompute(
        self, claim: Origin, fetched: Fetched, mode: Mode, count: int
    ) -> Recomputed:
        """Check the own part, then draw leaves, once for each claim, and recompute them.

        Raises:
            ProtocolError: the claimed sum is not that of the uploads, or the transcript has this
                tenant say what it did not say.
            Refusal: the leaves cannot be had.
        """
        tenant, verified = self.tenant, fetched.verified
        entries = await tenant.crypto.run(
            tenant.ledger.entries, tenant.identity.public_key, claim.context
        )
        own_part = require_own_part(fetched, entries, tenant.name)
        numbers = chosen_leaves(verified.plan, mode, count, tenant.store.drawn(claim))
        if mode == "random":
            tenant.store.draw(claim, numbers)
        leaves = await self._recomputation.compare(verified, claim.sum_root, numbers)
        return Recomputed(verified, leaves, len(leaf_places(verified.plan)), own_part)

    @property
    def _recomputation(self) -> Recomputation:
        silence = self.tenant.config.patience.silence_seconds
        line = self.connection
        return Recomputation(line.caller, line.transcripts, silence_s=silence)


def require_own_part(fetched: Fetched, entries: Sequence[Entry], tenant: str) -> bool:
    """Demand that the transcript has this tenant say what its ledger has; whether it is in the sum.

    Raises:
        ProtocolError: it does not.
    """
    verified, said = fetched.verified, {Act(entry.act): entry.message for entry in entries}
    if Act.SIGNED_SURVIVORS in said:
        _require_signed_set(fetched.transcript, said)
    if tenant not in verified.survivors:
        return False
    if Act.UPLOAD_COMMITTED not in said:
        raise ProtocolError(
            f"the transcript has an upload of {tenant!r} and its ledger has none: somebody else "
            "has this tenant's key, or the ledger was replaced",
            step=Step.MASKED_INPUT,
        )
    root = _signed(said[Act.UPLOAD_COMMITTED]).read(UploadCommitment).root
    if root != verified.roots[tenant]:
        raise ProtocolError(
            f"the upload of {tenant!r} stands in the transcript with another root than it sent",
            step=Step.MASKED_INPUT,
        )
    return True


def _require_signed_set(transcript: bytes, said: Mapping[Act, bytes]) -> None:
    own = _signed(said[Act.SIGNED_SURVIVORS]).read(Survivors)
    for link in decode(Transcript, transcript).links:
        message = decode_message(link.message)
        if isinstance(message, Quorum) and message.signatures[0].read(Survivors) != own:
            raise ProtocolError(
                "the sum was opened over another survivor set than this tenant signed",
                step=Step.CONSISTENCY_CHECK,
            )


def _signed(message: bytes) -> Signed:
    signed = decode_message(message)
    if not isinstance(signed, Signed):
        raise ProtocolError("the ledger's own entry is no signed message")
    return signed
