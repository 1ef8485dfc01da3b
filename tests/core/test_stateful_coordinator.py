"""A coordinator that lies in any way, with up to f tenants that lie for it: one sum, or none.

A machine of Hypothesis plays the coordinator and its colluders against real participants. It shows
different tenants different U1, U2 and U3, withholds, replays messages of this and of other rounds,
mixes and mutates, asks again with other sets, runs second processes of one tenant from old states
and feeds them different things, and aborts a round to run it again. After every move, whatever
honest tenants handed out is held to what they may say; in the end, what the coalition can compute
is one sum over all honest members of one agreed U3, or nothing.

`pytest -m slow tests/core/test_stateful_coordinator.py` plays many more rounds;
test_ckks_stateful.py plays those of scheme `ckks`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

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

from secagg.errors import SecaggError
from secagg.messages import Downlink, Signed
from secagg.plan import RoundPlan
from secagg.records import encode
from secagg.testing import cohort
from secagg.testing.coalition import Coalition, Mark
from secagg.testing.invariants import require
from secagg.testing.knowledge import check_knowledge
from secagg.testing.strategies import mutations


def small_plans() -> Iterator[RoundPlan]:
    """Both suites, both graphs; round 2, so that there is one before."""
    yield cohort(4).plan(3, round_number=2, suite="x25519")
    yield cohort(5).plan(3, round_number=2, suite="x25519")
    yield cohort(7).plan(3, round_number=2, max_colluders=2, suite="x25519")
    yield cohort(6).plan(3, round_number=2, max_colluders=1, min_survivors=5, suite="x25519")
    yield cohort(4).plan(3, round_number=2)
    yield cohort(6).plan(3, round_number=2, max_colluders=1, neighbours=4, suite="x25519")
    yield cohort(5).plan(3, round_number=2, max_colluders=1, neighbours=4)


PLANS = list(small_plans())
NUMBER = st.integers(0, 99)
LESS = st.sets(st.integers(0, 6), max_size=3) | st.just(frozenset())
SOME = st.just(frozenset(range(7))) | st.sets(st.integers(0, 6), min_size=1)
STAGES = ("directory", "delivery", "agreed", "upload", "survivors", "quorum")


@lru_cache(maxsize=16)
def earlier_round(plan: RoundPlan) -> Coalition:
    """A round that opened before, with the same cohort."""
    members = range(plan.n)
    coalition = Coalition(cohort(plan.n), plan.next_round(1), seed=1)
    marks = coalition.marks()
    for stage in STAGES:
        for mark in marks:
            assert advance(coalition, mark, stage, members)
    assert check_knowledge(coalition) == {frozenset(members)}
    return coalition


def advance(coalition: Coalition, mark: Mark, stage: str, members: object) -> bool:
    if stage == "upload":
        return coalition.upload(mark)
    return coalition.tell(mark, bundle(coalition, mark, stage, members))


def bundle(coalition: Coalition, mark: Mark, stage: str, members: object) -> Downlink:
    chosen: list[int] = list(members)  # type: ignore[call-overload]
    make: dict[str, Callable[[], Downlink]] = {
        "directory": lambda: coalition.directory(chosen),
        "delivery": lambda: coalition.delivery(mark, chosen),
        "agreed": lambda: coalition.agreed(mark, chosen),
        "survivors": lambda: coalition.survivors(mark, chosen),
        "quorum": lambda: coalition.quorum(mark, chosen),
    }
    return make[stage]()


def stage_of(mark: Mark) -> str:
    """What this process waits for."""
    done = (mark.directory, mark.delivery, mark.view, mark.uploaded, mark.survivors, mark.answered)
    return next((name for name, had in zip(STAGES, done, strict=True) if not had), "quorum")


class LyingCoordinator(RuleBasedStateMachine):
    """See the module's docstring. `without` names members that a bundle leaves out."""

    coalition: Coalition
    plans = PLANS

    @initialize(shape=st.integers(0, 9), seed=st.integers(0, 2), colluders=st.sets(NUMBER))
    def begin(self, shape: int, seed: int, colluders: set[int]) -> None:
        self.plan = self.plans[shape % len(self.plans)]
        chosen = sorted({one % self.plan.n for one in colluders})[: self.plan.max_colluders]
        self.members = cohort(self.plan.n)
        self.coalition = Coalition(self.members, self.plan, chosen, seed=seed)
        self.hosts = self.coalition.tenants
        self.colluding = {self.plan.cohort[one] for one in chosen}
        self.marks = self.coalition.marks()
        self.over: list[Coalition] = []
        self.left_at: list[dict[tuple[str, str], Signed]] = []
        self.left_marks: list[Mark] = []

    def everybody(self) -> range:
        return range(self.coalition.plan.n)

    def members_without(self, without: set[int]) -> list[int]:
        return [one for one in self.everybody() if one not in without]

    def targets(self, some: set[int]) -> list[Mark]:
        return [mark for mark in self.marks if mark.index in some]

    def mark(self, number: int) -> Mark:
        return self.marks[number % len(self.marks)]

    def started(self) -> bool:
        return bool(self.marks)

    # ------------------------------------------------------------------ the round, with lies

    @precondition(started)
    @rule(others=SOME, without=LESS, instead=LESS)
    def everybody_goes_on(self, others: set[int], without: set[int], instead: set[int]) -> None:
        """The next step of all; those in `others` are shown one set, the rest another."""
        for mark in self.marks:
            left_out = without if mark.index in others else instead
            advance(self.coalition, mark, stage_of(mark), self.members_without(left_out))

    @precondition(started)
    @rule(steps=st.integers(1, 5))
    def everybody_goes_on_in_good_order(self, steps: int) -> None:
        for mark in [*self.marks] * steps:
            advance(self.coalition, mark, stage_of(mark), self.everybody())

    @precondition(started)
    @rule(some=SOME, without=LESS, steps=st.integers(1, 5))
    def some_go_on_alone(self, some: set[int], without: set[int], steps: int) -> None:
        """The others are left waiting; `without` counts from the first of these steps."""
        for mark in self.targets(some) * steps:
            advance(self.coalition, mark, stage_of(mark), self.members_without(without))

    @precondition(started)
    @rule(some=SOME, without=LESS, stage=st.sampled_from([s for s in STAGES if s != "upload"]))
    def some_are_told_something(self, some: set[int], without: set[int], stage: str) -> None:
        """Early, late or again, with any set."""
        for mark in self.targets(some):
            self.coalition.tell(
                mark, bundle(self.coalition, mark, stage, self.members_without(without))
            )

    @precondition(started)
    @rule(some=SOME, without=LESS, variant=st.integers(0, 2))
    def some_see_other_keys_of_the_colluders(
        self, some: set[int], without: set[int], variant: int
    ) -> None:
        for mark in self.targets(some):
            members = self.members_without(without)
            self.coalition.tell(mark, self.coalition.directory(members, variant))

    @precondition(started)
    @rule(some=SOME, without=LESS, missing=LESS)
    def some_leaves_are_withheld(
        self, some: set[int], without: set[int], missing: set[int]
    ) -> None:
        for mark in self.targets(some):
            members = self.members_without(without)
            self.coalition.tell(mark, self.coalition.delivery(mark, members, missing))

    @precondition(started)
    @rule(some=SOME, pieces=st.integers(0, 2) | st.none())
    def some_upload(self, some: set[int], pieces: int | None) -> None:
        """All of it, or the first pieces."""
        for mark in self.targets(some):
            self.coalition.upload(mark, pieces)

    @precondition(started)
    @rule(some=SOME, number=NUMBER, earlier=st.booleans())
    def some_hear_an_old_message(self, some: set[int], number: int, earlier: bool) -> None:
        """Of this round, or of one that opened before."""
        log = (earlier_round(self.plan) if earlier else self.coalition).log
        for mark in self.targets(some):
            if log:
                self.coalition.tell(mark, log[number % len(log)])

    @precondition(started)
    @rule(
        some=SOME,
        place=NUMBER,
        kind=st.sampled_from(("twice", "moved", "other", "earlier", "bare")),
    )
    def some_hear_a_bundle_with_a_wrong_record(self, some: set[int], place: int, kind: str) -> None:
        for mark in self.targets(some):
            stage = stage_of(mark)
            if stage != "upload":
                right = bundle(self.coalition, mark, stage, self.everybody())
                self.coalition.tell(mark, self.spoilt(right, place, kind))

    def spoilt(self, message: Downlink, place: int, kind: str) -> Downlink:
        (name,) = {"keys", "bodies", "acknowledgements", "commitments", "signatures"} & set(
            message.__dataclass_fields__
        )
        records: list[Signed] = list(getattr(message, name))
        if not records:
            return message
        at = place % len(records)
        one = records[at]
        former = earlier_round(self.plan).said.get(one.label, {}).get(one.sender, one)
        changed = {
            "twice": [*records[: at + 1], *records[at:]],
            "moved": [*records[:at], *records[at + 1 :], one],
            "other": [replace(r, sender=one.sender) if r is not one else r for r in records],
            "earlier": [*records[:at], former, *records[at + 1 :]],
            "bare": [*records[:at], replace(one, signature=bytes(64)), *records[at + 1 :]],
        }
        return replace(message, **{name: tuple(changed[kind])})  # type: ignore[arg-type]

    @precondition(started)
    @rule(number=NUMBER, data=st.data())
    def one_hears_a_mutated_message(self, number: int, data: st.DataObject) -> None:
        mark = self.mark(number)
        stage = stage_of(mark)
        if stage != "upload":
            right = encode(bundle(self.coalition, mark, stage, self.everybody()))
            self.coalition.tell(mark, data.draw(mutations(right)))

    # ------------------------------------------------------------------ processes and rounds

    @precondition(started)
    @rule(number=NUMBER, back=st.integers(0, 5))
    def a_second_process_is_started(self, number: int, back: int) -> None:
        """From its last state, or an earlier one. From now on both are told things."""
        mark = self.mark(number)
        if len(self.marks) < 3 * self.plan.n and mark.past:
            twin = self.coalition.fork(mark, max(0, len(mark.past) - 1 - back))
            self.marks += [] if twin is None else [twin]

    @precondition(started)
    @rule(number=NUMBER, back=st.integers(0, 5))
    def a_process_comes_back_with_an_old_state(self, number: int, back: int) -> None:
        mark = self.mark(number)
        if mark.past:
            twin = self.coalition.fork(mark, max(0, len(mark.past) - 1 - back))
            self.marks[number % len(self.marks)] = mark if twin is None else twin

    @precondition(lambda self: len(self.marks) > 1)
    @rule(number=NUMBER)
    def the_coordinator_keeps_silent_towards_one(self, number: int) -> None:
        self.mark(number).tenant.on_deadline()
        del self.marks[number % len(self.marks)]

    @precondition(lambda self: self.started() and len(self.over) < 2)
    @rule(without=st.integers(0, 6), kept=NUMBER)
    def the_round_is_run_again(self, without: int, kept: int) -> None:
        """Declared aborted, and with the same deltas; perhaps without one tenant."""
        old = self.coalition
        names = [name for place, name in enumerate(self.plan.cohort) if place != without]
        try:
            plan = self.plan_again(tuple(names) if kept % 2 else self.plan.cohort)
        except SecaggError:
            return  # no such plan can work
        self.over.append(old)
        self.left_marks = self.marks
        self.coalition = Coalition(
            self.members,
            plan,
            [index for index, name in enumerate(plan.cohort) if name in self.colluding],
            ledgers={name: host.ledger for name, host in self.hosts.items()},
        )
        for name, tenant in self.coalition.tenants.items():
            tenant.vector, tenant.weight = self.hosts[name].vector, self.hosts[name].weight
        self.marks = self.coalition.marks()
        self.left_at.append(dict(old.witness.said))

    def plan_again(self, names: tuple[str, ...]) -> RoundPlan:
        number = self.coalition.plan.round_number + 1
        return self.members.plan(
            3, round_number=number, cohort=names, max_colluders=self.plan.max_colluders,
            neighbours=None if self.plan.complete else min(self.plan.share_count, len(names) - 1),
            suite=self.plan.suite, scheme=self.plan.scheme,
        )  # fmt: skip

    @precondition(lambda self: self.over)
    @rule(others=SOME, without=LESS)
    def the_round_that_was_left_goes_on(self, others: set[int], without: set[int]) -> None:
        for mark in self.left_marks:
            if mark.index in others:
                left = [one for one in range(self.over[-1].plan.n) if one not in without]
                advance(self.over[-1], mark, stage_of(mark), left)

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def what_can_be_computed_is_one_agreed_sum(self) -> None:
        if hasattr(self, "coalition"):
            check_knowledge(self.coalition)

    @invariant()
    def a_round_that_was_left_says_nothing_new(self) -> None:
        """C30: who joined a later round acts in no earlier one; C31: nor does its delta."""
        if not hasattr(self, "coalition"):
            return
        rounds = [*self.over, self.coalition]
        joined = {name for name, _ in self.coalition.witness.said}
        if self.over:
            fresh = rounds[-2].witness.said.keys() - self.left_at[-1].keys()
            require(joined.isdisjoint(name for name, _ in fresh), "a round that was left went on")
        for name in self.plan.cohort:
            times = sum(one.witness.uploaded(name) for one in rounds)
            require(times <= 1, f"the delta of {name} left in two rounds")

    def teardown(self) -> None:
        """Whatever still can be said is said: with the sets that opened most, then with all."""
        if not hasattr(self, "coalition"):
            return
        for mark in [*self.marks] * len(STAGES):
            advance(self.coalition, mark, stage_of(mark), self.everybody())
        for one in (*self.over, self.coalition):
            check_knowledge(one)
        self.a_round_that_was_left_says_nothing_new()


TestLyingCoordinator = LyingCoordinator.TestCase
TestLyingCoordinator.settings = settings(max_examples=80, stateful_step_count=14)


@pytest.mark.slow
def test_many_more_rounds() -> None:
    run_state_machine_as_test(
        LyingCoordinator, settings=settings(max_examples=1500, stateful_step_count=30)
    )
