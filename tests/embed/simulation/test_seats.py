"""What hosts tenants by the hundred keeps the claims on transports and ledgers, and little else."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from secagg.errors import StaleState
from secagg.identity import Roster
from secagg.ledger import Act, Entry, Ledger
from secagg.policy import Policy
from secagg.testing.cohorts import cohort
from secagg.testing.ledger_conformance import LEDGER_CLAIMS
from secagg.testing.transport_conformance import TRANSPORT_CLAIMS, TransportClaim
from secagg_embed.exchange import CoordinatedRound
from secagg_embed.simulation import InProcess, Simulation, TenantInfo, quiet
from secagg_embed.simulation.conduct import Watch, conduct
from secagg_embed.simulation.seats import Answer, Given, Job, LeanLedger, Seat
from secagg_embed.simulation.tenants import Population, remembering
from secagg_embed.terms import Terms
from secagg_embed.testing import AnsweringTenant, ExchangeTransport


class Hosted:
    """One of the kit's tenants in a seat."""

    def __init__(self, tenant: AnsweringTenant) -> None:
        self._tenant = tenant

    def answer(self, request: bytes, given: Given | None) -> Answer:
        return Answer(self._tenant.answer(request))


def carry(coordinated: CoordinatedRound, tenants: Mapping[str, AnsweringTenant]) -> None:
    def make(names: Sequence[str]) -> dict[str, Seat]:
        return {name: Hosted(tenants[name]) for name in names}

    workers = InProcess().open(make, tuple(tenants))
    conduct(coordinated, workers, Watch(coordinated.plan, quiet), attempts=2)


@pytest.mark.parametrize("claim", TRANSPORT_CLAIMS)
def test_tenants_in_this_process_as_a_transport(claim: TransportClaim) -> None:
    claim(ExchangeTransport(carry))


FORGOTTEN = {  # by design: one identity, the last round alone, and of it the newest state
    "identities_are_apart",
    "one_round_is_live",
    "acts_come_in_order_and_once",
}


@pytest.mark.parametrize(
    "claim", [claim for claim in LEDGER_CLAIMS if claim.__name__ not in FORGOTTEN]
)
def test_the_lean_ledger_refuses_what_any_ledger_refuses(claim: Callable[[Ledger], None]) -> None:
    claim(LeanLedger())


def test_the_lean_ledger_keeps_the_newest_state_and_what_was_said() -> None:
    ledger, me, context = LeanLedger(), bytes(32), bytes([1] * 32)
    ledger.join(me, context, 5)
    said = [Entry(act, bytes(32), b"said %d" % act, b"state") for act in (Act.JOINED, Act.DEALT)]
    for entry in said:
        ledger.commit(me, context, entry)
        ledger.commit(me, context, entry)  # again: nothing new
    assert ledger.entries(me, context) == (replace(said[0], state=b""), said[1])
    for wrong in (replace(said[0], message=b"other"), Entry(Act.UPLOAD_BEGUN, bytes(32), b"")):
        with pytest.raises(StaleState):
            ledger.commit(me, context, wrong)
    ledger.join(me, bytes(32), 6)
    with pytest.raises(StaleState):
        ledger.commit(me, context, Entry(Act.ACKNOWLEDGED, bytes(32), b""))


class TestRememberingSignatures:
    population = Population.of(3, seed=1)
    roster = remembering(population.roster(committee=False))

    def signed(self, body: bytes) -> tuple[str, str, bytes, bytes, bytes]:
        signature = self.population.identity("t001").sign("s", "l", bytes(32), body)
        return "s", "l", bytes(32), body, signature

    def test_it_is_the_same_roster(self) -> None:
        assert self.roster.digest == self.population.roster(committee=False).digest

    def test_what_was_right_is_right_again_and_nothing_else_is(self) -> None:
        suite, label, context, body, signature = asked = self.signed(b"body")
        member = self.roster["t001"]
        assert member.verify(*asked)
        assert member.verify(*asked)
        assert not member.verify(suite, label, context, b"other", signature)
        assert not member.verify(suite, label, bytes([1] * 32), body, signature)
        assert not member.verify(suite, "other", context, body, signature)
        assert not member.verify("other", label, context, body, signature)
        assert not member.verify(suite, label, context, body, signature[:-1])
        assert not self.roster["t002"].verify(*asked), "another's key"

    def test_a_wrong_signature_is_not_remembered(self) -> None:
        member, wrong = self.roster["t001"], ("s", "l", bytes(32), b"new", bytes(64))
        assert not member.verify(*wrong)
        assert not member.verify(*wrong)


def test_no_upload_is_held_longer_than_it_takes_to_add_it() -> None:
    """Of 20 inputs and uploads of 2 MB and more, only a few are there at once."""
    length, tenants = 500_000, 20
    held: list[int] = []

    def train(tenant: TenantInfo, arrays: dict[str, Any], number: int) -> tuple[Any, int]:
        held.append(resident_bytes())
        return {"w": arrays["w"] + np.float32(tenant.index % 7) / 100}, 1

    simulation = Simulation(
        tenants=tenants, train=train, start={"w": np.zeros(length, np.float32)},
        terms=Terms(clip=0.1), progress=quiet,
    )  # fmt: skip
    (report,) = simulation.rounds(1)
    assert len(report.survivors) == tenants
    assert held[-1] - held[5] < 6 * 4 * length, "less than six vectors for fourteen tenants"


def resident_bytes() -> int:
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_a_committee_holds_the_key_shares_of_a_large_ckks_cohort() -> None:
    roster = Population.of(70, seed=0).roster(committee=True)
    assert len(roster.committee) == 64
    assert Population.of(64, seed=0).roster(committee=True).committee == ()
    assert isinstance(Roster.decode(roster.encode()), Roster)


def test_an_error_that_is_no_tenants_is_raised() -> None:
    class Broken:
        def answer(self, request: bytes, given: Given | None) -> Answer:
            raise ZeroDivisionError

    members = cohort(3)
    workers = InProcess().open(lambda names: dict.fromkeys(names, Broken()), members.names)
    plan = members.plan()
    with pytest.raises(ZeroDivisionError):
        conduct(CoordinatedRound(plan, members.roster), workers, Watch(plan, quiet))


def test_the_first_of_a_large_complete_cohort_may_seal_a_pad_for_everybody() -> None:
    """Of each pair the one with the smaller index seals it: its message is the longest."""
    names = tuple(f"t{index:03}" for index in range(200))
    population = Population(names, seed=0)
    roster = population.roster(committee=False)
    arrays = {"w": np.zeros(3, np.float32)}
    coordinated = Terms(clip=1.0).round(roster, arrays, round_number=1)
    job = Job(population, roster.encode(), Policy(roster.digest), _untrained)
    workers = InProcess().open(job, names)
    workers.begin(Given(1, arrays))
    for tenant, answer in workers.ask(coordinated.begin(), 1):
        assert answer.reply is not None
        coordinated.take(tenant, answer.reply)
    directory = coordinated.close()
    for tenant, answer in workers.ask({"t000": directory["t000"]}, 1):
        assert answer.reply is not None
        assert coordinated.take(tenant, answer.reply), coordinated.refused


def _untrained(tenant: TenantInfo, arrays: dict[str, Any], number: int) -> tuple[Any, int]:
    raise AssertionError("nobody comes to train")
