"""A server that deviates, against sites as they are deployed: nothing more than one sum leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey

from secagg.messages import AgreedView, Quorum, Signed, SurvivorSet, decode_message
from secagg.records import encode
from secagg_embed.exchange import Requests
from secagg_embed.folder import as_roster
from secagg_embed.nvflare import SecureExecutor
from secagg_embed.nvflare.shareables import Message, result_of, settings_bytes, task_data
from secagg_embed.wire import UNABLE, Declined, Deliver, Reply, Said, decode_request
from tests.stacks.nvflare.local import LocalSite, workspace
from tests.stacks.nvflare.tenants import Federation, Trainer, first_model

VICTIM = "site-1"
SETTINGS = settings_bytes({"current_round": 0, ReservedHeaderKey.TASK_NAME: "train"})


class Hostile:
    """Holds a round with real sites, and can put other requests in between."""

    def __init__(self, federation: Federation) -> None:
        model = first_model()
        self.coordinated = federation.terms.round(
            as_roster(federation.roster), model, round_number=7, settings=SETTINGS
        )
        self.sites = {
            name: LocalSite(
                name, SecureExecutor(executor=Trainer()), workspace(federation.root, name)
            )
            for name in federation.names
        }
        self.requests = self.coordinated.begin()

    def ask(self, name: str, request: bytes, model: Any = None, task: str = "train") -> Reply:
        message = Message((request,), model or first_model(), SETTINGS)
        data = task_data({name: message})
        context: FLContext = self.sites[name].engine.new_context()
        return result_of(self.sites[name].do(task, "1", data, context))

    def tell(self, name: str, message: Any) -> Reply:
        return self.ask(name, encode(Deliver(self.coordinated.plan.context, encode(message))))

    def until(self, kind: type) -> Requests:
        """Honest exchanges, until the requests carry messages of this kind."""
        while not isinstance(message_in(self.requests[VICTIM]), kind):
            self.exchange()
        return self.requests

    def exchange(self) -> None:
        for name, request in self.requests.items():
            self.coordinated.take(name, self.ask(name, request))
        self.requests = self.coordinated.close()

    def said_by(self, name: str) -> list[Signed]:
        """Everything signed that left a site."""
        found = []
        for sent in self.sites[name].sent:
            match result_of(sent).read():
                case Said(messages=messages, committed=committed):
                    decoded = [decode_message(each) for each in (*messages, *committed)]
                    found += [each for each in decoded if isinstance(each, Signed)]
        return found

    def different(self, name: str, label: str) -> int:
        """How many different things a site signed under one label."""
        return len({each.body for each in self.said_by(name) if each.label == label})


def message_in(request: bytes) -> Any:
    match decode_request(request):
        case Deliver(message=message):
            return decode_message(message)
        case other:
            return other


@pytest.fixture
def hostile(federation: Federation) -> Hostile:
    return Hostile(federation)


def fewer(survivors: SurvivorSet) -> SurvivorSet:
    return SurvivorSet(survivors.commitments[:-1])


def twice(survivors: SurvivorSet) -> SurvivorSet:
    return SurvivorSet((*survivors.commitments, survivors.commitments[-1]))


def without_the_victim(survivors: SurvivorSet) -> SurvivorSet:
    return SurvivorSet(survivors.commitments[1:])


def nobody(survivors: SurvivorSet) -> SurvivorSet:
    return SurvivorSet(())


def test_a_task_of_another_name_is_not_trained(hostile: Hostile) -> None:
    """All but one are told to validate, and leave the model as it is: the sum would be one's."""
    request = hostile.until(AgreedView)[VICTIM]
    left = hostile.ask(VICTIM, request, task="validate").read()
    assert isinstance(left, Declined)
    assert left.reason == UNABLE


def test_one_round_says_each_thing_once(hostile: Hostile) -> None:
    while hostile.requests:
        hostile.exchange()
    assert hostile.coordinated.result is not None
    for name in hostile.sites:
        assert hostile.different(name, "consistency_check") == 1
        assert hostile.different(name, "unmask") == 1


@pytest.mark.parametrize("other", [fewer, twice, without_the_victim, nobody])
def test_a_second_list_of_survivors_is_not_signed(
    hostile: Hostile, other: Callable[[SurvivorSet], SurvivorSet]
) -> None:
    survivors = message_in(hostile.until(SurvivorSet)[VICTIM])
    hostile.tell(VICTIM, survivors)
    assert isinstance(hostile.tell(VICTIM, other(survivors)).read(), Declined)
    assert hostile.different(VICTIM, "consistency_check") == 1


@pytest.mark.parametrize("other", [twice, without_the_victim, nobody])
def test_a_list_that_cannot_be_is_not_signed_first_either(
    hostile: Hostile, other: Callable[[SurvivorSet], SurvivorSet]
) -> None:
    survivors = message_in(hostile.until(SurvivorSet)[VICTIM])
    assert isinstance(hostile.tell(VICTIM, other(survivors)).read(), Declined)
    assert hostile.different(VICTIM, "consistency_check") == 0


def test_one_list_for_the_victim_and_another_for_the_rest_opens_nothing(hostile: Hostile) -> None:
    """Four agree on the four of them, so that the victim is a dropout; the victim signs for five.

    The quorum of the four asks the victim for shares of what it would then not have sent.
    """
    survivors = message_in(hostile.until(SurvivorSet)[VICTIM])
    hostile.tell(VICTIM, survivors)
    signed = []
    for name in hostile.sites:
        if name != VICTIM:
            hostile.tell(name, without_the_victim(survivors))
            signed += [s for s in hostile.said_by(name) if s.label == "consistency_check"]
    assert len(signed) == 4
    assert isinstance(hostile.tell(VICTIM, Quorum(tuple(signed))).read(), Declined)
    assert hostile.different(VICTIM, "unmask") == 0


def test_both_kinds_of_shares_are_never_given(hostile: Hostile) -> None:
    """The self-mask's share for a survivor, then, in other requests, the mask seed's."""
    quorum = message_in(hostile.until(Quorum)[VICTIM])
    survivors = [s for s in hostile.said_by(VICTIM) if s.label == "consistency_check"]
    hostile.tell(VICTIM, quorum)
    for again in (Quorum(quorum.signatures[1:]), Quorum(quorum.signatures[::-1]), Quorum(())):
        hostile.tell(VICTIM, again)
        hostile.tell(VICTIM, quorum)
    assert len(survivors) == 1
    assert hostile.different(VICTIM, "unmask") == 1


def test_a_quorum_of_strangers_opens_nothing(hostile: Hostile) -> None:
    quorum = message_in(hostile.until(Quorum)[VICTIM])
    forged = tuple(
        Signed(s.label, s.sender, s.body, bytes(len(s.signature))) for s in quorum.signatures
    )
    assert isinstance(hostile.tell(VICTIM, Quorum(forged)).read(), Declined)
    assert hostile.different(VICTIM, "unmask") == 0


def test_another_model_after_the_agreement_is_not_trained_on(hostile: Hostile) -> None:
    from secagg.messages import AgreedView

    request = hostile.until(AgreedView)[VICTIM]
    other = {**first_model(), "dense.bias": first_model()["dense.bias"] * 2}
    reply = hostile.ask(VICTIM, request, other)
    assert isinstance(reply.read(), Declined)
    assert not reply.upload
    assert not hostile.ask(VICTIM, request).upload


def test_the_upload_that_is_asked_for_again_is_the_same(hostile: Hostile) -> None:
    """Training twice would be two vectors under one mask."""
    from secagg.messages import AgreedView

    request = hostile.until(AgreedView)[VICTIM]
    first, second = hostile.ask(VICTIM, request), hostile.ask(VICTIM, request)
    assert bytes(first.upload) == bytes(second.upload) != b""
    assert first.head == second.head
