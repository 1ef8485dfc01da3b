"""Every decoder of bytes that come from outside, each as a function of one byte string.

The first line of a target's docstring is its invariant; a target returns where it holds and raises
where it does not. Beside it every target promises to stay within its `seconds` and `mebibytes` for
any input of up to 64 KiB: what an attacker sends must not cost more than what it is worth.

`fuzz/run.py` runs them guided by coverage (atheris) or with Hypothesis; tests/core/test_fuzz.py
runs them on the corpus, on every input that ever broke one, and on some mutations.
"""

from __future__ import annotations

import atexit
import dataclasses
import io
import json
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from secagg import checks, messages, participant_steps, suite
from secagg.canonical import Reader, Writer
from secagg.ckks import sharing
from secagg.ckks.field import PRIME as FIELD
from secagg.ckks.parameters import Parameters
from secagg.ckks.residues import wire
from secagg.errors import ConfigError, MalformedMessage, ProtocolError, SecaggError, Step
from secagg.identity import NO_CONTEXT, Roster
from secagg.intake import Accumulator, Incoming
from secagg.layout import Layout
from secagg.messages import BODIES, Signed, decode_message
from secagg.packing import pack, packed_size, unpack
from secagg.participant import Participant
from secagg.plan import RoundPlan
from secagg.prg import word_dtype
from secagg.records import decode, encode
from secagg.scheme import leaf_places
from secagg.secret import SealKey, SelfMaskShare
from secagg.shamir import PRIME, parse_share
from secagg.suite import Peer
from secagg.testing import SeededRandomness, cohort
from secagg.testing.invariants import rebuilt
from secagg.transcript import Link, Transcript, verify_transcript
from secagg_coordinator.registry import check_safetensors
from secagg_wire import codec
from secagg_wire.enrol import Request
from secagg_wire.key_files import KeyFiles
from secagg_wire.manifest import Manifest
from secagg_wire.refusals import InvalidRequest
from secagg_wire.v1 import round_service_pb2
from tests.vectors import ckks_rounds, rounds

LONGEST = 1 << 16
SEAL_KEY = SealKey(bytes(range(32)))
NOW = datetime(2026, 1, 1, tzinfo=UTC)
RECORDS: tuple[type, ...] = (
    *BODIES.values(), messages.Signed, messages.Leaf, messages.LeafOutline, messages.Survivor,
    messages.Answer, messages.ShareKeys, messages.Dealing, messages.PadBox, messages.PadBoxes,
    messages.KeyDirectory, messages.DeliveredLeaf, messages.ShareDelivery, messages.AgreedView,
    messages.SurvivorSet, messages.Quorum, participant_steps.Held,
    *get_args(participant_steps.State), Link, Transcript,
)  # fmt: skip


class Broken(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True)
class Target:
    """One decoder, its invariant and what it may cost."""

    name: str
    run: Callable[[bytes], None]
    seconds: float
    mebibytes: int

    @property
    def invariant(self) -> str:
        """What holds for every input."""
        return (self.run.__doc__ or "").partition("\n")[0]

    def check(self, data: bytes, measure_memory: bool = False) -> None:
        """Run it, and hold it to its cost: processor time, and memory where that is measured."""
        if measure_memory:
            self.run(data)  # rounds that a target keeps for all its inputs are no cost of this one
            tracemalloc.start()
        began = time.process_time()
        try:
            self.run(data)
            spent = time.process_time() - began
            peak = tracemalloc.get_traced_memory()[1] if measure_memory else 0
        finally:
            if measure_memory:
                tracemalloc.stop()
        require(spent <= self.seconds, f"{spent:.1f} s for {len(data)} bytes")
        require(peak <= self.mebibytes << 20, f"{peak} bytes of memory for {len(data)} bytes")


TARGETS: dict[str, Target] = {}


def target(
    seconds: float = 1.0, mebibytes: int = 16
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Register a decoder."""

    def register(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        name = run.__name__.strip("_")
        TARGETS[name] = Target(name, run, seconds, mebibytes)
        return run

    return register


def require(holds: bool, claim: str) -> None:
    """Raise `Broken` unless `holds`."""
    if not holds:
        raise Broken(claim)


# ---------------------------------------------------------------------------- the core's records


@target()
def message(data: bytes) -> None:
    """Decodes to a message that encodes to the very same bytes, or raises MalformedMessage."""
    try:
        found = decode_message(data)
    except MalformedMessage:
        return
    require(encode(rebuilt(found)) == data, "a message has two encodings")
    require(encode(found) == data, "the kept bytes are others")


@target()
def record(data: bytes) -> None:
    """Decodes, as the type that the first byte selects, to what encodes to the same bytes, or raises MalformedMessage."""  # noqa: E501
    kind = RECORDS[data[0] % len(RECORDS)] if data else RECORDS[0]
    try:
        found: Any = decode(kind, data[1:])
    except MalformedMessage:
        return
    require(encode(rebuilt(found)) == data[1:], "a record has two encodings")
    _read_bodies(found)


def _read_bodies(found: object) -> None:
    """Every signed body in a record reads the same way."""
    if isinstance(found, Signed) and found.label in BODIES:
        try:
            body = found.read(BODIES[found.label])
        except MalformedMessage:
            return
        require(encode(body) == found.body, "a body has two encodings")
    elif isinstance(found, tuple):
        for one in found:
            _read_bodies(one)
    elif dataclasses.is_dataclass(found):
        for name in getattr(type(found), "__slots__", ()):
            _read_bodies(getattr(found, name, None))


@target(seconds=2.0)
def plan(data: bytes) -> None:
    """Decodes to a plan that can work and encodes to the very same bytes, or raises MalformedMessage."""  # noqa: E501
    try:
        found = RoundPlan.decode(data)
    except MalformedMessage:
        return
    require(found.encode() == data, "a plan has two encodings")
    require(3 <= found.least <= found.n, "nobody can be left")
    require(found.share_threshold <= found.share_count <= found.n, "shares that nobody holds")
    if found.scheme == "masking":
        require(2 * found.share_threshold > found.share_count, "two sets of holders without common")
    require(
        found.share_threshold > found.max_colluders or not found.complete, "colluders could open"
    )
    require(found.min_survivors >= found.max_colluders + 2, "colluders could single one out")
    for _, bits in found.vectors:
        word_dtype(bits)


@target(seconds=2.0)
def roster(data: bytes) -> None:
    """Decodes to a roster of signed lines that encodes to the very same bytes, or raises MalformedMessage."""  # noqa: E501
    try:
        found = Roster.decode(data)
    except MalformedMessage:
        return
    require(found.encode() == data, "a roster has two encodings")


@target()
def layout(data: bytes) -> None:
    """Reads a layout that is written as the very same bytes, or raises MalformedMessage or ConfigError."""  # noqa: E501
    try:
        reader = Reader(data, "layout")
        found = Layout.read(reader)
        reader.end()
    except (MalformedMessage, ConfigError):
        return
    writer = Writer()
    found.write(writer)
    require(writer.finish() == data, "a layout has two encodings")
    require(found.size >= 1, "an empty vector")


@target(seconds=3.0)
def transcript(data: bytes) -> None:
    """Verifies only as the transcript that was written; anything else raises ProtocolError."""
    try:
        verified = verify_transcript(data, cohort(4).roster)
    except ProtocolError:
        return
    require(data in _transcripts(), f"another transcript verifies: {verified.digest.hex()}")


@lru_cache(maxsize=1)
def _transcripts() -> tuple[bytes, ...]:
    return tuple(
        rounds.ran(name).aggregator.transcript for name in ("round-x25519", "round-hybrid")
    )


@target(seconds=3.0)
def chained(data: bytes) -> None:
    """A transcript with one message exchanged for these bytes under a chain that holds verifies with the same survivors, or raises ProtocolError."""  # noqa: E501
    parts = rounds.parts_of("round-x25519")
    if not data:
        return
    parts[data[0] % len(parts)] = data[1:]
    try:
        verified = verify_transcript(rounds.chained("round-x25519", parts), cohort(4).roster)
    except ProtocolError:
        return
    require(verified.survivors == ("t000", "t001", "t002"), "other survivors")


@target()
def sealed_state(data: bytes) -> None:
    """Restores the state that was exported, or raises MalformedMessage."""
    tenant = _parked(Step.SHARE_KEYS)
    try:
        Participant.restore(
            data, SEAL_KEY, plan=tenant.running.plan, identity=tenant.identity,
            roster=tenant.roster, policy=tenant.policy, ledger=tenant.ledger,
        )  # fmt: skip
    except MalformedMessage:
        return
    require(data == exported(), "another state opens")


@lru_cache(maxsize=1)
def exported() -> bytes:
    """The one state that opens; its nonce is drawn once."""
    running = _parked(Step.SHARE_KEYS).running
    running._randomness = SeededRandomness("nonce of the exported state")
    sealed: bytes = running.export(SEAL_KEY)
    return sealed


# ---------------------------------------------------------------------------- arithmetic


@target()
def packing(data: bytes) -> None:
    """Unpacks to values below 2^bits that pack to the very same bytes, or raises MalformedMessage."""  # noqa: E501
    bits, count = 8 + (data[0] if data else 0) % 57, int.from_bytes(data[1:3], "big")
    packed = data[3:]
    try:
        words = unpack(packed, bits, count)
    except MalformedMessage:
        require(_stray(packed, bits, count), "good bytes are refused")
        return
    require(not len(words) or int(words.max()) >> bits == 0, "a value is beyond the ring")
    require(pack(np.array(words), bits) == packed, "values have two encodings")
    number = int.from_bytes(packed, "little")
    for place in {0, count // 2, count - 1} if count else ():
        require(int(words[place]) == number >> place * bits & (1 << bits) - 1, "another value")


def _stray(data: bytes, bits: int, count: int) -> bool:
    return len(data) != packed_size(count, bits) or bool(
        int.from_bytes(data, "little") >> count * bits
    )


@target()
def share(data: bytes) -> None:
    """Gives a share below p with the very same bytes, or raises MalformedMessage."""
    try:
        found = parse_share(data, SelfMaskShare)
    except MalformedMessage:
        require(len(data) != 33 or int.from_bytes(data, "big") >= PRIME, "a share is refused")
        return
    require(found.expose() == data and int.from_bytes(data, "big") < PRIME, "no field element")


@target()
def public_keys(data: bytes) -> None:
    """Accepts keys with which any exchange and encapsulation works, or raises MalformedMessage."""
    name: Any = ("x25519", "x25519-mlkem768")[data[0] % 2] if data else "x25519"
    masks, short = not data[:1] or data[0] & 2 == 0, data[0] % 128 >> 2 if data else 0
    keys = messages.AdvertiseKeys(
        data[1:33].ljust(32, b"\1"),
        data[33:65].ljust(32, b"\2")[: 32 - short if masks else short],
        data[65:1249],
        data[1249:2433],
    )
    try:
        suite.check_public_keys(name, keys, masks)
    except MalformedMessage:
        return
    mine = _my_keys(name)
    require(len(keys.mask_key) == (32 if masks else 0), "a mask key of another length")
    for point in (keys.channel_key, keys.mask_key) if masks else (keys.channel_key,):
        suite._exchange(mine, point)
    if name != "x25519":
        suite._encapsulate(keys.channel_kem)


@lru_cache(maxsize=2)
def _my_keys(name: Any) -> suite.PrivateKeys:
    from secagg.secret import ChannelSeed

    return suite.private_keys(name, ChannelSeed(bytes(32)))


# ---------------------------------------------------------------------------- state machines


ROUND, CKKS = "round-x25519", "round-ckks"
_kept: dict[tuple[str, str, Step], Any] = {}
"""Machines that wait for a message; one that has taken something is made anew."""


def _parked(last: Step, name: str = ROUND) -> Any:
    place = name, "participant", last
    if place not in _kept:
        _kept[place] = rounds.parked(name, "t001", last)
    return _kept[place]


def _waiting(step: Step, name: str = ROUND) -> Any:
    place = name, "aggregator", step
    if place not in _kept:
        aggregator = rounds.waiting(name, step)
        if step is Step.MASKED_INPUT:
            header = rounds.message_of(name, "t001", "upload_header")
            aggregator.receive("t001", header, 0.0)
        _kept[place] = aggregator
    return _kept[place]


def _meets(last: Step, data: bytes, name: str = ROUND) -> None:
    tenant = _parked(last, name)
    before = encode(tenant.running._state)
    try:
        tenant.receive(data)
    except ProtocolError:
        require(encode(tenant.running._state) == before, "a refusal changed the state")
    else:
        del _kept[name, "participant", last]


@target(seconds=2.0)
def participant(data: bytes) -> None:
    """A participant answers a coordinator's bytes, or refuses them with a ProtocolError and stays as it was."""  # noqa: E501
    if data:
        _meets(Step(data[0] % 5), data[1:])


@target(seconds=2.0)
def colluder(data: bytes) -> None:
    """A participant answers a coordinator's message with a body that a colluder signed, or refuses it with a ProtocolError and stays as it was."""  # noqa: E501
    if data:
        _meets_colluder(data, ROUND)


def _meets_colluder(data: bytes, name: str) -> None:
    step = (Step.ADVERTISE_KEYS, Step.ACKNOWLEDGE, Step.MASKED_INPUT, Step.CONSISTENCY_CHECK)[
        data[0] % 4
    ]
    found: Any = decode_message(rounds.message_of(name, "t001", rounds.DOWN[step]))
    field = dataclasses.fields(found)[0].name
    records = getattr(found, field)
    place = 2 * (data[0] >> 7)  # t000 or t002
    changed = _with_body(records, place, data[1:], name)
    _meets(step, encode(replace(found, **{field: changed})), name)


def _with_body(
    records: tuple[Signed, ...], place: int, body: bytes, name: str = ROUND
) -> tuple[Signed, ...]:
    plan, one = rounds.ran(name).aggregator.plan, records[place]
    identity = cohort(plan.n).identity(plan.cohort[one.sender])
    signature = identity.sign(plan.suite, one.label, plan.context, body)
    other = Signed(one.label, one.sender, body, signature)
    return (*records[:place], other, *records[place + 1 :])


@target(seconds=2.0)
def bundle(data: bytes) -> None:
    """A holder opens whatever a dealer sealed and committed to, and holds shares in the field or complains."""  # noqa: E501
    plain = data[:130].ljust(130, b"\0")
    tenant = _parked(Step.SHARE_KEYS)
    participant, found = tenant.running, _delivery()
    state, me = participant._state, participant._me
    keys = {one.sender: one.read(messages.AdvertiseKeys) for one in state.directory.keys}
    dealer: Any = rounds.ran("round-x25519").tenants["t000"]
    secrets = dealer.states[participant_steps.Advertised].secrets
    before, sealed = suite.seal(
        me.setting.context, Peer(0, keys[0]), Peer(1, keys[1]),
        suite.private_keys("x25519", secrets.channel), plain, SeededRandomness("bundle"),
    )  # fmt: skip
    commitments = tuple(
        checks.share_commitment(
            me.setting.context, kind, 0, 1, plain[65 * kind : 65 * kind + 33],
            plain[65 * kind + 33 : 65 * kind + 65],
        )
        for kind in (0, 1)
    )  # fmt: skip
    leaf = messages.Leaf(1, before, sealed, commitments)
    holder = participant_steps._Holder(me, state.secrets, keys)
    body = found.bodies[0].read(messages.ShareKeysBody)
    from secagg import merkle

    hashes = [bytes(32)] * 4
    hashes[1] = checks.leaf_digest(leaf.outline)
    body = replace(body, leaves_root=merkle.root(hashes))
    delivered = messages.DeliveredLeaf(0, leaf, merkle.path(hashes, 1))
    opened = holder.open(0, body, delivered)
    values = [int.from_bytes(plain[at : at + 33], "big") for at in (0, 65)]
    require((opened is not None) == all(value < PRIME for value in values), "a share misjudged")


@lru_cache(maxsize=1)
def _delivery() -> messages.ShareDelivery:
    found = decode_message(rounds.message_of("round-x25519", "t001", "share_delivery"))
    require(isinstance(found, messages.ShareDelivery), "the round's own delivery")
    return found  # type: ignore[return-value]


@target(seconds=2.0)
def aggregator(data: bytes) -> None:
    """An aggregator takes the message that is due, or refuses it with a ProtocolError and stays as it was."""  # noqa: E501
    if data:
        _aggregator_meets(Step(data[0] % 6), data[1:])


def _aggregator_meets(step: Step, data: bytes, name: str = ROUND) -> None:
    found = _waiting(step, name)
    before = found._transcript.digest, found.waiting, len(found._messages)
    try:
        found.receive("t001", data, 0.0)
    except ProtocolError:
        now = found._transcript.digest, found.waiting, len(found._messages)
        require(now == before, "a refusal changed the round")
    else:
        del _kept[name, "aggregator", step]


@target(seconds=2.0)
def signed_uplink(data: bytes) -> None:
    """An aggregator takes a body that its sender signed, excludes the sender, or refuses it with a ProtocolError and stays as it was."""  # noqa: E501
    if data:
        _aggregator_meets_body(data, ROUND)


def _aggregator_meets_body(data: bytes, name: str) -> None:
    labels = [label for label in rounds.LABELS_UP if label != "share_keys"]
    label = labels[data[0] % len(labels)]
    one = rounds.signed(name, "t001", label)
    (other,) = _with_body((one,), 0, data[1:], name)
    _aggregator_meets(BODIES[label].STEP, encode(other), name)


@target()
def upload(data: bytes) -> None:
    """Pieces are taken where they fit, cut at leaf borders, or refused with MalformedMessage, and nothing is taken then."""  # noqa: E501
    places = leaf_places(rounds.ran("round-x25519").aggregator.plan)
    incoming, taken = Incoming(places), 0
    stream = io.BytesIO(data)
    while head := stream.read(1):
        piece = stream.read(head[0] % 24)
        before = (incoming.received, incoming.filled, list(incoming.hashes))
        try:
            cut = incoming.check(piece)
        except MalformedMessage:
            now = (incoming.received, incoming.filled, list(incoming.hashes))
            require(now == before, "a refusal took something")
            continue
        require(b"".join(part for part, _ in cut) == piece, "bytes are lost")
        incoming.take(cut)
        taken += len(piece)
        require(incoming.received == taken <= sum(place.size for place in places), "a wrong count")


# ---------------------------------------------------------------------------- scheme ckks


@target(seconds=2.0)
def ckks_parameters(data: bytes) -> None:
    """Reads parameters that are written as the very same bytes and say without an error whether they are fit for use, or raises MalformedMessage."""  # noqa: E501
    n, ring_bits = int.from_bytes(data[:2], "big"), data[2] if data[2:] else 0
    try:
        reader = Reader(data[3:], "parameters")
        found = Parameters.read(reader)
        reader.end()
    except MalformedMessage:
        return
    writer = Writer()
    found.write(writer)
    require(writer.finish() == data[3:], "parameters have two encodings")
    if all(holds for _, holds, _ in found.clauses(n, ring_bits, ring_bits)):
        require(all(prime.bit_length() <= 30 for prime in found.primes), "a prime is too large")
        room = found.margin_bits(n) + ring_bits * found.digits(n, ring_bits)
        slots = found.packing == "slots"
        require(slots or found.modulus >= 1 << room, "the digits do not fit")
        require(found.polynomials(1000, n, ring_bits, ring_bits) >= 1, "no polynomial")


@target()
def ckks_elements(data: bytes) -> None:
    """Reads elements below p that are packed as the very same bytes, or raises MalformedMessage."""
    count, packed = int.from_bytes(data[:2], "big"), data[2:]
    number = int.from_bytes(packed, "little")
    try:
        found = sharing.parse_elements(packed, count)
    except MalformedMessage:
        return
    require(sharing.pack_elements(found) == packed, "elements have two encodings")
    require(bool((found < FIELD).all()), "an element is p")
    for place in {0, count // 2, count - 1} if count else ():
        require(int(found[place]) == number >> 31 * place & FIELD, "another element")


@target()
def ckks_check(data: bytes) -> None:
    """Reads a degree check that is written as the very same bytes and judges a share by it, or raises MalformedMessage."""  # noqa: E501
    threshold, written = data[0] if data else 0, data[1:]
    try:
        found = sharing.parse_check(written, threshold)
    except MalformedMessage:
        return
    require(sharing.encode_check(found) == written, "a degree check has two encodings")
    if threshold:
        rho = sharing.challenge(bytes(32), 0, (written,), 3)
        sharing.holds(np.arange(7, dtype=np.uint32), 5, rho, found)


_SMALL_WIRE = wire(16, (769, 193), (10, 8))


@target()
def ckks_leaf(data: bytes) -> None:
    """Adds a polynomial whose residues are packed as the very same bytes, or raises MalformedMessage and leaves the sum as it was."""  # noqa: E501
    moduli = np.array([[769], [193]], np.uint32)
    total = np.arange(32, dtype=np.uint32).reshape(2, 16)
    before = total.copy()
    try:
        _SMALL_WIRE.add(total, data)
    except MalformedMessage:
        require(bool((total == before).all()), "a refusal changed the sum")
        return
    one = (total + moduli - before) % moduli
    require(_SMALL_WIRE.pack(one) == data, "a polynomial has two encodings")
    require(bool((total < moduli).all()), "a residue is not below its prime")
    _SMALL_WIRE.subtract(total, data)
    require(bool((total == before).all()), "what was added is not taken out")


@target(seconds=3.0)
def ckks_chained(data: bytes) -> None:
    """A ckks transcript with one message exchanged for these bytes under a chain that holds verifies with the same survivors, or raises ProtocolError."""  # noqa: E501
    parts = rounds.parts_of(CKKS)
    if not data:
        return
    parts[data[0] % len(parts)] = data[1:]
    try:
        verified = verify_transcript(rounds.chained(CKKS, parts), cohort(5).roster)
    except ProtocolError:
        return
    require(verified.survivors == ("t000", "t001", "t002", "t004"), "other survivors")


@target(seconds=2.0)
def ckks_participant(data: bytes) -> None:
    """A participant of scheme ckks answers a coordinator's bytes, or refuses them with a ProtocolError and stays as it was."""  # noqa: E501
    if data:
        _meets(Step(data[0] % 5), data[1:], CKKS)


@target(seconds=2.0)
def ckks_colluder(data: bytes) -> None:
    """A participant of scheme ckks answers a coordinator's message with a body that a colluder signed, or refuses it with a ProtocolError and stays as it was."""  # noqa: E501
    if data:
        _meets_colluder(data, CKKS)


@target(seconds=2.0)
def ckks_bundle(data: bytes) -> None:
    """A holder acknowledges whatever share a dealer sealed and committed to, and refuses the dealer unless it is the one on its polynomials."""  # noqa: E501
    share = ckks_rounds.bundle_of_the_first()
    at, changes = int.from_bytes(data[:2], "big") % len(share), data[2:]
    changed = (share[:at] + changes + share[at + len(changes) :])[: len(share)]
    tenant = rounds.parked(CKKS, "t001", Step.SHARE_KEYS)
    (answer,) = tenant.receive(encode(ckks_rounds.with_share(changed)))
    body: Any = decode_message(answer)
    refused = body.read(messages.Acknowledge).refused
    require(refused == (() if changed == share else (0,)), "a share is misjudged")


@target(seconds=2.0)
def ckks_aggregator(data: bytes) -> None:
    """An aggregator of scheme ckks takes the message that is due, or refuses it with a ProtocolError and stays as it was."""  # noqa: E501
    if data:
        _aggregator_meets(Step(data[0] % 6), data[1:], CKKS)


@target(seconds=2.0)
def ckks_uplink(data: bytes) -> None:
    """An aggregator of scheme ckks takes a body that its sender signed, excludes the sender, or refuses it with a ProtocolError and stays as it was."""  # noqa: E501
    if data:
        _aggregator_meets_body(data, CKKS)


@target(seconds=2.0)
def ckks_upload(data: bytes) -> None:
    """An aggregator adds up any bytes that their sender committed to, or refuses them with MalformedMessage and the sum is as it was."""  # noqa: E501
    plan = rounds.ran(CKKS).aggregator.plan
    at, changes = int.from_bytes(data[:2], "big"), data[2:]
    good = rounds.upload_of(CKKS, "t001")
    leaf = (good[: at % len(good)] + changes + good[at % len(good) + len(changes) :])[: len(good)]
    accumulator, (place,) = Accumulator(plan), leaf_places(plan)
    total = accumulator._totals[place]
    try:
        accumulator.add(lambda: iter([leaf]))
    except MalformedMessage:
        require(leaf != good and not total.any(), "a refusal changed the sum")
        return
    moduli = np.array(plan.ckks.primes, np.uint32)[:, None]
    require(bool((total < moduli).all()), "a residue is not below its prime")


@target(seconds=2.0)
def ckks_sums(data: bytes) -> None:
    """Sums of shares, some of them changed, open the one sum of the round, or none."""
    order = ["t000", "t001", "t002", "t004"]
    given = order[: 2 + (data[0] if data else 0) % 3]
    edits: dict[str, Any] = {}
    for at in range(1, len(data) - 3, 4):
        who, place = order[data[at] % 4], int.from_bytes(data[at + 1 : at + 3], "big") % 7936
        edits[who] = [(place, 1, f"{data[at + 3]:02x}")]
    found = ckks_rounds.opened({"case": "fuzz", "order": given, "edits": edits})
    right = rounds.ran(CKKS).outcome.opened.level_sum.tolist()
    require("refused" in found or found["output"]["level_sum"] == right, "another sum opened")


# ---------------------------------------------------------------------------- the wire


@target()
def upload_request(data: bytes) -> None:
    """Reads the fields that protobuf reads, without copying the payload, or raises InvalidRequest where protobuf refuses."""  # noqa: E501
    try:
        theirs = round_service_pb2.UploadInputRequest.FromString(data)
    except DecodeError:
        theirs = None
    try:
        ours = codec.read_upload_request(data)
    except InvalidRequest:
        return  # it may be stricter: groups are refused, whoever sends them
    require(theirs is not None, "protobuf refuses it")
    if theirs is not None:
        fields = ("context", "tenant", "offset", "finish", "digest")
        for name in fields:
            require(getattr(ours, name) == getattr(theirs, name), f"another {name}")
        require(bytes(ours.payload) == theirs.payload, "another payload")


@target()
def submission(data: bytes) -> None:
    """Reads a request whose metadata agrees with its message, or raises a SecaggError."""
    try:
        request = round_service_pb2.SubmitMessageRequest.FromString(data)
    except DecodeError:
        return
    try:
        found = codec.read_submission(request)
    except SecaggError:
        return
    require(found.message == request.message and found.digest == request.digest, "other bytes")
    require(codec.place_of(found.message) == (found.step, found.label), "another place")


@target()
def step_message(data: bytes) -> None:
    """Reads an event whose metadata agrees with its message, or raises a SecaggError."""
    try:
        event = round_service_pb2.StepMessage.FromString(data)
    except DecodeError:
        return
    try:
        context, _, found = codec.read_step_message(event)
    except SecaggError:
        return
    require(found == event.message and context == event.context, "other bytes")


@target()
def status_details(data: bytes) -> None:
    """Turns whatever another side sends as error details into a SecaggError."""

    class Call:
        def code(self) -> Any:
            return grpc.StatusCode.ABORTED

        def details(self) -> str:
            return "vector"

        def trailing_metadata(self) -> Any:
            return ((codec.STATUS_DETAILS, data),)

    found = codec.error_from_call(Call())
    require("vector" in str(found), "another error")


@target()
def manifest(data: bytes) -> None:
    """Decodes to a manifest that encodes to the very same bytes, or raises ConfigError."""
    try:
        found = Manifest.decode(data)
    except ConfigError:
        return
    require(found.encode() == data, "a manifest has two encodings")


@lru_cache(maxsize=1)
def _folder() -> Path:
    memory = Path("/dev/shm")  # a disk is slower than all decoders together
    place = memory if memory.is_dir() else None
    folder = tempfile.mkdtemp(prefix="secagg-fuzz-", dir=place)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@target()
def enrolment_request(data: bytes) -> None:
    """Reads and verifies a request file, or raises ConfigError."""
    path = _folder() / "request.json"
    path.write_bytes(data)
    try:
        Request.read(path).verify(NOW)
    except ConfigError:
        return


@target()
def enrolment_signed(data: bytes) -> None:
    """Reads and verifies a request whose time and certificate request its sender signed, or raises ConfigError."""  # noqa: E501
    identity, member = cohort(1).identities[0], cohort(1).roster.members[0]
    fields: dict[str, Any] = {
        "role": ("tenant", "coordinator")[data[0] % 2] if data else "owner",
        "name": "t000",
        "group": "",
        "created": int.from_bytes(data[1:9], "big"),
        "public_key": identity.public_key.hex(),
        "member_proof": member.proof.hex(),
        "csr": data[9:].decode("utf-8", "replace"),
    }
    unsigned = Request(**fields, signature="")
    signature = identity.sign("", "enrolment request", NO_CONTEXT, unsigned.body())
    path = _folder() / "request.json"
    path.write_bytes(replace(unsigned, signature=signature.hex()).encode())
    try:
        Request.read(path).verify(NOW)
    except ConfigError:
        return


@target()
def key_files(data: bytes) -> None:
    """Reads role, name and group of a key directory, or raises ConfigError."""
    keys = KeyFiles(_folder())
    keys.about.write_bytes(data)
    try:
        keys.party(), keys.group()
    except ConfigError:
        return
    about = json.loads(data)
    require(keys.party().name == about["name"], "another name")


@target()
def identity_seed(data: bytes) -> None:
    """Reads an identity from its two files, or raises ConfigError."""
    keys = KeyFiles(_folder())
    keys.about.write_bytes(_about())
    keys.seed.write_bytes(data)
    keys.seed.chmod(0o600)
    try:
        found = keys.identity()
    except ConfigError:
        return
    require(found.public_key.hex() in _about().decode(), "another identity")


@lru_cache(maxsize=1)
def _about() -> bytes:
    identity = cohort(1).identities[0]
    about = {"role": "tenant", "name": "t000", "group": "", "public_key": identity.public_key.hex()}
    return json.dumps(about).encode()


@target()
def safetensors(data: bytes) -> None:
    """A published weights file has a header whose offsets fill it, or is refused with InvalidRequest."""  # noqa: E501
    path = _folder() / "weights.safetensors"
    path.write_bytes(data)
    try:
        check_safetensors(path)
    except InvalidRequest:
        return
    require(len(data) >= 10, "too short for a header")
