"""The claims on transports: the simulated one meets them, and each is failed by a bad one."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from secagg.messages import Signed, decode_message
from secagg.testing import Envelope, SimulatedNetwork, SimulatedTenant
from secagg.testing import transport_conformance as claims
from secagg.testing.faults import UPLOAD_CHUNK
from secagg.testing.invariants import InvariantBroken
from secagg.testing.transport_conformance import (
    TRANSPORT_CLAIMS,
    Case,
    Report,
    SimulatedTransport,
    TransportClaim,
)


@pytest.mark.parametrize("claim", TRANSPORT_CLAIMS, ids=lambda claim: claim.__name__)
def test_the_simulated_network_meets_every_claim_on_transports(claim: TransportClaim) -> None:
    claim(SimulatedTransport())


class LosesATenant(SimulatedNetwork):
    def post(self, envelope: Envelope, after_s: float = 0.0) -> None:
        if envelope.tenant != "t001":
            super().post(envelope, after_s)


class LosesTheTailOfLongUploads(SimulatedNetwork):
    def post(self, envelope: Envelope, after_s: float = 0.0) -> None:
        if envelope.label != UPLOAD_CHUNK or envelope.offset < 100_000:
            super().post(envelope, after_s)


class HangsUpOnRefusal(SimulatedNetwork):
    """A refused message ends its sender's connection."""

    def _deliver_up(self, envelope: Envelope) -> None:
        before = len(self.refused)
        if envelope.tenant not in self.gone:
            super()._deliver_up(envelope)
        if len(self.refused) > before:
            self.gone.add(envelope.tenant)


class HangsUpOnRepeats(SimulatedNetwork):
    """What it carried once it takes for an attack."""

    def _deliver_up(self, envelope: Envelope) -> None:
        carried = self.__dict__.setdefault("carried", set())
        if (envelope.tenant, envelope.data) in carried:
            self.gone.add(envelope.tenant)
        carried.add((envelope.tenant, envelope.data))
        if envelope.tenant not in self.gone:
            super()._deliver_up(envelope)


class HangsUpOnSize(SimulatedNetwork):
    def _deliver_up(self, envelope: Envelope) -> None:
        if len(envelope.data) > 1 << 23:
            self.gone.add(envelope.tenant)
        elif envelope.tenant not in self.gone:
            super()._deliver_up(envelope)


class BelievesNames(SimulatedNetwork):
    """Takes the sender from the message."""

    def _deliver_up(self, envelope: Envelope) -> None:
        if envelope.label not in (UPLOAD_CHUNK, "nonsense"):
            message = decode_message(envelope.data)
            if isinstance(message, Signed):
                envelope = replace(envelope, tenant=self.plan.cohort[message.sender])
        super()._deliver_up(envelope)


class ForgetsWhoBroke(SimulatedNetwork):
    """A connection that breaks does not come back."""

    def _restart(self, tenant: SimulatedTenant, state: object) -> None:
        self.gone.add(tenant.name)


class HasNoDeadlines(SimulatedTransport):
    """Waits for everybody for ever: the test gives up."""

    def run(self, case: Case) -> Report:
        return Report(None)


class TellsNobody(SimulatedTransport):
    def run(self, case: Case) -> Report:
        return replace(super().run(case), told={})


class Doubles(SimulatedTransport):
    """Adds an upload twice: the sum is not the survivors'."""

    def run(self, case: Case) -> Report:
        report = super().run(case)
        if report.result is None:
            return report
        return replace(report, result=replace(report.result, level_sum=report.result.level_sum * 2))


BAD: Iterable[tuple[SimulatedTransport, TransportClaim]] = [
    (SimulatedTransport(LosesATenant), claims.an_honest_round_opens_exactly),
    (TellsNobody(), claims.an_honest_round_opens_exactly),
    (Doubles(), claims.an_honest_round_opens_exactly),
    (
        SimulatedTransport(LosesTheTailOfLongUploads),
        claims.uploads_of_several_leaves_arrive_whole,
    ),
    (HasNoDeadlines(), claims.a_tenant_that_falls_silent_is_a_dropout),
    (TellsNobody(), claims.an_abort_is_seen_by_everybody),
    (SimulatedTransport(HangsUpOnRefusal), claims.refused_and_repeated_messages_harm_nobody),
    (SimulatedTransport(HangsUpOnRepeats), claims.messages_out_of_order_harm_nobody),
    (SimulatedTransport(HangsUpOnSize), claims.oversized_messages_harm_nobody),
    (SimulatedTransport(BelievesNames), claims.nobody_speaks_in_anothers_name),
    (SimulatedTransport(ForgetsWhoBroke), claims.a_broken_connection_loses_nothing),
    (SimulatedTransport(ForgetsWhoBroke), claims.a_broken_upload_goes_on_where_it_stood),
]


@pytest.mark.parametrize(("bad", "claim"), BAD)
def test_a_bad_transport_fails_the_claim_on_it(
    bad: SimulatedTransport, claim: TransportClaim
) -> None:
    with pytest.raises(InvariantBroken):
        claim(bad)


def test_every_claim_on_transports_is_failed_by_somebody_bad() -> None:
    assert {claim for _, claim in BAD} == set(TRANSPORT_CLAIMS)
