"""A test kit for rounds: simulated parties, links with faults, a clock that jumps.

Public, for tests of this package and of hosts that embed it:

    cohort, make_tenants, make_round    factories, the same in every run
    SimulatedNetwork                    a whole round in one process; records what each party sent
    Drop, Delay, Duplicate, ...         faults as values (`faults.py`)
    SeededRandomness                    reproducible bytes; never for secrets

Beside them, each described where it is and in docs/testing.md:

    invariants, knowledge       what must hold after any round; what a coordinator can compute
    deviations, coalition       tenants that deviate; a coordinator that lies
    strategies                  plans, inputs, faults and deviating tenants (needs Hypothesis)
    ledger_conformance, transport_conformance, participant_conformance, aggregator_conformance
                                claims that other people's implementations can be held to

Nothing that runs in earnest imports this module: simulations do, whose keys are thrown away.
"""

from secagg.testing.cohorts import Cohort, cohort, make_round, make_tenants, policy_for
from secagg.testing.faults import (
    Delay,
    Drop,
    Duplicate,
    Fault,
    KillDuringUpload,
    Reorder,
    Restart,
    Silence,
    Tamper,
)
from secagg.testing.network import (
    Envelope,
    Outcome,
    Refused,
    SimulatedNetwork,
    SteppedNetwork,
    uplink_label,
)
from secagg.testing.randomness import SeededRandomness
from secagg.testing.tenant import SimulatedTenant

__all__ = [
    "Cohort",
    "Delay",
    "Drop",
    "Duplicate",
    "Envelope",
    "Fault",
    "KillDuringUpload",
    "Outcome",
    "Refused",
    "Reorder",
    "Restart",
    "SeededRandomness",
    "Silence",
    "SimulatedNetwork",
    "SimulatedTenant",
    "SteppedNetwork",
    "Tamper",
    "cohort",
    "make_round",
    "make_tenants",
    "policy_for",
    "uplink_label",
]
