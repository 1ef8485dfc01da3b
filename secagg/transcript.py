"""The transcript of a round: every signed message that it stands on, in a hash chain.

    chain_0 = H("transcript", context, plan, roster)
    chain_k = H("transcript", context, chain_{k-1}, message_k)

    messages: U1, a Dealing for every dealer, U2, U3, quorum, every answer, PadBoxes

`verify_transcript` replays the checks that honest participants made and says over whom the sum was
opened and under which plan. That it was opened once follows from the quorum, given at most f
colluders. A transcript alone says nothing about the sum's value; with the survivors' uploads it
gives the sum itself (`recompute.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from secagg import checks
from secagg.checks import Agreement, Directory, Setting, View
from secagg.edges import opening_pairs
from secagg.errors import ConfigError, MalformedMessage, ProtocolError, Step
from secagg.identity import Roster, labelled_hash
from secagg.messages import (
    BODIES,
    AgreedView,
    Dealing,
    KeyDirectory,
    LeafOutline,
    PadBoxes,
    Quorum,
    ShareKeys,
    ShareKeysBody,
    Signed,
    SurvivorSet,
    Unmask,
    box_digest,
    decode_message,
    downlink_step,
)
from secagg.plan import RoundPlan
from secagg.records import Digest, decode, encode
from secagg.scheme import Opening, SealedPad, scheme_of, upload_bytes
from secagg.secret import SeedShare, Share
from secagg.shamir import parse_share

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
    """What a valid transcript proves.

    `opening` has what opens the sum, `roots` the Merkle root of each survivor's upload: together
    with the uploads they give the sum again.
    """

    plan: RoundPlan
    survivors: tuple[str, ...]
    dropouts: tuple[str, ...]
    signers: tuple[str, ...]
    answered: tuple[str, ...]
    digest: bytes
    opening: Opening = field(repr=False)
    roots: Mapping[str, bytes] = field(repr=False)


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
    chain, step = chain_start(plan, roster), Step.ADVERTISE_KEYS
    for link in transcript.links:
        chain, step = chain_next(plan, chain, link.message), _step_of(link.message, step)
        if chain != link.chain:
            raise ProtocolError(
                "the hash chain is broken: a message was changed, added or removed", step=step
            )
    return _replay(setting, iter([link.message for link in transcript.links]), chain)


def _step_of(data: bytes, before: Step) -> Step:
    """The step that a message belongs to; that of the one before it where nobody can say."""
    try:
        message = decode_message(data)
    except MalformedMessage:
        return before
    match message:
        case Dealing():
            return Step.SHARE_KEYS
        case PadBoxes():
            return Step.UNMASK
        case Signed():
            return BODIES[message.label].STEP if message.label in BODIES else before
        case ShareKeys():
            return Step.SHARE_KEYS
        case _:
            return downlink_step(message)


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
    quorum = _next(messages, Quorum, Step.CONSISTENCY_CHECK)
    signers = checks.read_quorum(setting, survivors, quorum)
    outlines = {dealer: dealing.by_holder() for dealer, dealing in dealings.items()}
    answers, message = _answers(setting, view, survivors, outlines, messages)
    boxes = _pad_boxes(view, survivors, outlines, message)
    if next(messages, None) is not None:
        raise MalformedMessage("something else follows the pad boxes", step=Step.UNMASK)
    return Verified(
        plan,
        survivors=_names(plan, sorted(survivors.indices)),
        dropouts=_names(plan, [one for one in view.members if one not in survivors.indices]),
        signers=_names(plan, signers),
        answered=_names(plan, tuple(answers)),
        digest=chain,
        opening=Opening(
            keys=directory.keys,
            commitments={d: one.read(ShareKeysBody).secret_commitment for d, one in bodies.items()},
            edges=view.edges,
            survivors=survivors.indices,
            shares=_shares(setting, view, answers),
            sums={holder: body.key_sum for holder, body in answers.items() if body.key_sum},
            boxes=boxes,
        ),
        roots={plan.cohort[one.index]: one.root for one in survivors.members},
    )


def _dealings(
    setting: Setting, directory: Directory, messages: Iterator[bytes]
) -> tuple[dict[int, Dealing], object]:
    """All dealings, and the message after them."""
    dealings: dict[int, Dealing] = {}
    for data in messages:
        message = decode_message(data)
        if not isinstance(message, Dealing):
            return dealings, message
        checks.read_dealing(setting, directory, message)
        if message.body.sender <= max(dealings, default=-1):
            raise MalformedMessage("dealers are not unique and in order", step=Step.SHARE_KEYS)
        dealings[message.body.sender] = message
    raise MalformedMessage("it ends before the agreed view", step=Step.SHARE_KEYS)


def _answers(
    setting: Setting,
    view: View,
    survivors: Agreement,
    outlines: Mapping[int, Mapping[int, LeafOutline]],
    messages: Iterator[bytes],
) -> tuple[dict[int, Unmask], object]:
    """All answers by holder, and the message after them."""
    records: list[Signed] = []
    message: object = None
    for data in messages:
        message = decode_message(data)
        if not isinstance(message, Signed):
            break
        records.append(message)
    answers = checks.verify_all(setting, records, Unmask)
    if not set(answers) <= survivors.indices:
        raise ProtocolError("an answer is from outside U3", step=Step.UNMASK)
    for holder, body in answers.items():
        checks.check_answers(setting, view, survivors, outlines, holder, body)
    return answers, message


def _shares(
    setting: Setting, view: View, answers: Mapping[int, Unmask]
) -> dict[int, dict[int, Share]]:
    """The released shares by dealer and holder: t or more of each dealer, or t sums (C36)."""
    scheme = scheme_of(setting.plan)
    shares: dict[int, dict[int, Share]] = {member: {} for member in view.members}
    for holder, body in answers.items():
        for one in body.answers:
            shares[one.dealer][holder] = parse_share(one.share, SeedShare)
    sums = [holder for holder, body in answers.items() if body.key_sum]
    if scheme.released(view.members, shares, sums) < setting.plan.share_threshold:
        raise ProtocolError("fewer answers than the threshold", step=Step.UNMASK)
    return shares


def _pad_boxes(
    view: View,
    survivors: Agreement,
    outlines: Mapping[int, Mapping[int, LeafOutline]],
    message: object,
) -> dict[tuple[int, int], SealedPad]:
    """The boxes between dropouts and survivors, each as its dealer's leaf has it (C39)."""
    if not isinstance(message, PadBoxes):
        raise MalformedMessage("the pad boxes are missing", step=Step.UNMASK)
    due = {
        pair: outline
        for pair in opening_pairs(view.edges, survivors.indices)
        for outline in [outlines[pair[0]][pair[1]]]
        if outline.pad_commitment
    }
    if [(one.dealer, one.holder) for one in message.boxes] != list(due):
        raise MalformedMessage("the pad boxes are not those that were opened", step=Step.UNMASK)
    for one in message.boxes:
        if box_digest(one.box) != due[one.dealer, one.holder].box_digest:
            raise ProtocolError("a pad box is not the one dealt", step=Step.UNMASK)
    return {
        pair: SealedPad(one.box, due[pair].pad_commitment)
        for one in message.boxes
        for pair in [(one.dealer, one.holder)]
    }


def _next(messages: Iterator[bytes], kind: type[_M], step: Step) -> _M:
    message = next(messages, None)
    parsed = None if message is None else decode_message(message)
    if not isinstance(parsed, kind):
        raise MalformedMessage(f"{kind.__name__} is missing here", step=step)
    return parsed


def _names(plan: RoundPlan, indices: tuple[int, ...] | list[int]) -> tuple[str, ...]:
    return tuple(plan.cohort[index] for index in indices)
