"""The transcript of a round: every signed message that it stands on, in a hash chain.

    chain_0 = H("transcript", context, plan, roster)
    chain_k = H("transcript", context, chain_{k-1}, message_k)

`verify_transcript` replays the checks that honest participants made and says over whom the sum was
opened and under which plan. That it was opened once follows from the quorum, given at most f
colluders. It does not recompute the sum: a transcript alone says nothing about its value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from secagg import checks
from secagg.checks import Directory, Setting, View
from secagg.errors import ConfigError, MalformedMessage, ProtocolError, Step
from secagg.identity import Roster, labelled_hash
from secagg.messages import (
    AgreedView,
    KeyDirectory,
    Quorum,
    ShareKeys,
    Signed,
    Survivors,
    SurvivorSet,
    Unmask,
    decode_message,
)
from secagg.plan import RoundPlan
from secagg.records import Digest, decode, encode
from secagg.scheme import upload_bytes

_M = TypeVar("_M")


@dataclass(frozen=True, slots=True)
class Link:
    """One message and the chain's value after it."""

    message: bytes
    chain: Digest


@dataclass(frozen=True, slots=True)
class Transcript:
    """A whole transcript as it is kept and sent."""

    plan: bytes
    roster: bytes
    links: tuple[Link, ...]


class TranscriptWriter:
    """Collects messages as the aggregator accepts and announces them."""

    def __init__(self, plan: RoundPlan, roster: Roster) -> None:
        self._plan, self._roster = plan, roster
        self._links: list[Link] = []
        self._chain = chain_start(plan, roster)

    @property
    def digest(self) -> bytes:
        """The chain's last value."""
        return self._chain

    def append(self, *messages: bytes) -> None:
        """Add messages in order."""
        for message in messages:
            self._chain = chain_next(self._plan, self._chain, message)
            self._links.append(Link(message, self._chain))

    def finish(self) -> bytes:
        """Canonical bytes of the transcript so far."""
        return encode(Transcript(self._plan.encode(), self._roster.encode(), tuple(self._links)))


def chain_start(plan: RoundPlan, roster: Roster) -> bytes:
    """chain_0."""
    return labelled_hash("transcript", plan.context, plan.encode(), roster.encode())


def chain_next(plan: RoundPlan, chain: bytes, message: bytes) -> bytes:
    """chain_k from chain_{k-1}."""
    return labelled_hash("transcript", plan.context, chain, message)


@dataclass(frozen=True, slots=True)
class Verified:
    """What a valid transcript proves."""

    plan: RoundPlan
    survivors: tuple[str, ...]
    dropouts: tuple[str, ...]
    signers: tuple[str, ...]
    answered: tuple[str, ...]
    digest: bytes


def verify_transcript(data: bytes, roster: Roster) -> Verified:
    """Check a finished round's transcript against a roster that the verifier trusts (C37).

    Raises:
        ProtocolError: names the step whose messages do not hold; `MalformedMessage` for bytes
            that are no transcript.
    """
    transcript = decode(Transcript, data)
    plan = RoundPlan.decode(transcript.plan)
    if roster.encode() != transcript.roster:
        raise ProtocolError("the transcript was made under another roster")
    try:
        setting = Setting(plan, roster)
    except ConfigError as error:
        raise MalformedMessage(str(error)) from None
    chain = chain_start(plan, roster)
    for link in transcript.links:
        chain = chain_next(plan, chain, link.message)
        if chain != link.chain:
            raise ProtocolError("the hash chain is broken: a message was changed, added or removed")
    return _replay(setting, iter([link.message for link in transcript.links]), chain)


def _replay(setting: Setting, messages: Iterator[bytes], chain: bytes) -> Verified:
    plan = setting.plan
    keys = _next(messages, KeyDirectory, Step.ADVERTISE_KEYS)
    directory = checks.read_directory(setting, keys)
    dealings, message = _dealings(setting, directory, messages)
    if not isinstance(message, AgreedView):
        raise MalformedMessage("the agreed view is missing", step=Step.ACKNOWLEDGE)
    bodies = {dealer: dealing.body for dealer, dealing in dealings.items()}
    view = checks.read_agreed_view(setting, keys, directory.digest, bodies, message)
    survivor_set = _next(messages, SurvivorSet, Step.MASKED_INPUT)
    survivors = checks.read_survivors(setting, view, survivor_set, upload_bytes(plan))
    signers = checks.read_quorum(
        setting, survivors, _next(messages, Quorum, Step.CONSISTENCY_CHECK)
    )
    answered = _answers(setting, directory, view, survivors, dealings, messages)
    members = {survivor.index for survivor in survivors.members}
    return Verified(
        plan,
        survivors=_names(plan, sorted(members)),
        dropouts=_names(plan, [index for index in view.members if index not in members]),
        signers=_names(plan, signers),
        answered=_names(plan, answered),
        digest=chain,
    )


def _dealings(
    setting: Setting, directory: Directory, messages: Iterator[bytes]
) -> tuple[dict[int, ShareKeys], object]:
    """All `ShareKeys`, and the message after them."""
    from secagg.participant_steps import bundle_bytes
    from secagg.scheme import scheme_of

    kinds = len(scheme_of(setting.plan).share_kinds)
    dealings: dict[int, ShareKeys] = {}
    for data in messages:
        message = decode_message(data)
        if not isinstance(message, ShareKeys):
            return dealings, message
        checks.read_share_keys(setting, directory, message, kinds, bundle_bytes())
        if message.body.sender <= max(dealings, default=-1):
            raise MalformedMessage("dealers are not unique and in order", step=Step.SHARE_KEYS)
        dealings[message.body.sender] = message
    raise MalformedMessage("it ends before the agreed view", step=Step.SHARE_KEYS)


def _answers(
    setting: Setting,
    directory: Directory,
    view: View,
    survivors: Survivors,
    dealings: dict[int, ShareKeys],
    messages: Iterator[bytes],
) -> tuple[int, ...]:
    signed = [decode_message(data) for data in messages]
    records = [record for record in signed if isinstance(record, Signed)]
    if len(records) != len(signed):
        raise MalformedMessage("something else follows the answers", step=Step.UNMASK)
    answers = checks.verify_all(setting, records, Unmask)
    if not set(answers) <= {survivor.index for survivor in survivors.members}:
        raise ProtocolError("an answer is from outside U3", step=Step.UNMASK)
    for holder, body in answers.items():
        checks.check_answers(setting, directory, view, survivors, dealings, holder, body)
    if len(answers) < setting.plan.share_threshold:
        raise ProtocolError("fewer answers than the threshold", step=Step.UNMASK)
    return tuple(answers)


def _next(messages: Iterator[bytes], kind: type[_M], step: Step) -> _M:
    message = next(messages, None)
    parsed = None if message is None else decode_message(message)
    if not isinstance(parsed, kind):
        raise MalformedMessage(f"{kind.__name__} is missing here", step=step)
    return parsed


def _names(plan: RoundPlan, indices: tuple[int, ...] | list[int]) -> tuple[str, ...]:
    return tuple(plan.cohort[index] for index in indices)
