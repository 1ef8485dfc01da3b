"""One tenant's belongings: identity, policy, ledger, keys, versions, and the threads it works in.

Everything of one state directory (`data`):

    ledger.sqlite        what this identity has said (secagg/sqlite_ledger.py), with its lock
    tenant.sqlite        rounds, versions, evaluations, audit log (store.py)
    round-keys/          the seal key of the live round; never in backups
    rounds/CONTEXT/      the live round's contribution, deleted when the round ends
    versions/DIGEST/     model versions
    residual.bin         error feedback

A participant's crypto runs in one worker thread and training in another, so that the event loop
keeps its lease alive through both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar, TypeVarTuple

from secagg.errors import ConfigError
from secagg.identity import Identity, Roster
from secagg.policy import Policy
from secagg.sqlite_ledger import RoundKeyFiles, SqliteLedger
from secagg_tenant.config import Config, check_text
from secagg_tenant.residual import ResidualFile
from secagg_tenant.store import TenantStore
from secagg_tenant.trainer import Trainer, make_trainer
from secagg_tenant.versions import VersionFiles
from secagg_wire.event_log import EventLog
from secagg_wire.key_files import KeyFiles

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")


class Worker:
    """One thread that works off the event loop, one call after the other."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, work: Callable[[*_Args], _T], *arguments: *_Args) -> _T:
        """`work(*arguments)` in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def stop(self) -> None:
        """Wait for the running call and end the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Tenant:
    """See the module's docstring."""

    config: Config
    identity: Identity
    roster: Roster
    policy: Policy
    ledger: SqliteLedger
    round_keys: RoundKeyFiles
    store: TenantStore
    versions: VersionFiles
    trainer: Trainer
    log: EventLog
    crypto: Worker
    training: Worker

    @classmethod
    def open(cls, config: Config, log: EventLog) -> Tenant:
        """Open everything.

        Raises:
            ConfigError: a file is missing or wrong; names it.
            UsageError: another process runs this tenant.
        """
        keys, data = KeyFiles(config.keys), config.data
        party, roster = keys.party(), keys.read_roster()
        if party.role != "tenant":
            raise ConfigError(f"{config.keys} holds the keys of {party}, not of a tenant")
        identity = keys.identity()
        _check_roster(roster, identity, bytes.fromhex(config.policy.roster_digest))
        check_text(config)
        trainer = make_trainer(config, party.name)
        _private(data)
        return cls(
            config=config,
            identity=identity,
            roster=roster,
            policy=config.policy.policy(),
            ledger=SqliteLedger(data / "ledger.sqlite"),
            round_keys=RoundKeyFiles(data / "round-keys"),
            store=TenantStore(data / "tenant.sqlite"),
            versions=VersionFiles(data / "versions"),
            trainer=trainer,
            log=log,
            crypto=Worker("crypto"),
            training=Worker("training"),
        )

    @property
    def name(self) -> str:
        """The tenant id."""
        return self.identity.tenant

    @property
    def residual(self) -> ResidualFile:
        """Error feedback for the next contribution."""
        return ResidualFile(self.config.data / "residual.bin")

    def round_folder(self, context: bytes) -> Path:
        """Where a live round's private files lie."""
        return self.config.data / "rounds" / context.hex()

    def close(self) -> None:
        """End the threads and give the files back."""
        self.training.stop()
        self.crypto.stop()
        self.store.close()
        self.ledger.close_file()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_roster(roster: Roster, identity: Identity, pinned: bytes) -> None:
    if roster.digest != pinned:
        raise ConfigError(
            f"the roster has digest {roster.digest.hex()} and policy.roster_digest pins "
            f"{pinned.hex()}; ask the authority which one is right, then pin that"
        )
    if identity.tenant not in roster:
        raise ConfigError(f"the roster does not list {identity.tenant!r}; ask for a new one")
    if roster[identity.tenant].public_key != identity.public_key:
        raise ConfigError(
            f"the roster has another public key for {identity.tenant!r}; enrol this identity again"
        )


def _private(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"cannot use {directory} for data: {error.strerror}") from None
