"""A tenant's host, as small as it can be: one participant, its input, its ledger, its restarts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from secagg.encoding import Values
from secagg.errors import SecaggError, Step
from secagg.identity import Identity, Roster
from secagg.ledger import Ledger
from secagg.outputs import Aborted, Finished, ParticipantOutput, Send
from secagg.participant import Participant
from secagg.plan import RoundPlan
from secagg.policy import Policy
from secagg.secret import Randomness, SealKey


class SimulatedTenant:
    """Runs one `Participant` honestly. Deviating tenants override a method.

    `levels` is what it encoded, (d,) int64, once submitted: the plaintext that the opened sum must
    add up. `failure` is what ended its part before the answer, if anything did. `life` numbers
    the processes of one tenant, one after the other or at once; networks set it.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        roster: Roster,
        policy: Policy,
        ledger: Ledger,
        seal_key: SealKey,
        vector: Values,
        weight: int,
        randomness: Randomness,
        record_levels: bool = True,
    ) -> None:
        self.identity = identity
        self.roster = roster
        self.policy = policy
        self.ledger = ledger
        self.seal_key = seal_key
        self.vector = vector
        self.weight = weight
        self.randomness = randomness
        self.record_levels = record_levels
        self.participant: Participant | None = None
        self.failure: SecaggError | None = None
        self.finished = False
        self.levels: NDArray[np.int64] | None = None
        self.life = 0
        self._exports: list[bytes] = []
        self._pieces: tuple[int, bytes, Iterator[bytes]] = (-1, b"", iter(()))

    @property
    def name(self) -> str:
        """Its tenant id."""
        return self.identity.tenant

    @property
    def ready(self) -> bool:
        """Whether it waits for its input."""
        return self.participant is not None and self.participant.ready

    @property
    def uploading(self) -> bool:
        """Whether it is between its input and the end of its upload."""
        running = self.participant
        return running is not None and running.step is Step.MASKED_INPUT and not running.ready

    def offer(self, plan: bytes) -> list[bytes]:
        """Join the round of this plan.

        Raises:
            PolicyRefused: it does not take part.
        """
        if self.participant is not None and self.participant.plan.encode() == plan:
            return []  # offered again
        participant = Participant(
            RoundPlan.decode(plan), identity=self.identity, roster=self.roster, policy=self.policy,
            ledger=self.ledger, randomness=self.randomness, seal_key=self.seal_key,
        )  # fmt: skip
        messages = self.execute(participant.start())
        self.participant = participant
        return messages

    def receive(self, message: bytes) -> list[bytes]:
        """Answer one message of the aggregator."""
        return self.execute(self.running.receive(message))

    def submit(self) -> list[bytes]:
        """Bind the round to the input and announce the upload."""
        messages = self.execute(self.running.submit(self.vector, self.weight))
        self._pieces = (-1, b"", iter(()))
        if self.record_levels:
            self.levels = self.running.encoded_levels()
        return messages

    def piece(self, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of the upload from `offset` on; empty at its end."""
        place, buffer, rest = self._pieces
        if place != offset:
            place, buffer, rest = offset, b"", self.running.upload(offset)
        if not buffer:
            buffer = next(rest, b"")
        self._pieces = (place + len(buffer[:limit]), buffer[limit:], rest)
        return buffer[:limit]

    def finish_upload(self) -> list[bytes]:
        """Sign what was uploaded."""
        return self.execute(self.running.finish_upload())

    def on_deadline(self) -> None:
        """The aggregator stays silent."""
        if self.participant is not None:
            self.execute(self.participant.on_deadline())

    def name_for(self, message: bytes) -> str:
        """The name under which this message is sent: its own. (Simulated links do not ask.)"""
        return self.name

    @property
    def running(self) -> Participant:
        """The participant, which must have joined."""
        if self.participant is None:
            raise ValueError(f"{self.name} has not joined")
        return self.participant

    def execute(self, outputs: list[ParticipantOutput]) -> list[bytes]:
        """Do what the core asks for, in order; returns what is to be sent."""
        messages: list[bytes] = []
        for output in outputs:
            match output:
                case Send():
                    messages.append(output.message)
                case Aborted():
                    self.failure = output.error
                case Finished():
                    self.finished = True
                case _:
                    pass  # persist: the ledger and `remember_state` hold it
        return messages

    @property
    def exports(self) -> int:
        """How many states it has kept."""
        return len(self._exports)

    def remember_state(self) -> None:
        """Export the state of this moment, for a later restart."""
        self._exports.append(self.running.export(self.seal_key))

    def restart(self, state: Literal["same", "stale"] | int) -> list[bytes]:
        """Lose the process; come back from an exported state, and say the last thing again.

        `state` is the last one ("same"), the one before ("stale"), or any by its number.

        Raises:
            StaleState: the ledger has seen more than the state has.
            PolicyRefused: there was no state to come back from, and rejoining is refused.
        """
        plan = self.running.plan
        last = {"same": self.exports - 1, "stale": self.exports - 2}
        number = state if isinstance(state, int) else last[state]
        self.participant = None
        if number < 0:
            return self.offer(plan.encode())
        self.participant = self._restored(number, plan)
        self._pieces = (-1, b"", iter(()))
        entries = self.ledger.entries(self.identity.public_key, plan.context)
        return [entries[-1].message]

    def twin(self, number: int, randomness: Randomness) -> SimulatedTenant:
        """A second process of this tenant, from an exported state, beside the first.

        It has the same ledger and the same input, and draws other randomness.

        Raises:
            StaleState: the ledger has seen more than the state has.
        """
        plan = self.running.plan
        twin = type(self)(
            identity=self.identity, roster=self.roster, policy=self.policy, ledger=self.ledger,
            seal_key=self.seal_key, vector=self.vector, weight=self.weight, randomness=randomness,
            record_levels=self.record_levels,
        )  # fmt: skip
        twin._exports = self._exports[: number + 1]
        twin.participant = twin._restored(number, plan)
        return twin

    def _restored(self, number: int, plan: RoundPlan) -> Participant:
        return Participant.restore(
            self._exports[number], self.seal_key, plan=plan, identity=self.identity,
            roster=self.roster, policy=self.policy, ledger=self.ledger, randomness=self.randomness,
        )  # fmt: skip
