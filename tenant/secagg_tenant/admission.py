"""Which model versions this tenant trains on and measures.

A version that says from which round's sum it was made is admitted when that sum has been recomputed
as the policy demands (`recompute`), and the round is no older than the newest one that this tenant
knows to have been opened. A version that names no round is a beginning: admitted as long as nothing
of this tenant's has gone into a model, or when `policy.start_versions` names its digest. A version
that goes back to an older one is admitted when the pinned owner has signed it and its files and
origin are, digest for digest, those of a version that this tenant has admitted before. What was
admitted once stays so.

Where `model.owner_key` is pinned, a version without that key's signature is refused first of all.

A refusal leaves nothing behind but a line in the audit log. What success does not imply: that the
owner made the version from the sum that it names. After a rollback the same state is trained again,
on other windows: rounds from one state with different cohorts say more than one round does.
"""

from __future__ import annotations

import asyncio

from secagg.errors import PolicyRefused, ProtocolError
from secagg.ledger import Act
from secagg_tenant.config import PolicyTable
from secagg_tenant.connection import Connection
from secagg_tenant.recompute import Recomputed, SumCheck
from secagg_tenant.tenant import Tenant
from secagg_tenant.trainer import ModelVersion
from secagg_tenant.versions import OWNER_KEY
from secagg_wire.manifest import Manifest, Origin, Rollback
from secagg_wire.refusals import CallFailed, InternalError, Refusal, ShuttingDown, Superseded

_PASSING = (CallFailed, InternalError, ShuttingDown, Superseded)
UNCHECKED = "off"


class Admission:
    """See the module's docstring. One version at a time."""

    def __init__(self, tenant: Tenant, connection: Connection) -> None:
        self._tenant = tenant
        self._connection = connection
        self._check = SumCheck(tenant, connection)
        self._turn = asyncio.Lock()
        self.refused = 0
        """How many versions were refused since this process began."""

    async def admit(self, number: int, digest: bytes) -> ModelVersion:
        """Version `number`, which must have the manifest digest `digest`; its files are here then.

        Raises:
            PolicyRefused: it is not accepted: clause `owner_key`, `recompute`, `rollback`,
                `start_versions`, `max_version_bytes`, or `model_digest` where the coordinator's
                version is another one.
            SecaggError: it could not be fetched or checked now.
        """
        async with self._turn:
            tenant, line = self._tenant, self._connection
            manifest = await self._manifest(number, digest)
            self._require_small(number, manifest)
            checked = tenant.store.checked(digest)
            if checked is None or (checked == UNCHECKED and self._policy.recompute != "off"):
                checked = await self._examine(number, manifest)
            version = await tenant.versions.fetch(line.caller, line.models, number, manifest)
            tenant.store.add_version(digest, number, checked)
            return version

    async def _manifest(self, number: int, digest: bytes) -> Manifest:
        tenant, line = self._tenant, self._connection
        try:
            return await tenant.versions.manifest(
                line.caller, line.models, number, digest, self._owner_key
            )
        except PolicyRefused as error:
            if error.clause == OWNER_KEY:
                raise self._refusal(number, digest, error) from None
            raise

    def _require_small(self, number: int, manifest: Manifest) -> None:
        """A signed manifest may name any size; the disk is this tenant's."""
        if manifest.total_size > (most := self._policy.max_version_bytes):
            reason = f"the version's files have {manifest.total_size} bytes, above {most}"
            error = PolicyRefused("max_version_bytes", reason)
            raise self._refusal(number, manifest.digest, error)

    async def _examine(self, number: int, manifest: Manifest) -> str:
        """How this version was found acceptable."""
        if manifest.digest.hex() in self._policy.start_versions:
            return "pinned"
        if self._policy.recompute == "off":
            return UNCHECKED
        try:
            if manifest.rollback is not None:
                return self._restored(manifest, manifest.rollback)
            if manifest.origin is None:
                await self._require_beginning()
                return "beginning"
            done = await self._recomputed(manifest.origin)
        except _PASSING:
            raise
        except (ProtocolError, Refusal, PolicyRefused) as error:
            raise self._refusal(number, manifest.digest, error) from None
        self._tenant.log.event(
            "version_recomputed", version=number, digest=manifest.digest,
            round=done.verified.plan.round_number, leaves=done.leaves, of=done.of,
            own_part=done.own_part,
        )  # fmt: skip
        return f"{done.leaves} of {done.of} leaves"

    def _restored(self, manifest: Manifest, rollback: Rollback) -> str:
        """Hold a rollback against what this tenant has admitted before.

        Raises:
            PolicyRefused: clause `rollback`.
        """
        tenant, name = self._tenant, rollback.restores.hex()[:16]
        if self._owner_key is None:
            raise _not_restored("only a pinned owner may go back: set model.owner_key")
        checked = tenant.store.checked(rollback.restores)
        known = tenant.versions.at_hand(rollback.restores)
        if checked is None or known is None:
            raise _not_restored(f"this tenant has never admitted the version {name} that it names")
        if checked == UNCHECKED and self._policy.recompute != "off":
            raise _not_restored(f"version {name} was admitted without recomputation")
        older = known.manifest
        if (manifest.files, manifest.origin) != (older.files, older.origin):
            raise _not_restored(f"its files or its origin are not those of version {name}")
        tenant.store.audit(
            "version_restored", digest=manifest.digest.hex(), restores=rollback.restores.hex(),
            undoes=rollback.undoes.hex(),
        )  # fmt: skip
        tenant.log.event("version_restored", digest=manifest.digest, restores=rollback.restores)
        return f"restores {name}"

    async def _recomputed(self, origin: Origin) -> Recomputed:
        store = self._tenant.store
        announced = store.announced(origin.context)
        if announced is not None and announced != origin:
            raise ProtocolError(
                "the coordinator announced another sum of that round to this tenant than the "
                "version names"
            )
        fetched = await self._check.fetch(origin)
        made_from, newest = fetched.verified.plan.round_number, store.newest_opened()
        if made_from < newest:
            raise ProtocolError(
                f"it was made from round {made_from}, and round {newest} has been opened since"
            )
        return await self._check.recompute(
            origin, fetched, self._policy.recompute, self._policy.recompute_leaves
        )

    async def _require_beginning(self) -> None:
        tenant = self._tenant
        for context in tenant.store.rounds_with_model():
            entries = await tenant.crypto.run(
                tenant.ledger.entries, tenant.identity.public_key, context
            )
            if any(entry.act == Act.UPLOAD_COMMITTED for entry in entries):
                raise PolicyRefused(
                    "start_versions",
                    "the model version names no round that it was made from, and this tenant has "
                    "contributed since; if the owner begins anew, pin the version's digest there",
                )

    def _refusal(
        self, number: int, digest: bytes, error: ProtocolError | Refusal | PolicyRefused
    ) -> PolicyRefused:
        self.refused += 1
        kind, reason = type(error).__name__, str(error)
        self._tenant.store.audit("version_refused", digest=digest.hex(), error=kind, reason=reason)
        self._tenant.log.warning(
            "version_refused", version=number, digest=digest, error=kind, reason=reason
        )
        if isinstance(error, PolicyRefused):
            return error
        return PolicyRefused("recompute", f"version {number} is not accepted: {reason}")

    @property
    def _owner_key(self) -> bytes | None:
        pinned = self._tenant.config.model.owner_key
        return None if pinned is None else bytes.fromhex(pinned)

    @property
    def _policy(self) -> PolicyTable:
        return self._tenant.config.policy


def _not_restored(reason: str) -> PolicyRefused:
    return PolicyRefused(
        "rollback",
        f"the version goes back to an older one and is not accepted: {reason}; "
        "policy.start_versions can name its digest",
    )
