"""Any order of messages, losses, repeats, deadlines and restarts: one exact sum, or nothing.

A machine of Hypothesis plays the network, the operators of the tenants and up to f tenants that
deviate; the coordinator is honest (`test_stateful_coordinator.py` has one that lies). Invariants
are checked after every move, on everything that honest tenants handed out, delivered or not.

`pytest -m slow tests/core/test_stateful.py` plays many more rounds; test_ckks_stateful.py plays
those of scheme `ckks`.
"""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from secagg.aggregator import Aggregator
from secagg.errors import FaultyCoordinator, SecaggError
from secagg.plan import RoundPlan
from secagg.spool import MemorySpool
from secagg.testing import SimulatedTenant, SteppedNetwork, cohort, make_tenants
from secagg.testing.deviations import deviations, ends_rounds
from secagg.testing.invariants import Witness, check_invariants, check_opened_exactly
from secagg.testing.strategies import mutations


def small_plans() -> Iterator[RoundPlan]:
    """Both suites, both graphs. n = 5 with k = 4 is the smallest sparse plan that stands a dropout,
    n = 6 with k = 4 the smallest in which some pairs share no mask."""
    yield cohort(4).plan(3, suite="x25519")
    yield cohort(5).plan(3)
    yield cohort(7).plan(3, max_colluders=2, suite="x25519")
    yield cohort(5).plan(3, max_colluders=1, neighbours=4)
    yield cohort(6).plan(3, max_colluders=1, neighbours=4, suite="x25519")


PLANS = list(small_plans())
NUMBER = st.integers(0, 99)


class RoundMachine(RuleBasedStateMachine):
    """See the module's docstring. `harm` bounds losses, so that many rounds come far, or open."""

    network: SteppedNetwork
    plans = PLANS

    @initialize(
        shape=st.integers(0, 9),
        seed=st.integers(0, 3),
        harm=st.integers(0, 4),
        culprits=st.dictionaries(st.integers(0, 6), NUMBER, max_size=2),
    )
    def begin(self, shape: int, seed: int, harm: int, culprits: dict[int, int]) -> None:
        self.harm_left = self.harm_at_first = harm
        self.plan = plan = self.plans[shape % len(self.plans)]
        members = cohort(plan.n)
        names, kinds = plan.cohort, deviations(plan)
        chosen = list(culprits.items())[: plan.max_colluders]
        self.kinds = {names[index % plan.n]: kinds[kind % len(kinds)] for index, kind in chosen}
        tenants = make_tenants(members, plan, seed=seed, kinds=self.kinds)
        aggregator = Aggregator(plan, members.roster, spool=MemorySpool())
        self.network = SteppedNetwork(aggregator, tenants.values())
        self.witness, self.seen, self.tampered = Witness(plan, self.kinds), 0, False
        self.twins: list[SimulatedTenant] = []
        self.network.begin()

    def place(self, number: int) -> int:
        return number % len(self.network.waiting)

    def name(self, number: int) -> str:
        return self.plan.cohort[number % self.plan.n]

    def waiting(self) -> bool:
        return bool(self.network.waiting)

    def may_harm(self) -> bool:
        return self.harm_left > 0

    def waiting_and_may_harm(self) -> bool:
        return self.waiting() and self.may_harm()

    # ------------------------------------------------------------------ links

    @precondition(waiting)
    @rule(number=NUMBER)
    def a_message_arrives(self, number: int) -> None:
        self.network.deliver(self.place(number))

    @precondition(waiting)
    @rule(count=st.integers(2, 40))
    def messages_arrive_in_order(self, count: int) -> None:
        for _ in range(count):
            if self.network.waiting:
                self.network.deliver(0)

    @precondition(waiting_and_may_harm)
    @rule(number=NUMBER)
    def a_message_is_lost(self, number: int) -> None:
        self.harm_left -= 1
        self.network.lose(self.place(number))

    @precondition(waiting)
    @rule(number=NUMBER)
    def a_message_is_repeated(self, number: int) -> None:
        self.network.repeat(self.place(number))

    @precondition(waiting_and_may_harm)
    @rule(number=NUMBER, data=st.data())
    def a_message_is_changed_on_the_way(self, number: int, data: st.DataObject) -> None:
        self.harm_left -= 1
        self.tampered = True
        self.network.tamper(self.place(number), lambda old: data.draw(mutations(old)))

    @precondition(lambda self: not self.network.waiting or self.may_harm())
    @rule()
    def the_deadline_passes(self) -> None:
        if self.network.aggregator.deadline < float("inf"):
            self.harm_left -= bool(self.network.waiting)
            self.network.expire()

    # ------------------------------------------------------------------ processes

    @precondition(lambda self: self.running())
    @rule(number=NUMBER)
    def a_tenant_restarts(self, number: int) -> None:
        self.on_process(number, lambda tenant: self.network.restart(tenant.name, "same"))

    @precondition(lambda self: self.running() and self.may_harm())
    @rule(number=NUMBER, state=NUMBER)
    def a_tenant_comes_back_with_an_old_state(self, number: int, state: int) -> None:
        self.harm_left -= 1

        def come_back(tenant: SimulatedTenant) -> None:
            self.network.restart(tenant.name, state % tenant.exports)

        self.on_process(number, come_back)

    @precondition(lambda self: self.running() and self.may_harm())
    @rule(number=NUMBER, state=NUMBER)
    def a_second_process_is_started(self, number: int, state: int) -> None:
        self.harm_left -= 1

        def start(tenant: SimulatedTenant) -> None:
            try:
                twin = self.network.fork(tenant.name, state % tenant.exports)
            except SecaggError:
                return  # the ledger has seen more
            self.twins.append(twin)

        self.on_process(number, start)

    @precondition(lambda self: self.waiting() and self.twins)
    @rule(number=NUMBER, twin=NUMBER)
    def a_message_reaches_the_second_process(self, number: int, twin: int) -> None:
        other = self.twins[twin % len(self.twins)]
        fitting = [p for p, e in enumerate(self.network.waiting) if e.tenant == other.name]
        if fitting:
            self.network.deliver_to_twin(fitting[number % len(fitting)], other)

    @precondition(may_harm)
    @rule(number=NUMBER)
    def a_tenant_falls_silent(self, number: int) -> None:
        self.harm_left -= 1
        self.network.silence(self.name(number))

    def running(self) -> list[SimulatedTenant]:
        tenants = self.network.tenants.values()
        return [
            t for t in tenants if t.participant and t.exports and t.name not in self.network.gone
        ]

    def on_process(self, number: int, act: Callable[[SimulatedTenant], None]) -> None:
        running = self.running()
        act(running[number % len(running)])

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def nothing_was_said_twice_and_no_dealer_opened_twice(self) -> None:
        self.seen = self.witness.follow(self.network, self.seen)

    @invariant()
    def what_was_opened_is_exact(self) -> None:
        check_opened_exactly(self.network, self.kinds)

    def teardown(self) -> None:
        if not hasattr(self, "network"):
            return
        for _ in range(4_000):  # whatever still waits arrives, and deadlines pass
            if self.network.waiting:
                self.network.deliver(0)
            elif self.network.aggregator.deadline < float("inf"):
                self.network.expire()
            else:
                break
        check_invariants(self.network, self.kinds)
        outcome = self.network.outcome
        assert (outcome.result is None) != (outcome.error is None)
        if not self.tampered:
            accusers = [
                one.envelope.tenant
                for one in outcome.refused
                if isinstance(one.error, FaultyCoordinator)
                and one.envelope.tenant not in self.kinds
            ]
            assert not accusers, "an honest coordinator was proven faulty"
        ending = set(self.kinds.values()) & set(ends_rounds(self.plan))
        if self.harm_left == self.harm_at_first and not ending:
            assert outcome.result is not None, f"nobody was lost, and: {outcome.error}"


TestRound = RoundMachine.TestCase
TestRound.settings = settings(max_examples=80, stateful_step_count=30)


@pytest.mark.slow
def test_many_more_rounds() -> None:
    run_state_machine_as_test(
        RoundMachine, settings=settings(max_examples=2000, stateful_step_count=60)
    )
