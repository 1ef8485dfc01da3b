"""One host, and everybody else in the hands of the test: for conformance claims on participants.

A `Stage` plays coordinator and all other tenants of one round towards a `Host`, by the kit's
`Coalition`; `run_until` plays honestly up to a step, `refuses` sends what must have no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from secagg.ckks.parameters import Packing
from secagg.errors import Step
from secagg.messages import (
    Body,
    Downlink,
    Signed,
)
from secagg.plan import RoundPlan, Scheme, Suite
from secagg.records import encode
from secagg.testing.coalition import Coalition, Mark
from secagg.testing.cohorts import cohort, identity_seed, policy_for
from secagg.testing.faults import UPLOAD_CHUNK
from secagg.testing.host import Host, MakeHost, Refused, Setup
from secagg.testing.invariants import InvariantBroken
from secagg.testing.randomness import SeededRandomness

BadMessage = tuple[str, Downlink | bytes]

ME = 1
"""The host's index in the cohort."""

WEIGHT = 3
SUITES: tuple[Suite, ...] = ("x25519", "x25519-mlkem768")


class Stage:
    """One host, and everybody else in the hands of the test."""

    def __init__(self, make: MakeHost, plan: RoundPlan, host: Host | None = None) -> None:
        self.plan = plan
        self.members = cohort(plan.n)
        others = [index for index in range(plan.n) if index != ME]
        self.coalition = Coalition(self.members, plan, others)
        self.host = make(setup(plan)) if host is None else host
        self.mark = Mark(ME, self.coalition.tenants[plan.cohort[ME]])
        self.vector = SeededRandomness("input").uniform(plan.layout.size, plan.quantiser.clip)
        self.bytes = b""

    @property
    def everybody(self) -> range:
        """All members of the cohort."""
        return range(self.plan.n)

    @property
    def but_last(self) -> list[int]:
        """All but the last: as few as may go on."""
        return list(self.everybody)[:-1]

    @property
    def others(self) -> list[int]:
        """All but the host."""
        return [index for index in self.everybody if index != ME]

    def sign(self, index: int, body: Body) -> Signed:
        """A signature of another tenant under anything."""
        return self.coalition.colluders[index].sign(body)

    def own(self, label: str) -> Signed:
        """What the host signed."""
        return self.coalition.said[label][ME]

    def offer(self) -> bytes:
        """Offer the round's plan."""
        message = self.host.offer(self.plan.encode())
        self.coalition.hear(self.mark, [message])
        return message

    def tell(self, message: Downlink) -> bytes | None:
        """Send what must be accepted."""
        answer = self.host.receive(encode(message))
        self.coalition.note(self.mark, message)
        if answer is not None:
            self.coalition.hear(self.mark, [answer])
        return answer

    def refuses(self, why: str, message: Downlink | bytes) -> None:
        """Send what must be refused, without an answer and without an effect."""
        data = message if isinstance(message, bytes) else encode(message)
        refused(why, self.host.receive, data)

    def upload(self) -> None:
        """Let the host upload its input."""
        self.coalition.hear(self.mark, [self.host.submit(self.vector, WEIGHT)])
        self.bytes = self.host.upload(0)
        self.coalition.witness.see(self.mark.tenant.name, UPLOAD_CHUNK, self.bytes)
        self.coalition.hear(self.mark, [self.host.finish_upload()])
        self.mark.uploaded = True

    def right(self, step: Step) -> Downlink:
        """The coordinator's message that ends this step, over everybody."""
        match step:
            case Step.ADVERTISE_KEYS:
                return self.coalition.directory(self.everybody)
            case Step.SHARE_KEYS:
                return self.coalition.delivery(self.mark, self.everybody)
            case Step.ACKNOWLEDGE:
                return self.coalition.agreed(self.mark, self.everybody)
            case Step.MASKED_INPUT:
                return self.coalition.survivors(self.mark, self.everybody)
            case _:
                return self.coalition.quorum(self.mark, self.everybody)

    def run_until(self, step: Step) -> Stage:
        """Play honestly until the host waits for the message that ends `step`."""
        self.offer()
        for earlier in Step:
            if earlier < step:
                self.tell(self.right(earlier))
            if earlier < step and earlier is Step.ACKNOWLEDGE:
                self.upload()
        return self

    def refuses_all(self, step: Step, bad: Callable[[Stage], Iterable[BadMessage]]) -> None:
        """Refuse each of these in place of the right message, and then take the right one."""
        self.run_until(step)
        for why, message in bad(self):
            self.refuses(why, message)
        self.tell(self.right(step))


def setup(plan: RoundPlan) -> Setup:
    """The host's, for rounds like this one."""
    name, roster = plan.cohort[ME], cohort(plan.n).roster
    return Setup(name, identity_seed(name), roster.encode(), policy_for(plan))


def refused(why: str, act: Callable[..., object], *arguments: object) -> None:
    """Whatever this asks for has to be refused."""
    try:
        act(*arguments)
    except Refused:
        return
    raise InvariantBroken(f"it took what it must refuse: {why}")


def small(
    suite: Suite = "x25519-mlkem768",
    *,
    round_number: int = 1,
    max_colluders: int = 1,
    cohort_of: tuple[str, ...] | None = None,
    scheme: Scheme = "masking",
    packing: Packing = "coefficients",
) -> RoundPlan:
    """Six tenants, one of whom may collude; q = t = 4, and five are the least that go on."""
    return cohort(6).plan(
        5, suite=suite, round_number=round_number, max_colluders=max_colluders, min_survivors=5,
        cohort=cohort_of, scheme=scheme, packing=packing,
    )  # fmt: skip


def sparse(suite: Suite = "x25519") -> RoundPlan:
    """Seven tenants with five neighbours each."""
    return cohort(7).plan(5, max_colluders=1, neighbours=5, suite=suite)


@dataclass(frozen=True, slots=True)
class Plans:
    """The plans on which claims are tried, in one scheme."""

    scheme: Scheme

    def small(
        self,
        suite: Suite = "x25519-mlkem768",
        *,
        round_number: int = 1,
        max_colluders: int = 1,
        cohort_of: tuple[str, ...] | None = None,
    ) -> RoundPlan:
        """See `small`."""
        return small(
            suite, round_number=round_number, max_colluders=max_colluders, cohort_of=cohort_of,
            scheme=self.scheme,
        )  # fmt: skip

    def of_length(self, length: int) -> RoundPlan:
        """Four tenants, and so many values."""
        return cohort(4).plan(length, scheme=self.scheme)

    def every(self) -> Iterator[RoundPlan]:
        """Both suites, both graphs or packings."""
        for suite in SUITES:
            yield self.small(suite)
            if self.scheme == "ckks":
                yield small(suite, scheme="ckks", packing="slots")
            else:
                yield sparse(suite)


MASKING = Plans("masking")
CKKS = Plans("ckks")
"""Needs what the package's extra `ckks` installs."""
