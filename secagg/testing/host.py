"""One tenant's program behind bytes: what an implementation of the participant looks like to tests.

`Host` is the adapter that somebody else's implementation gets, in this process or in another, in
this language or in another. `CoreHost` is that of this package, and an example. `HostedTenant` puts
any host into a `SimulatedNetwork` among our own tenants.

Secrets cross this border once, in `Setup`: test identities, of no use to anybody.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from secagg.encoding import Values
from secagg.errors import SecaggError
from secagg.identity import Identity, IdentitySeed, Roster
from secagg.ledger import MemoryLedger
from secagg.messages import (
    AgreedView,
    Quorum,
    decode_message,
)
from secagg.policy import Policy
from secagg.secret import SealKey
from secagg.testing.randomness import SeededRandomness
from secagg.testing.tenant import SimulatedTenant


class Refused(Exception):
    """The host took no notice of a message, a plan or an input; it is as it was before."""


class Host(Protocol):
    """One tenant's implementation. Every method raises `Refused` instead of answering wrongly."""

    def offer(self, plan: bytes) -> bytes:
        """A round is offered: the canonical bytes of `advertise_keys`, if it takes part."""

    def receive(self, message: bytes) -> bytes | None:
        """A message of the coordinator: the answer's bytes, or None where none is due."""

    def submit(self, vector: Values, weight: int) -> bytes:
        """The local input: the bytes of `upload_header`."""

    def upload(self, offset: int) -> bytes:
        """The packed, masked upload from this byte on, to its end."""

    def finish_upload(self) -> bytes:
        """The bytes of `upload_commitment`."""

    def expire(self) -> None:
        """The plan's deadline has passed without a word of the coordinator."""

    def restart(self) -> None:
        """The process dies at this moment and comes back with what it had made durable."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a tenant has before its first round. `identity_seed` is its Ed25519 private key."""

    tenant: str
    identity_seed: bytes
    roster: bytes
    policy: Policy


MakeHost = Callable[[Setup], Host]


class CoreHost:
    """This package's participant behind `Host`."""

    def __init__(self, setup: Setup, kind: type[SimulatedTenant] = SimulatedTenant) -> None:
        identity = Identity(setup.tenant, IdentitySeed(setup.identity_seed))
        randomness = SeededRandomness(f"core host {setup.tenant}")
        self._tenant = kind(
            identity=identity, roster=Roster.decode(setup.roster), policy=setup.policy,
            ledger=MemoryLedger(), seal_key=SealKey(randomness(32)),
            vector=np.zeros(1, np.float32), weight=1, randomness=randomness,
        )  # fmt: skip

    def offer(self, plan: bytes) -> bytes:
        """See `Host`."""
        for message in self._do(lambda: self._tenant.offer(plan)):
            return message
        raise Refused("this plan was offered before")

    def receive(self, message: bytes) -> bytes | None:
        """See `Host`."""
        return next(iter(self._do(lambda: self._tenant.receive(message))), None)

    def submit(self, vector: Values, weight: int) -> bytes:
        """See `Host`."""
        self._tenant.vector, self._tenant.weight = vector, weight
        (message,) = self._do(self._tenant.submit)
        return message

    def upload(self, offset: int) -> bytes:
        """See `Host`."""
        return b"".join(self._do(lambda: list(self._tenant.running.upload(offset))))

    def finish_upload(self) -> bytes:
        """See `Host`."""
        (message,) = self._do(self._tenant.finish_upload)
        return message

    def expire(self) -> None:
        """See `Host`."""
        self._tenant.on_deadline()

    def restart(self) -> None:
        """See `Host`."""
        with suppress(SecaggError):  # then it does not continue, and refuses what comes
            self._tenant.restart("same")

    def _do(self, act: Callable[[], list[bytes]]) -> list[bytes]:
        if self._tenant.participant is None and self._tenant.exports:
            raise Refused("it lost its state")
        try:
            said = act()
        except (SecaggError, ValueError) as error:  # ValueError: it has not joined yet
            raise Refused(str(error)) from error
        self._tenant.remember_state()
        return said


class HostedTenant(SimulatedTenant):
    """A host in a simulated network, among our own tenants."""

    def __init__(self, host: Host, like: SimulatedTenant) -> None:
        super().__init__(
            identity=like.identity, roster=like.roster, policy=like.policy, ledger=like.ledger,
            seal_key=like.seal_key, vector=like.vector, weight=like.weight,
            randomness=like.randomness,
        )  # fmt: skip
        self._host = host
        self._waits_for_input = False

    @property
    def ready(self) -> bool:
        """See `SimulatedTenant`."""
        return self._waits_for_input

    def offer(self, plan: bytes) -> list[bytes]:
        """See `SimulatedTenant`."""
        return [self._host.offer(plan)]

    def receive(self, message: bytes) -> list[bytes]:
        """See `SimulatedTenant`."""
        answer = self._host.receive(message)
        kind = decode_message(message)
        self._waits_for_input = isinstance(kind, AgreedView)
        self.finished = isinstance(kind, Quorum)
        return [] if answer is None else [answer]

    def submit(self) -> list[bytes]:
        """See `SimulatedTenant`."""
        self._waits_for_input = False
        return [self._host.submit(self.vector, self.weight)]

    def piece(self, offset: int, limit: int) -> bytes:
        """See `SimulatedTenant`."""
        return self._host.upload(offset)[:limit]

    def finish_upload(self) -> list[bytes]:
        """See `SimulatedTenant`."""
        return [self._host.finish_upload()]

    def on_deadline(self) -> None:
        """See `SimulatedTenant`."""
        self._host.expire()
