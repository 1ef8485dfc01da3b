"""Every error that secagg raises, ordered by what its receiver may conclude.

A message carries ids, counts, lengths and steps, and never a value: no key, share, seed or
coordinate. The hierarchy is h11's idea (errors by whose fault) with ChillDKG's refinement
(an error says what an honest observer has proven, and what it only suspects).
"""

from __future__ import annotations

from enum import IntEnum
from typing import final


class Step(IntEnum):
    """The six exchanges of a round (protocol.md, "The six steps")."""

    ADVERTISE_KEYS = 0
    SHARE_KEYS = 1
    ACKNOWLEDGE = 2
    MASKED_INPUT = 3
    CONSISTENCY_CHECK = 4
    UNMASK = 5

    @property
    def label(self) -> str:
        """The lower-case name that docs, logs and signatures use."""
        return self.name.lower()


class SecaggError(Exception):
    """Base of everything that secagg raises on purpose."""


class ConfigError(SecaggError, ValueError):
    """A plan, policy, roster or file that cannot work; the message names the clause."""


class UsageError(SecaggError):
    """The caller's mistake: a call in the wrong state, or something used a second time."""


@final
class StaleState(UsageError):
    """A restored or copied state is older than its ledger: continuing could reuse a secret."""


@final
class SpentInput(UsageError):
    """This input has left (perhaps partly) in an earlier round; train a fresh one."""


class ProtocolError(SecaggError):
    """A peer's bytes were refused. The receiver's state is unchanged."""

    def __init__(self, message: str, *, step: Step | None = None) -> None:
        super().__init__(message)
        self.step = step


@final
class MalformedMessage(ProtocolError):
    """Bytes that no honest encoder writes. Who changed them is not known."""


@final
class FaultyParticipant(ProtocolError):
    """Proven to the aggregator: `participant` signed what no honest participant signs.

    `evidence` holds SHA-256 digests of the signed messages that prove it, for the host that keeps
    what it received; it never holds keys or shares.
    """

    def __init__(
        self,
        participant: str,
        reason: str,
        *,
        step: Step | None = None,
        evidence: tuple[bytes, ...] = (),
    ) -> None:
        super().__init__(f"participant {participant!r} is faulty: {reason}", step=step)
        self.participant = participant
        self.evidence = evidence


@final
class FaultyCoordinator(ProtocolError):
    """Proven to this participant: the coordinator sent what no honest coordinator sends."""


@final
class FaultyParticipantOrCoordinator(ProtocolError):
    """Somebody deviated, and what is at hand does not say who."""


class RoundAborted(SecaggError):
    """The round ended without opening anything; a later round uses a fresh input."""

    def __init__(self, message: str, *, step: Step | None = None) -> None:
        super().__init__(message)
        self.step = step


@final
class TooFewSurvivors(RoundAborted):
    """Fewer participants are left than the plan demands."""

    def __init__(self, have: int, need: int, *, step: Step) -> None:
        super().__init__(
            f"{step.label}: {have} participants are left and the plan needs {need}", step=step
        )
        self.have = have
        self.need = need


@final
class DeadlineExpired(RoundAborted):
    """The next message did not come before the plan's deadline."""


@final
class PolicyRefused(RoundAborted):
    """This participant's own policy refuses the plan; `clause` names the rule."""

    def __init__(self, clause: str, reason: str) -> None:
        super().__init__(f"policy clause {clause!r} refuses this plan: {reason}")
        self.clause = clause
