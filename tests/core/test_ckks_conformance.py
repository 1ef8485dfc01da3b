"""The claims on participants and aggregators in rounds of scheme `ckks`; bad ones fail them."""

from typing import ClassVar

import pytest

from secagg.aggregator import Aggregator
from secagg.ckks.scheme import Ckks
from secagg.errors import ProtocolError
from secagg.messages import UploadCommitment
from secagg.scheme import Opened
from secagg.testing import aggregator_conformance as on_aggregators
from secagg.testing import participant_conformance as on_participants
from secagg.testing.aggregator_conformance import CKKS_AGGREGATOR_CLAIMS, CoreAggregator
from secagg.testing.ckks_deviations import ZeroSum
from secagg.testing.host import CoreHost, Setup
from secagg.testing.invariants import InvariantBroken
from secagg.testing.participant_conformance import CKKS_PARTICIPANT_CLAIMS
from secagg.testing.stage import CKKS


@pytest.mark.parametrize("claim", CKKS_PARTICIPANT_CLAIMS, ids=lambda claim: claim.__name__)
def test_our_participant_meets_every_claim(claim: on_participants.Claim) -> None:
    claim(CoreHost)


@pytest.mark.parametrize("claim", CKKS_AGGREGATOR_CLAIMS, ids=lambda claim: claim.__name__)
def test_our_aggregator_meets_every_claim(claim: on_aggregators.Claim) -> None:
    claim(CoreAggregator)


def test_a_participant_without_the_degree_check_fails_the_claim_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C42."""
    monkeypatch.setattr(Ckks, "check_shares", lambda *_: None)
    with pytest.raises(InvariantBroken, match="off their polynomials"):
        on_participants.shares_off_their_polynomials_are_complained_about(CoreHost)


def test_a_participant_that_answers_with_single_shares_fails_the_claim_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C24."""
    honest = Ckks.answer

    def leaks(self, plan, view, survivors, held):  # type: ignore[no-untyped-def]
        dealer, (opened,) = next(iter(held.items()))
        assert isinstance(opened, Opened)
        return honest(self, plan, view, frozenset({dealer}), held)

    monkeypatch.setattr(Ckks, "answer", leaks)
    with pytest.raises(InvariantBroken, match="did not open"):
        on_participants.it_helps_to_open_a_round_with_a_dropout(CoreHost, CKKS)


class OpensWrongly(CoreHost):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, ZeroSum)


def test_a_participant_that_answers_wrongly_fails_the_claim_on_it() -> None:
    with pytest.raises(InvariantBroken, match="did not open"):
        on_participants.it_helps_to_open_a_round_with_a_dropout(OpensWrongly, CKKS)


class TrustsSums(Aggregator):
    """Uses the first t sums of shares, whatever opens with them."""

    def _can_open(self) -> bool:
        enough = self._released >= self.plan.share_threshold
        if enough and self._opener is None:
            first = dict(list(self._key_sums.items())[: self.plan.share_threshold])
            self._key_sums = first
            try:
                self._opener = self._scheme.opener(self.plan, self._opening())
            except ProtocolError:
                return False
        return enough


class TakesAnyResidue(Aggregator):
    """Takes a bad upload for one that was added."""

    def _on_upload_commitment(self, signed):  # type: ignore[no-untyped-def]
        super()._on_upload_commitment(signed)
        self._expelled.discard(signed.sender)
        return []

    _handlers: ClassVar = {
        **Aggregator._handlers,
        UploadCommitment.LABEL: _on_upload_commitment,
    }


@pytest.mark.parametrize(
    ("kind", "claim"),
    [
        (TrustsSums, on_aggregators.wrong_sums_of_shares_are_left_out),
        (TakesAnyResidue, on_aggregators.malformed_residues_cost_their_sender),
    ],
)
def test_a_bad_aggregator_fails_the_claim_on_it(
    kind: type[Aggregator], claim: on_aggregators.Claim
) -> None:
    with pytest.raises(AssertionError):
        claim(lambda plan, roster: CoreAggregator(plan, roster, kind))
