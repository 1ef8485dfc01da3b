"""secagg: secure aggregation for organisations that train one model without trusting each other.

The core is sans-IO: `Participant` and `Aggregator` take bytes and return what to persist and to
send, `Ledger` remembers what was said, `RoundPlan` fixes what all must agree on. Nodes that run it
over gRPC, models and the owner's tools live in the packages beside this one.

Public names load when first used, so that `import secagg` and `secagg --help` stay light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secagg.aggregator import Aggregator
    from secagg.encoding import Quantiser
    from secagg.errors import (
        ConfigError,
        DeadlineExpired,
        FaultyCoordinator,
        FaultyParticipant,
        FaultyParticipantOrCoordinator,
        MalformedMessage,
        PolicyRefused,
        ProtocolError,
        RoundAborted,
        SecaggError,
        SpentInput,
        StaleState,
        Step,
        TooFewSurvivors,
        UsageError,
    )
    from secagg.identity import Identity, IdentitySeed, Member, Roster
    from secagg.layout import Layout, TensorSpec
    from secagg.ledger import Entry, Ledger, MemoryLedger
    from secagg.outputs import Aborted, Dispatch, Excluded, Finished, Persist, Send
    from secagg.participant import Participant
    from secagg.plan import Deadlines, RoundPlan
    from secagg.policy import Policy
    from secagg.result import Result
    from secagg.secret import SealKey
    from secagg.spool import MemorySpool, Spool
    from secagg.transcript import Verified, verify_transcript

__version__ = "0.1.0"

_HOMES = {
    "secagg.aggregator": "Aggregator",
    "secagg.encoding": "Quantiser",
    "secagg.errors": (
        "ConfigError DeadlineExpired FaultyCoordinator FaultyParticipant "
        "FaultyParticipantOrCoordinator MalformedMessage PolicyRefused ProtocolError "
        "RoundAborted SecaggError SpentInput StaleState Step TooFewSurvivors UsageError"
    ),
    "secagg.identity": "Identity IdentitySeed Member Roster",
    "secagg.layout": "Layout TensorSpec",
    "secagg.ledger": "Entry Ledger MemoryLedger",
    "secagg.outputs": "Aborted Dispatch Excluded Finished Persist Send",
    "secagg.participant": "Participant",
    "secagg.plan": "Deadlines RoundPlan",
    "secagg.policy": "Policy",
    "secagg.result": "Result",
    "secagg.secret": "SealKey",
    "secagg.spool": "MemorySpool Spool",
    "secagg.transcript": "Verified verify_transcript",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "Aborted",
    "Aggregator",
    "ConfigError",
    "DeadlineExpired",
    "Deadlines",
    "Dispatch",
    "Entry",
    "Excluded",
    "FaultyCoordinator",
    "FaultyParticipant",
    "FaultyParticipantOrCoordinator",
    "Finished",
    "Identity",
    "IdentitySeed",
    "Layout",
    "Ledger",
    "MalformedMessage",
    "Member",
    "MemoryLedger",
    "MemorySpool",
    "Participant",
    "Persist",
    "Policy",
    "PolicyRefused",
    "ProtocolError",
    "Quantiser",
    "Result",
    "Roster",
    "RoundAborted",
    "RoundPlan",
    "SealKey",
    "SecaggError",
    "Send",
    "SpentInput",
    "Spool",
    "StaleState",
    "Step",
    "TensorSpec",
    "TooFewSurvivors",
    "UsageError",
    "Verified",
    "__version__",
    "verify_transcript",
]


def __getattr__(name: str) -> object:
    """Load a public name from the module that defines it (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'secagg' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
