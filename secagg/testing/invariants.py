"""What must hold after any round, whatever the links and the coordinator did.

The checks read what the tenants handed out (`SimulatedNetwork.sent`), delivered or not. They speak
of honest tenants only: pass the names of those that deviate on purpose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from secagg.messages import Signed, Unmask, decode_message
from secagg.testing.faults import UPLOAD_CHUNK
from secagg.testing.network import Envelope, SimulatedNetwork
from secagg.transcript import verify_transcript


class InvariantBroken(AssertionError):
    """A claim of the protocol does not hold in this round."""


def require(holds: bool, claim: str) -> None:
    """Raise `InvariantBroken` unless `holds`."""
    if not holds:
        raise InvariantBroken(claim)


def check_invariants(network: SimulatedNetwork, deviating: Iterable[str] = ()) -> None:
    """Everything below.

    Raises:
        InvariantBroken: names the claim.
    """
    honest = sorted(network.tenants.keys() - set(deviating))
    check_said_once(network, honest)
    check_one_kind_of_share(network, honest)
    check_opened_exactly(network)
    check_transcript(network)


def check_said_once(network: SimulatedNetwork, honest: Iterable[str]) -> None:
    """No tenant signed two messages of one kind, or sent two bytes at one place of its upload."""
    for name in honest:
        said: dict[str, bytes] = {}
        for envelope in _sent_by(network, name):
            if envelope.label != UPLOAD_CHUNK:
                first = said.setdefault(envelope.label, envelope.data)
                require(first == envelope.data, f"{name} sent two different {envelope.label}")
        _check_upload(network, name)


def check_one_kind_of_share(network: SimulatedNetwork, honest: Iterable[str]) -> None:
    """Of no dealer did honest tenants release both kinds of share, or anything twice."""
    kinds: dict[int, int] = {}
    for name in honest:
        for body in _bodies(network, name):
            dealers = [answer.dealer for answer in body.answers]
            require(len(set(dealers)) == len(dealers), f"{name} answered twice for one dealer")
            for answer in body.answers:
                first = kinds.setdefault(answer.dealer, answer.kind)
                require(
                    first == answer.kind, f"both kinds of share of {answer.dealer} were released"
                )


def check_opened_exactly(network: SimulatedNetwork) -> None:
    """Whatever was opened is the exact sum of its survivors' inputs, over enough of them."""
    result = network.aggregator.result
    if result is None:
        return
    require(len(result.survivors) >= network.aggregator.plan.least, "too few survivors were opened")
    expected = network.expected_levels(result.survivors)
    require(
        bool(np.array_equal(result.level_sum, expected)), "the opened sum is not the survivors'"
    )
    weight = sum(network.tenants[name].weight for name in result.survivors)
    require(result.total_weight == weight, "the opened weight is not the survivors'")


def check_transcript(network: SimulatedNetwork) -> None:
    """An opened round has a transcript that verifies, over the same survivors."""
    result = network.aggregator.result
    if result is not None:
        roster = next(iter(network.tenants.values())).roster
        verified = verify_transcript(network.aggregator.transcript, roster)
        require(verified.survivors == result.survivors, "the transcript names other survivors")


def _sent_by(network: SimulatedNetwork, name: str) -> Iterator[Envelope]:
    return (envelope for envelope in network.sent if envelope.tenant == name and envelope.up)


def _check_upload(network: SimulatedNetwork, name: str) -> None:
    upload: dict[int, int] = {}
    for envelope in _sent_by(network, name):
        if envelope.label == UPLOAD_CHUNK:
            for place, value in enumerate(envelope.data, envelope.offset):
                require(
                    upload.setdefault(place, value) == value,
                    f"{name} sent two different bytes at place {place} of its upload",
                )


def _bodies(network: SimulatedNetwork, name: str) -> Iterator[Unmask]:
    seen: set[bytes] = set()
    for envelope in _sent_by(network, name):
        message = decode_message(envelope.data) if envelope.label == Unmask.LABEL else None
        if isinstance(message, Signed) and message.digest not in seen:
            seen.add(message.digest)
            yield message.read(Unmask)


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
