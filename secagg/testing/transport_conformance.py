"""What every transport must do, as claims that run against anybody's implementation.

A transport carries bytes between one aggregator and its tenants. It is given as an object with the
cohort that it can authenticate and a method that runs one round, by processes, sockets and real
time if it likes:

    @pytest.mark.parametrize("claim", TRANSPORT_CLAIMS)
    def test_transport(claim):
        claim(MyTransport())

`Transport.run` starts the aggregator, lets each `SimulatedTenant` answer what reaches it, and
returns when the round has ended. For every tenant it does what a tenant's node does: `offer` the
plan, `receive` each message, and once `ready`: `submit`, then the pieces from where the aggregator
stands, then `finish_upload`. Messages that are refused are their sender's business; the next one
is sent all the same. `SimulatedTransport` is the simulated network behind this protocol.

Not shown: encryption, and who may connect; that whoever says to be a tenant is refused under
another's name is shown, with the credentials that the transport gives to each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np

from secagg import suite
from secagg.aggregator import Aggregator
from secagg.errors import Step
from secagg.identity import Identity
from secagg.messages import Signed
from secagg.plan import Deadlines, RoundPlan
from secagg.records import encode
from secagg.result import Result
from secagg.secret import ChannelSeed, MaskSeed
from secagg.spool import MemorySpool
from secagg.testing.cohorts import Cohort, cohort, make_tenants
from secagg.testing.faults import DOWN, PLAN, UPLOAD_CHUNK, Restart
from secagg.testing.invariants import InvariantBroken, require
from secagg.testing.network import SimulatedNetwork
from secagg.testing.tenant import SimulatedTenant

OVERSIZED = 1 << 24


@dataclass(frozen=True, slots=True)
class Cut:
    """The tenant's connection breaks once and comes back; the process lives on.

    It breaks right after the tenant has handled `after` (a message to tenants, see
    `secagg.testing.faults.DOWN`), before the answer leaves; or, for `upload_chunk`, once at least
    `at_byte` bytes of its upload have been taken.
    """

    tenant: str
    after: str
    at_byte: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """One round to run."""

    plan: RoundPlan
    tenants: Mapping[str, SimulatedTenant]
    cuts: tuple[Cut, ...] = ()


Ending = Literal["opened", "aborted"]


@dataclass(frozen=True, slots=True)
class Report:
    """How it ended at the aggregator, and what each tenant was told of that."""

    result: Result | None
    told: Mapping[str, Ending] = field(default_factory=dict)


class Transport(Protocol):
    """See the module's docstring. `step_ms` is how long a step may take in this transport's time
    before its deadline closes it: more than a few messages need."""

    @property
    def members(self) -> Cohort:
        """Five tenants that it can authenticate, and their roster."""

    @property
    def step_ms(self) -> int:
        """See the class."""

    def run(self, case: Case) -> Report:
        """One round, to its end."""


class SimulatedTransport:
    """The simulated network as a transport: a cut is a restart with the state of that moment."""

    step_ms = 3_000

    def __init__(self, network: type[SimulatedNetwork] = SimulatedNetwork) -> None:
        self._network = network

    @property
    def members(self) -> Cohort:
        """See `Transport`."""
        return cohort(5)

    def run(self, case: Case) -> Report:
        """See `Transport`."""
        network = self._network(
            Aggregator(case.plan, self.members.roster, spool=MemorySpool()),
            case.tenants.values(),
            faults=[Restart(c.tenant, c.after, lose=True, at_byte=c.at_byte) for c in case.cuts],
            piece_bytes=1 << 16,
        )
        result = network.run().result
        ending: Ending = "aborted" if result is None else "opened"
        return Report(result, dict.fromkeys(network.tenants, ending))


# ---------------------------------------------------------------------------- tenants


class SilentTenant(SimulatedTenant):
    """Joins and is never heard of again."""

    def receive(self, message: bytes) -> list[bytes]:
        """Say nothing."""
        return []


class ChattyTenant(SimulatedTenant):
    """Says nonsense before, and repeats itself after, every right answer."""

    def receive(self, message: bytes) -> list[bytes]:
        """The answer, in bad company."""
        answer = super().receive(message)
        return [b"\x01nonsense", b"", *answer, *answer]


class OversizedTenant(SimulatedTenant):
    """Says 16 MiB of nothing before each answer."""

    def receive(self, message: bytes) -> list[bytes]:
        """The answer, after what no link should carry."""
        answer = super().receive(message)
        return [bytes(OVERSIZED), *answer] if answer else []


class UnorderedTenant(SimulatedTenant):
    """Says what it said in the step before once more, ahead of every right answer."""

    _before: tuple[bytes, ...] = ()

    def offer(self, plan: bytes) -> list[bytes]:
        """Remember the first answer."""
        answer = super().offer(plan)
        self._before = (*self._before, *answer)
        return answer

    def receive(self, message: bytes) -> list[bytes]:
        """Late copies, then the answer."""
        answer = super().receive(message)
        late, self._before = self._before, (*self._before, *answer)
        return [*reversed(late), *answer]


def impostor(victim: Identity) -> type[SimulatedTenant]:
    """A tenant that advertises keys in another's name, signed even by that one's key.

    Whoever believes it has cost the victim its place.
    """

    class Impostor(SimulatedTenant):
        """Speaks as itself, and first as its victim."""

        def offer(self, plan: bytes) -> list[bytes]:
            """The other's keys, then its own."""
            self._said_first = encode(self._forged(RoundPlan.decode(plan)))
            return [self._said_first, *super().offer(plan)]

        def name_for(self, message: bytes) -> str:
            """The name under which this message is sent, with its own credentials."""
            return victim.tenant if message == self._said_first else self.name

        def _forged(self, plan: RoundPlan) -> Signed:
            seeds = ChannelSeed(b"c" * 32), MaskSeed(b"m" * 32)
            return Signed.create(plan, victim, suite.advertise(plan.suite, *seeds))

    return Impostor


# ---------------------------------------------------------------------------- claims


def an_honest_round_opens_exactly(transport: Transport) -> None:
    """Every byte arrives as it was sent, and everybody is told."""
    report = _run(transport)
    result = _opened(report)
    require(result.survivors == transport.members.names, "somebody was lost in a quiet round")
    _told(transport, report, "opened")


def uploads_of_several_leaves_arrive_whole(transport: Transport) -> None:
    """Nothing of a vector's size passes in one message, and nothing of it is lost."""
    _opened(_run(transport, length=150_000))


def a_tenant_that_falls_silent_is_a_dropout(transport: Transport) -> None:
    """Deadlines pass, and the round goes on without it."""
    silent = transport.members.names[1]
    result = _opened(_run(transport, kinds={silent: SilentTenant}))
    require(silent not in result.survivors, "a silent tenant is no survivor")


def an_abort_is_seen_by_everybody(transport: Transport) -> None:
    """Too few are left: each tenant is told, and nobody waits for ever."""
    silent = dict.fromkeys(transport.members.names[:2], SilentTenant)
    report = _run(transport, kinds=silent)
    require(report.result is None, "too few were enough")
    _told(transport, report, "aborted")


def refused_and_repeated_messages_harm_nobody(transport: Transport) -> None:
    """An error goes back to its sender, and its next message is taken."""
    _harmless(transport, ChattyTenant)


def oversized_messages_harm_nobody(transport: Transport) -> None:
    """16 MiB in one message are refused, whoever refuses them, and the next message is taken."""
    _harmless(transport, OversizedTenant)


def messages_out_of_order_harm_nobody(transport: Transport) -> None:
    """What belongs to an earlier step changes nothing in a later one."""
    _harmless(transport, UnorderedTenant)


def nobody_speaks_in_anothers_name(transport: Transport) -> None:
    """The aggregator is told who sent a message by the link's credentials, not by the message."""
    names = transport.members.names
    kind = impostor(transport.members.identity(names[2]))
    result = _opened(_run(transport, kinds={names[1]: kind}))
    require(names[2] in result.survivors, "somebody spoke in another's name and was believed")


def a_broken_connection_loses_nothing(transport: Transport) -> None:
    """After whatever message: said things are said again, and the tenant is a survivor."""
    tenant = transport.members.names[1]
    for after in DOWN:
        if after != PLAN:  # before its first answer a tenant is not connected at all
            _survives(transport, _run(transport, cuts=(Cut(tenant, after),)), tenant, after)


def a_broken_upload_goes_on_where_it_stood(transport: Transport) -> None:
    """From the byte that the aggregator has, whatever was under way."""
    tenant = transport.members.names[3]
    for at_byte in (0, 1, 200_000):
        cut = Cut(tenant, UPLOAD_CHUNK, at_byte)
        report = _run(transport, length=150_000, cuts=(cut,))
        _survives(transport, report, tenant, f"byte {at_byte} of its upload")


TransportClaim = Callable[[Transport], None]
TRANSPORT_CLAIMS: tuple[TransportClaim, ...] = (
    an_honest_round_opens_exactly,
    uploads_of_several_leaves_arrive_whole,
    a_tenant_that_falls_silent_is_a_dropout,
    an_abort_is_seen_by_everybody,
    refused_and_repeated_messages_harm_nobody,
    oversized_messages_harm_nobody,
    messages_out_of_order_harm_nobody,
    nobody_speaks_in_anothers_name,
    a_broken_connection_loses_nothing,
    a_broken_upload_goes_on_where_it_stood,
)


def _run(
    transport: Transport,
    *,
    length: int = 50,
    kinds: Mapping[str, type[SimulatedTenant]] | None = None,
    cuts: tuple[Cut, ...] = (),
) -> Report:
    deadlines = Deadlines(*[transport.step_ms] * len(Step))
    plan = replace(transport.members.plan(length), deadlines=deadlines)
    tenants = make_tenants(transport.members, plan, kinds=kinds)
    report = transport.run(Case(plan, tenants, cuts))
    if report.result is not None:
        _check_sum(report.result, tenants)
    return report


def _check_sum(result: Result, tenants: Mapping[str, SimulatedTenant]) -> None:
    levels = [tenants[name].levels for name in result.survivors]
    expected = np.sum([level for level in levels if level is not None], axis=0)
    require(np.array_equal(result.level_sum, expected), "the opened sum is not the survivors'")
    weights = sum(tenants[name].weight for name in result.survivors)
    require(result.total_weight == weights, "the opened weight is not the survivors'")


def _opened(report: Report) -> Result:
    if report.result is None:
        raise InvariantBroken("the round did not open")
    return report.result


def _told(transport: Transport, report: Report, ending: Ending) -> None:
    deaf = [name for name in transport.members.names if report.told.get(name) != ending]
    require(not deaf, f"the round {ending}, and {deaf} were not told")


def _harmless(transport: Transport, kind: type[SimulatedTenant]) -> None:
    name = transport.members.names[2]
    result = _opened(_run(transport, kinds={name: kind}))
    require(name in result.survivors, "a refused message ended its sender's round")
    require(len(result.survivors) == len(transport.members.names), "it harmed another tenant")


def _survives(transport: Transport, report: Report, tenant: str, where: str) -> None:
    result = _opened(report)
    require(tenant in result.survivors, f"a connection that broke after {where} lost its tenant")
    require(len(result.survivors) == len(transport.members.names), "it harmed another tenant")
