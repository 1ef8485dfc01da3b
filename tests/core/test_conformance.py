"""The claims on participants: ours meets them, and each is failed by one that is bad on purpose.

The bad ones are ours with one line changed: a check that is left out, an act that is not kept.
"""

import inspect
import sys
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest

from secagg import checks, ledger, masking, participant, participant_steps, policy, suite
from secagg.errors import SecaggError
from secagg.participant import Participant
from secagg.testing import participant_conformance as claims
from secagg.testing.deviations import WrongAnswers
from secagg.testing.host import CoreHost, Refused, Setup
from secagg.testing.invariants import InvariantBroken
from secagg.testing.participant_conformance import PARTICIPANT_CLAIMS, Claim
from secagg.testing.randomness import SeededRandomness


@pytest.mark.parametrize("claim", PARTICIPANT_CLAIMS, ids=lambda claim: claim.__name__)
def test_our_participant_meets_every_claim(claim: Claim) -> None:
    claim(CoreHost)


def without(monkeypatch: pytest.MonkeyPatch, place: str, old: str, new: str) -> None:
    """Change one piece of a function's text, wherever the package has taken the function to."""
    owner_name, _, name = place.rpartition(".")
    owner = OWNERS[owner_name]
    function = getattr(owner, name)
    source = inspect.getsource(function)
    indent = len(source) - len(source.lstrip())
    source = "".join(line[indent:] for line in source.splitlines(keepends=True))
    assert source.count(old) == 1, f"{place} has changed: {old!r} is not in it once"
    space = dict(sys.modules[function.__module__].__dict__)
    exec(compile(source.replace(old, new), f"<changed {place}>", "exec"), space)
    changed = space[name]
    monkeypatch.setattr(owner, name, changed)
    for module in [m for n, m in sys.modules.items() if n.startswith("secagg.")]:
        if getattr(module, name, None) is function:
            monkeypatch.setattr(module, name, changed)


OWNERS = {
    "checks": checks, "steps": participant_steps, "ledger": ledger, "suite": suite,
    "policy.Policy": policy.Policy, "Participant": Participant,
    "steps._Holder": participant_steps._Holder, "masking.Masking": masking.Masking,
    "participant": participant, "ledger.MemoryLedger": ledger.MemoryLedger,
}  # fmt: skip

LEFT_OUT = [
    # what is left out, in place of what, the claim that fails, and what it says
    ("checks.verify", "not member.verify(", "None is (", claims.bad_directories_are_refused, "C03"),
    ("checks.verify_all", "signed.sender <= last", "False",
     claims.bad_directories_are_refused, "C04"),
    ("checks.require_size", "have < setting.plan.least", "False",
     claims.bad_directories_are_refused, "C05"),
    ("checks.read_directory", "len(set(publics)) != len(publics)", "False",
     claims.bad_directories_are_refused, "another's key (C06)"),
    ("suite.check_public_keys", "value >= _FIELD", "False",
     claims.bad_directories_are_refused, "not canonical (C06)"),
    ("suite.check_public_keys", "value in _LOW_ORDER", "False",
     claims.bad_directories_are_refused, "the point 0 (C06)"),
    ("suite.check_public_keys", "            _kem_public(kem, name)", "            pass",
     claims.bad_directories_are_refused, "KEM key (C06)"),
    ("steps.share_keys", "state.own not in directory.keys", "False",
     claims.bad_directories_are_refused, ""),  # C07: it crashes
    ("checks.check_dealing",
     "holders != tuple(one for one in plan.same_holders if one in directory.keys)", "False",
     claims.bad_deliveries_are_refused, "C08"),
    ("checks.check_dealing", "list(holders) != sorted(set(holders))", "False",
     claims.bad_deliveries_are_refused, "C08"),
    ("checks.check_delivery", "dealers != sorted(set(dealers))", "False",
     claims.bad_deliveries_are_refused, "C08"),
    ("checks.check_delivery", "not set(dealers) <= bodies.keys()", "False",
     claims.bad_deliveries_are_refused, "nobody's dealing"),
    ("steps.acknowledge", "state.own not in delivery.bodies", "False",
     claims.bad_deliveries_are_refused, "C10"),
    ("steps._Holder.open", "checks.check_path(", "(lambda *_: None)(",
     claims.shares_that_do_not_check_are_complained_about, "C09"),
    ("steps._Holder.open", "!= leaf.commitments", "is None",
     claims.wrong_shares_under_a_right_root_are_complained_about, "commitments (C11)"),
    ("suite.open_pad", "!= commitment", "is None",
     claims.wrong_shares_under_a_right_root_are_complained_about, "C39"),
    ("checks.read_agreed_view", "not set(members) <= set(bodies)", "False",
     claims.bad_views_are_refused, ""),  # C12: it crashes
    ("checks.read_agreed_view", "acknowledgement.directory_digest != directory_digest", "False",
     claims.bad_views_are_refused, "C13"),
    ("checks.read_agreed_view", "acknowledgement.dealings_digest != dealings or", "",
     claims.bad_views_are_refused, "other dealings (C14)"),
    ("checks.read_agreed_view", "acknowledgements.keys().isdisjoint(", "frozenset().isdisjoint(",
     claims.bad_views_are_refused, "a member refused (C14)"),
    ("steps.agree", "state.own not in agreed.acknowledgements", "False",
     claims.bad_views_are_refused, ""),  # C15: it crashes
    ("checks.check_commitment", "commitment.view != view", "False",
     claims.bad_survivors_are_refused, "another view (C18)"),
    ("checks.check_commitment", "commitment.length != size", "False",
     claims.bad_survivors_are_refused, "another length (C18)"),
    ("checks.read_survivors", "not set(commitments) <= set(view.members)", "False",
     claims.bad_survivors_are_refused, "C19"),
    ("checks.read_survivors", "require_size(setting, len(commitments)",
     "require_size(setting, setting.plan.n",
     claims.bad_survivors_are_refused, "C20"),
    ("checks.require_holders", "edges.fewest_holders(within) < setting.plan.share_threshold",
     "False", claims.bad_survivors_are_refused, "C21"),
    ("steps.consistency_check", "roots.get(me.index) != state.root", "False",
     claims.bad_survivors_are_refused, "C22"),
    ("checks.read_quorum", "not set(signatures) <= expected.indices", "False",
     claims.bad_quorums_are_refused, "outside U3 (C23)"),
    ("checks.read_quorum", "any(signed != expected.body for signed in signatures.values())",
     "False", claims.bad_quorums_are_refused, "over another U3 (C23)"),
    ("checks.read_quorum", "len(signatures) < setting.plan.quorum", "False",
     claims.bad_quorums_are_refused, "0 signatures (C23)"),
    ("masking.Masking.expected_kind", "MASK_KEY", "SELF_MASK",
     claims.it_opens_one_kind_of_share_of_each_dealer, "other kinds"),
    ("policy.Policy.check", "if not holds", "if False",
     claims.plans_outside_its_policy_are_refused, "C28"),
    ("ledger.check_spent", "spent_under != context", "False",
     claims.an_input_leaves_in_one_round, "C31"),
    ("Participant._answered_before", "asked_before == request", "True",
     claims.the_same_request_gets_the_same_bytes, "second, different"),
    ("Participant.receive", "(again := self._answered_before(parsed, request)) is not None",
     "(again := None) is not None", claims.the_same_request_gets_the_same_bytes, ""),
    ("Participant.receive", "not isinstance(parsed, Downlink)", "False",
     claims.bytes_that_are_not_canonical_are_refused, ""),
    ("steps.acknowledge", "dealings_digest(me.setting, delivery.bodies)",
     "dealings_digest(me.setting, delivery.bodies[:1])", claims.what_it_signs_is_what_it_saw, ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "old", "new", "claim", "says"),
    LEFT_OUT,
    ids=[f"{p}: {o[:30]}" for p, o, *_ in LEFT_OUT],
)
def test_a_participant_without_a_check_fails_the_claim_on_it(
    monkeypatch: pytest.MonkeyPatch, place: str, old: str, new: str, claim: Claim, says: str
) -> None:
    without(monkeypatch, place, old, new)
    with pytest.raises((InvariantBroken, KeyError, Refused)) as caught:
        claim(CoreHost)
    assert says in str(caught.value)


class NeverRefuses(CoreHost):
    """Says its last word again, where it should refuse."""

    last = b"nothing yet"

    def offer(self, plan: bytes) -> bytes:
        return self._anyway(lambda: super(NeverRefuses, self).offer(plan))

    def receive(self, message: bytes) -> bytes | None:
        return self._anyway(lambda: super(NeverRefuses, self).receive(message) or b"") or None

    def submit(self, vector: np.ndarray, weight: int) -> bytes:
        return self._anyway(lambda: super(NeverRefuses, self).submit(vector, weight))

    def _anyway(self, act: Callable[[], bytes]) -> bytes:
        with suppress(Refused):
            self.last = act()
        return self.last


class RefusesEverything(CoreHost):
    def receive(self, message: bytes) -> bytes | None:
        raise Refused("no")


class Doubles(CoreHost):
    def submit(self, vector: np.ndarray, weight: int) -> bytes:
        return super().submit(vector * np.float32(0.5), weight)


class OpensWrongly(CoreHost):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, WrongAnswers)


class ForgetsEverything(CoreHost):
    """Comes back as if it had never been there."""

    lives = 0

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._setup = setup

    def restart(self) -> None:
        self.lives += 1
        super().__init__(self._setup)
        self._tenant.randomness = SeededRandomness(f"life {self.lives}")


class StaysDead(CoreHost):
    dead = False

    def receive(self, message: bytes) -> bytes | None:
        if self.dead:
            raise Refused("it is gone")
        return super().receive(message)

    def restart(self) -> None:
        self.dead = True


class NeverGivesUp(CoreHost):
    def expire(self) -> None:
        pass


class Pads(CoreHost):
    """Uploads a byte more than it should."""

    def upload(self, offset: int) -> bytes:
        return super().upload(offset) + b"\0"


class StrayBits(CoreHost):
    """Sets bits after the weight's last one."""

    def upload(self, offset: int) -> bytes:
        whole = super().upload(offset)
        return whole[:-1] + b"\xff" if whole else whole


class TakesAnyInput(CoreHost):
    def submit(self, vector: np.ndarray, weight: int) -> bytes:
        size = self._tenant.running.plan.layout.size
        fitting = np.nan_to_num(np.resize(vector, size), posinf=1, neginf=-1)
        return super().submit(fitting.astype(np.float32), min(max(weight, 1), 100))


class UploadsAnything(CoreHost):
    """Two uploads under one mask: it starts over from before its input, and its ledger lets it."""

    before = 0

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._tenant.ledger = TakesAnyLeaf()

    def submit(self, vector: np.ndarray, weight: int) -> bytes:
        self.before = self.before or self._tenant.exports - 1
        return super().submit(vector, weight)

    def restart(self) -> None:
        state = self._tenant._exports[self.before]
        running = self._tenant.running
        running._state = participant._open_state(running.plan, state, self._tenant.seal_key)


class TakesAnyLeaf(ledger.MemoryLedger):
    def record_leaves(self, identity: bytes, context: bytes, first: int, hashes) -> None:  # type: ignore[no-untyped-def]
        self._round(identity, context).leaves[first:] = list(hashes)


BAD_HOSTS: list[type[CoreHost]] = [
    NeverRefuses, RefusesEverything, Doubles, OpensWrongly, ForgetsEverything, StaysDead,
    NeverGivesUp, Pads, StrayBits, TakesAnyInput, UploadsAnything,
]  # fmt: skip


def failed_by(make: type[CoreHost]) -> set[Claim]:
    failed: set[Claim] = set()
    for claim in EXPECTED[make]:
        try:
            claim(make)
        except (InvariantBroken, Refused, KeyError, ValueError, SecaggError):
            failed.add(claim)
    return failed


@pytest.mark.parametrize("bad", BAD_HOSTS)
def test_a_bad_host_fails_the_claims_that_it_should(bad: type[CoreHost]) -> None:
    assert failed_by(bad) == EXPECTED[bad]


EXPECTED: dict[type[CoreHost], set[Claim]] = {
    NeverRefuses: {
        claims.it_answers_each_step_in_order,
        claims.bytes_that_are_not_canonical_are_refused,
        claims.messages_of_another_round_are_refused,
        claims.plans_outside_its_policy_are_refused,
        claims.round_numbers_rise,
        claims.after_its_deadline_it_says_nothing,
    },
    RefusesEverything: {claims.it_takes_part_in_a_whole_round},
    Doubles: {claims.it_takes_part_in_a_whole_round},
    OpensWrongly: {claims.it_helps_to_open_a_round_with_a_dropout},
    ForgetsEverything: {
        claims.after_a_restart_it_says_the_same_bytes_or_nothing,
        claims.round_numbers_rise,
        claims.an_input_leaves_in_one_round,
    },
    StaysDead: {claims.after_a_restart_it_goes_on},
    NeverGivesUp: {claims.after_its_deadline_it_says_nothing},
    Pads: {claims.its_upload_is_what_it_signs},
    StrayBits: {claims.its_upload_is_what_it_signs},
    TakesAnyInput: {claims.inputs_that_do_not_fit_are_refused},
    UploadsAnything: {claims.another_input_after_a_restart_is_refused},
}


def test_every_claim_is_failed_by_somebody_bad() -> None:
    by_host = set().union(*EXPECTED.values())
    by_check = {claim for *_, claim, _ in LEFT_OUT}
    assert set(PARTICIPANT_CLAIMS) - by_host - by_check == set()
