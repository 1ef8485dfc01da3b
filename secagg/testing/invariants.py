"""What must hold after any round, whatever the links, the tenants and the coordinator did.

`Witness` takes everything that leaves honest tenants and raises at the first contradiction. The
`check_*` functions run it, and more, on a `SimulatedNetwork`. All of them speak of honest tenants:
pass the names of those that deviate on purpose. What a coordinator with its colluders can compute
from what it has seen is the other half: `secagg.testing.knowledge`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from secagg import merkle
from secagg.errors import FaultyParticipant, SecaggError
from secagg.messages import BODIES, ShareKeys, Signed, Survivors, Unmask, decode_message
from secagg.plan import RoundPlan
from secagg.recompute import check_sum, sum_root
from secagg.scheme import leaf_places, scheme_of
from secagg.testing.faults import UPLOAD_CHUNK
from secagg.testing.network import Envelope, SimulatedNetwork
from secagg.transcript import verify_transcript

# Of the two messages of an upload the later one answers.
_LAST_LABEL = {kind.STEP: label for label, kind in BODIES.items()}


class InvariantBroken(AssertionError):
    """A claim of the protocol does not hold in this round."""


def require(holds: bool, claim: str) -> None:
    """Raise `InvariantBroken` unless `holds`."""
    if not holds:
        raise InvariantBroken(claim)


class Witness:
    """What honest tenants of one round were seen to hand out, lost or not, by any copy of them.

    It holds each of them to: one message of each kind, one byte at each place of the upload, one
    kind of share of each dealer (all tenants together) or one sum of shares of each holder, an
    answer only to a quorum, and at most one set of survivors that a quorum may have signed.
    """

    def __init__(self, plan: RoundPlan, deviating: Iterable[str] = ()) -> None:
        self.plan = plan
        self.deviating = frozenset(deviating)
        self.said: dict[tuple[str, str], Signed] = {}
        self.kinds: dict[int, int] = {}
        self.released: dict[tuple[int, int], set[int]] = {}
        self.summed: dict[int, bytes] = {}
        """By holder that released a sum of shares: the survivors that it had signed before."""
        self._bytes: dict[tuple[str, str], bytes] = {}
        self._uploads: dict[str, tuple[bytearray, bytearray]] = {}
        self._signers: dict[bytes, set[str]] = {}

    def follow(self, network: SimulatedNetwork, seen: int = 0) -> int:
        """Take what was sent since the first `seen` envelopes; returns how many there are now."""
        for envelope in network.sent[seen:]:
            if envelope.up and envelope.tenant not in self.deviating:
                self.see(envelope.tenant, envelope.label, envelope.data, envelope.offset)
        return len(network.sent)

    def see(self, tenant: str, label: str, data: bytes, offset: int = 0) -> None:
        """Take one message, or a piece of an upload (label `upload_chunk`).

        Raises:
            InvariantBroken: names the claim.
        """
        if label == UPLOAD_CHUNK:
            self._see_piece(tenant, offset, data)
        elif (first := self._bytes.setdefault((tenant, label), data)) is not data:
            require(first == data, f"{tenant} sent two different {label}")
        else:
            self._see_first(tenant, label, data)

    def uploaded(self, tenant: str) -> bool:
        """Whether any byte of its upload left."""
        return bool(self._uploads.get(tenant))

    def signers_of(self, survivors: bytes) -> frozenset[str]:
        """The honest tenants that signed these survivors, by the bytes of the signed body."""
        return frozenset(self._signers.get(survivors, ()))

    def _see_piece(self, tenant: str, offset: int, data: bytes) -> None:
        whole, known = self._uploads.setdefault(tenant, (bytearray(), bytearray()))
        end = offset + len(data)
        missing = bytes(max(0, end - len(whole)))
        whole += missing
        known += missing
        if any(known[offset:end]):
            old = zip(whole[offset:end], data, known[offset:end], strict=True)
            same = all(was == now or not seen for was, now, seen in old)
            require(same, f"{tenant} sent two different bytes at one place of its upload")
        whole[offset:end] = data
        known[offset:end] = b"\1" * len(data)

    def _see_first(self, tenant: str, label: str, data: bytes) -> None:
        message = decode_message(data)
        signed = message.body if isinstance(message, ShareKeys) else message
        if not isinstance(signed, Signed):
            raise InvariantBroken(f"{tenant} sent what is no participant's message")
        self.said[tenant, label] = signed
        if label == Survivors.LABEL:
            self._signers.setdefault(signed.body, set()).add(tenant)
            self._check_one_quorum()
        if label == Unmask.LABEL:
            self._see_answer(tenant, signed.read(Unmask))

    def _see_answer(self, tenant: str, body: Unmask) -> None:
        holder = self.plan.cohort.index(tenant)
        dealers = [answer.dealer for answer in body.answers]
        require(len(set(dealers)) == len(dealers), f"{tenant} answered twice for one dealer")
        signed = self.said.get((tenant, Survivors.LABEL))
        signers = self.signers_of(b"" if signed is None else signed.body)
        agreeing = len(signers) + len(self.deviating)
        require(agreeing >= self.plan.quorum, f"{tenant} answered without a quorum")
        summed = not scheme_of(self.plan).answers_are_proven
        require(not summed or not dealers, f"{tenant} released single shares")
        sums = summed and holder in self.plan.same_holders
        require(bool(body.key_sum) == sums, f"{tenant} released a sum that is not asked for")
        if body.key_sum and signed is not None:
            self.summed[holder] = signed.body
        for answer in body.answers:
            first = self.kinds.setdefault(answer.dealer, answer.kind)
            require(first == answer.kind, f"both kinds of share of {answer.dealer} were released")
            self.released.setdefault((answer.dealer, answer.kind), set()).add(holder)

    def _check_one_quorum(self) -> None:
        if len(self.deviating) <= self.plan.max_colluders:
            need = self.plan.quorum - len(self.deviating)
            enough = [names for names in self._signers.values() if len(names) >= need]
            require(len(enough) <= 1, "two different sets of survivors may have a quorum")


def check_invariants(network: SimulatedNetwork, deviating: Iterable[str] = ()) -> None:
    """Everything below.

    Raises:
        InvariantBroken: names the claim.
    """
    names = frozenset(deviating)
    Witness(network.aggregator.plan, names).follow(network)
    check_opened_exactly(network, names)
    check_blame(network, names)
    check_transcript(network)


def check_opened_exactly(network: SimulatedNetwork, deviating: Iterable[str] = ()) -> None:
    """Whatever was opened is the exact sum of its survivors' inputs, over enough of them.

    Nothing is said about a sum with a survivor among `deviating` of which no levels are known.
    """
    result = network.aggregator.result
    if result is None:
        return
    require(len(result.survivors) >= network.aggregator.plan.least, "too few survivors were opened")
    unknown = {name for name in deviating if network.encoder(name).levels is None}
    if not unknown.isdisjoint(result.survivors):
        return
    expected = network.expected_levels(result.survivors)
    require(
        bool(np.array_equal(result.level_sum, expected)), "the opened sum is not the survivors'"
    )
    weight = sum(network.encoder(name).weight for name in result.survivors)
    require(result.total_weight == weight, "the opened weight is not the survivors'")


def check_blame(network: SimulatedNetwork, deviating: Iterable[str] = ()) -> None:
    """Nobody honest is named with evidence, and the evidence is what the named one signed."""
    guilty = frozenset(deviating)
    signed = {_digest(one): one.tenant for one in network.sent if one.up}
    for name, evidence in _accusations(network):
        require(name in guilty, f"{name} is honest and was proven faulty")
        require(
            name in {signed.get(digest) for digest in evidence},
            f"the evidence against {name} has nothing that it signed",
        )
    for excluded in network.excluded:
        if "no answer" in excluded.reason:
            place = (_LAST_LABEL[excluded.step], network.plan.index(excluded.participant))
            taken = place in network.aggregator._messages
            require(not taken, f"{excluded.participant} answered, and was called silent")


def check_transcript(network: SimulatedNetwork) -> None:
    """An opened round has a transcript that verifies, and from which the same sum comes again."""
    result = network.aggregator.result
    if result is not None:
        roster = next(iter(network.tenants.values())).roster
        verified = verify_transcript(network.aggregator.transcript, roster)
        require(verified.survivors == result.survivors, "the transcript has other survivors")
        root = sum_root(verified.plan, result.level_sum, result.total_weight)
        check_sum(verified, SpooledUploads(network), root)


class SpooledUploads:
    """The survivors' uploads of a simulated round, for `secagg.recompute`."""

    def __init__(self, network: SimulatedNetwork) -> None:
        result, sizes = network.outcome.opened, [p.size for p in leaf_places(network.plan)]
        self._leaves = {
            name: [bytes(leaf) for leaf in network.spool.read(name, iter(sizes))]
            for name in result.survivors
        }

    def leaf(self, participant: str, number: int) -> tuple[bytes, Sequence[bytes]]:
        """See `secagg.recompute.Uploads`."""
        leaves = self._leaves[participant]
        return leaves[number], merkle.path(list(map(merkle.bulk_leaf_hash, leaves)), number)


def _accusations(network: SimulatedNetwork) -> Iterable[tuple[str, tuple[bytes, ...]]]:
    errors: list[SecaggError | None] = [refused.error for refused in network.refused]
    for error in (*errors, network.error):
        if isinstance(error, FaultyParticipant):
            yield error.participant, error.evidence
    for excluded in network.excluded:
        if excluded.evidence:
            yield excluded.participant, excluded.evidence


def _digest(envelope: Envelope) -> bytes:
    """The digest of the signed record in an envelope; empty where there is none."""
    if envelope.label in (UPLOAD_CHUNK, "nonsense"):
        return b""
    message = decode_message(envelope.data)
    signed = message.body if isinstance(message, ShareKeys) else message
    return signed.digest if isinstance(signed, Signed) else b""


def same_bytes(first: SimulatedNetwork, second: SimulatedNetwork) -> bool:
    """Whether two runs sent the same bytes in the same order."""
    return [_content(e) for e in first.sent] == [_content(e) for e in second.sent]


def _content(envelope: Envelope) -> tuple[str, str, int, bytes]:
    return (envelope.tenant, envelope.label, envelope.offset, envelope.data)


def rebuilt(value: Any) -> Any:
    """The same record made anew, field by field.

    Some records keep the bytes that they were decoded from (`secagg.records.Kept`); what is to
    show that encoding gives those bytes again has to forget them first.
    """
    if isinstance(value, tuple):
        return tuple(map(rebuilt, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return type(value)(*[rebuilt(getattr(value, field.name)) for field in fields])
    return value
