"""The claims on aggregators: ours meets them, and each is failed by one that is bad on purpose."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from secagg.aggregator import Aggregator
from secagg.errors import FaultyParticipant
from secagg.messages import Quorum, ShareKeys, Signed, decode_message
from secagg.outputs import AggregatorOutput, Dispatch
from secagg.records import encode
from secagg.result import Result
from secagg.testing import aggregator_conformance as claims
from secagg.testing.aggregator_conformance import (
    AGGREGATOR_CLAIMS,
    Claim,
    CoreAggregator,
    Dispatches,
    MakeAggregator,
)
from secagg.testing.host import Refused


@pytest.mark.parametrize("claim", AGGREGATOR_CLAIMS, ids=lambda claim: claim.__name__)
def test_our_aggregator_meets_every_claim(claim: Claim) -> None:
    claim(CoreAggregator)


class AddsTwice(CoreAggregator):
    @property
    def result(self) -> Result | None:
        right = super().result
        return None if right is None else replace(right, level_sum=right.level_sum * 2)


class OpensAnything(CoreAggregator):
    """Where it cannot open, it makes something up."""

    @property
    def result(self) -> Result | None:
        right, plan = super().result, self._core.plan
        if right is not None or not self.aborted:
            return right
        zeros = np.zeros(plan.layout.size, np.int64)
        return Result(plan.cohort, zeros, plan.n, plan.quantiser, plan.max_weight)


class WaitsForEver(CoreAggregator):
    def expire(self) -> Dispatches:
        return []


class NeverSaysItIsOver(CoreAggregator):
    @property
    def aborted(self) -> bool:
        return False

    @aborted.setter
    def aborted(self, value: bool) -> None:
        pass


class TakesRepeatsForProof(Aggregator):
    def _is_repeated(self, signed: Signed, received: bytes) -> bool:
        first = self._messages.get((signed.label, signed.sender))
        if first is None:
            return False
        name = self.plan.cohort[signed.sender]
        raise FaultyParticipant(name, "said it twice", evidence=(first.digest,))


class SaysDifferentThings(Aggregator):
    """Each tenant gets a quorum of its own; all of them are right."""

    def _announce(self, name: str, message: object, *where: object) -> list[AggregatorOutput]:
        outputs = super()._announce(name, message, *where)  # type: ignore[arg-type]
        return [self._turned(place, one) for place, one in enumerate(outputs)]

    def _turned(self, place: int, output: AggregatorOutput) -> AggregatorOutput:
        if not isinstance(output, Dispatch):
            return output
        message = decode_message(output.message)
        if not isinstance(message, Quorum) or place % 2:
            return output
        others = tuple(self._signed("consistency_check")[-self.plan.quorum :])
        return Dispatch(output.recipient, (encode(Quorum(others)),))


class BlamesEverybody(CoreAggregator):
    @property
    def accused(self) -> frozenset[str]:
        return frozenset(self._core.plan.cohort)


class BlamesNobody(CoreAggregator):
    @property
    def accused(self) -> frozenset[str]:
        return frozenset()


class TakesAnyBytes(CoreAggregator):
    def absorb(self, sender: str, offset: int, piece: bytes) -> int:
        try:
            return super().absorb(sender, offset, piece)
        except Refused:
            return offset


class BelievesNames(CoreAggregator):
    def receive(self, sender: str, message: bytes) -> Dispatches:
        parsed = decode_message(message)
        signed = parsed.body if isinstance(parsed, ShareKeys) else parsed
        assert isinstance(signed, Signed)
        return super().receive(self._core.plan.cohort[signed.sender], message)


BAD: list[tuple[MakeAggregator, Claim]] = [
    (AddsTwice, claims.rounds_open_exactly),
    (WaitsForEver, claims.dropouts_after_any_step_cost_themselves),
    (partial(CoreAggregator, kind=TakesRepeatsForProof), claims.links_may_repeat_and_reorder),
    (NeverSaysItIsOver, claims.too_few_survivors_abort),
    (partial(CoreAggregator, kind=SaysDifferentThings), claims.everybody_hears_the_same),
    (BlamesEverybody, claims.deviating_tenants_cost_a_place_at_most),
    (OpensAnything, claims.wrong_dealings_and_poisoned_sums_open_nothing_false),
    (BlamesNobody, claims.proven_faults_are_named),
    (TakesAnyBytes, claims.bad_upload_bytes_are_refused),
    (BelievesNames, claims.messages_of_strangers_are_refused),
]


@pytest.mark.parametrize(("bad", "claim"), BAD, ids=[claim.__name__ for _, claim in BAD])
def test_a_bad_aggregator_fails_the_claim_on_it(bad: MakeAggregator, claim: Claim) -> None:
    with pytest.raises(AssertionError):
        claim(bad)


def test_every_claim_on_aggregators_is_failed_by_somebody_bad() -> None:
    assert {claim for _, claim in BAD} == set(AGGREGATOR_CLAIMS)
