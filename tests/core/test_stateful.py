"""Any order of messages, losses, repeats, deadlines and restarts: one exact sum, or nothing.

A machine of Hypothesis plays the network and the operators of five tenants. Its invariants are
checked after every move, on everything that tenants handed out, delivered or not.
"""

from typing import Literal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from secagg.aggregator import Aggregator
from secagg.spool import MemorySpool
from secagg.testing import SteppedNetwork, cohort, make_tenants
from secagg.testing.invariants import (
    check_invariants,
    check_one_kind_of_share,
    check_opened_exactly,
    check_said_once,
)

N = 5
TENANTS = st.sampled_from(cohort(N).names)


class RoundMachine(RuleBasedStateMachine):
    """See the module's docstring."""

    network: SteppedNetwork
    harm_left: int

    @initialize(seed=st.integers(0, 3), length=st.integers(1, 6), harm=st.integers(0, 4))
    def begin(self, seed: int, length: int, harm: int) -> None:
        self.harm_left = harm  # few losses, so that many rounds come far, or open
        members = cohort(N)
        plan = members.plan(length)
        aggregator = Aggregator(plan, members.roster, spool=MemorySpool())
        self.network = SteppedNetwork(aggregator, make_tenants(members, plan, seed=seed).values())
        self.network.begin()

    def place(self, number: int) -> int:
        return number % len(self.network.waiting)

    def waiting(self) -> bool:
        return bool(self.network.waiting)

    def may_harm(self) -> bool:
        return self.harm_left > 0

    @precondition(waiting)
    @rule(number=st.integers(0, 99))
    def a_message_arrives(self, number: int) -> None:
        self.network.deliver(self.place(number))

    @precondition(waiting)
    @rule(count=st.integers(2, 25))
    def messages_arrive_in_order(self, count: int) -> None:
        for _ in range(count):
            if self.network.waiting:
                self.network.deliver(0)

    @precondition(lambda self: self.waiting() and self.may_harm())
    @rule(number=st.integers(0, 99))
    def a_message_is_lost(self, number: int) -> None:
        self.harm_left -= 1
        self.network.lose(self.place(number))

    @precondition(waiting)
    @rule(number=st.integers(0, 99))
    def a_message_is_repeated(self, number: int) -> None:
        self.network.repeat(self.place(number))

    @precondition(lambda self: not self.network.waiting or self.may_harm())
    @rule()
    def the_deadline_passes(self) -> None:
        if self.network.aggregator.deadline < float("inf"):
            self.harm_left -= bool(self.network.waiting)
            self.network.expire()

    @rule(tenant=TENANTS)
    def a_tenant_restarts(self, tenant: str) -> None:
        self.restart(tenant, "same")

    @precondition(may_harm)
    @rule(tenant=TENANTS)
    def a_tenant_comes_back_with_an_old_state(self, tenant: str) -> None:
        self.harm_left -= 1
        self.restart(tenant, "stale")

    def restart(self, tenant: str, state: Literal["same", "stale"]) -> None:
        process = self.network.tenants[tenant]
        if process.participant is not None and tenant not in self.network.gone:
            self.network.restart(tenant, state)

    @precondition(may_harm)
    @rule(tenant=TENANTS)
    def a_tenant_falls_silent(self, tenant: str) -> None:
        self.harm_left -= 1
        self.network.silence(tenant)

    @invariant()
    def nothing_was_said_twice_and_no_dealer_opened_twice(self) -> None:
        names = self.network.tenants.keys()
        check_said_once(self.network, names)
        check_one_kind_of_share(self.network, names)

    @invariant()
    def what_was_opened_is_exact(self) -> None:
        check_opened_exactly(self.network)

    def teardown(self) -> None:
        if not hasattr(self, "network"):
            return
        for _ in range(2_000):  # whatever still waits arrives, and deadlines pass
            if self.network.waiting:
                self.network.deliver(0)
            elif self.network.aggregator.deadline < float("inf"):
                self.network.expire()
            else:
                break
        check_invariants(self.network)
        outcome = self.network.outcome
        assert (outcome.result is None) != (outcome.error is None)


TestRound = RoundMachine.TestCase
TestRound.settings = settings(max_examples=100, stateful_step_count=40)
