"""Whole rounds: everything that is sent, what follows from it, and what its parties refuse.

    round-x25519    four tenants, complete graph; t003 falls silent before its upload
    round-hybrid    the same with suite x25519-mlkem768
    round-sparse    eight tenants, each with four drawn neighbours, hybrid suite; t005 falls silent
    round-ckks      five tenants in scheme ckks, any two of which open (ckks_rounds.py)
    transcripts     transcripts, edits after which they do not verify, and claimed sums

Seeds and inputs are in the files, and every encapsulation uses a known m (`derandomised.py`), so
all bytes follow. Under `refused` stand messages that one byte or one field made wrong, who meets
them after which step, and the class of the error with the number of the check.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import takewhile
from typing import Any

from secagg import checks, merkle
from secagg.aggregator import Aggregator
from secagg.errors import ProtocolError, SecaggError, Step
from secagg.identity import sha256
from secagg.messages import (
    Acknowledge,
    AdvertiseKeys,
    AgreedView,
    Body,
    KeyDirectory,
    Leaf,
    PadBoxes,
    Quorum,
    ShareDelivery,
    ShareKeys,
    ShareKeysBody,
    Signed,
    Survivors,
    SurvivorSet,
    Unmask,
    UploadCommitment,
    UploadHeader,
    decode_message,
)
from secagg.outputs import AggregatorOutput, Excluded
from secagg.participant_steps import Advertised, Agreed, Dealt, Uploading
from secagg.plan import RoundPlan
from secagg.recompute import check_sum, sum_root
from secagg.records import decode, encode
from secagg.scheme import leaf_places
from secagg.spool import MemorySpool
from secagg.testing import (
    Cohort,
    Envelope,
    SeededRandomness,
    Silence,
    SimulatedNetwork,
    SimulatedTenant,
    cohort,
    make_round,
    make_tenants,
)
from secagg.transcript import Link as ChainLink
from secagg.transcript import Transcript, chain_next, chain_start, verify_transcript
from tests.vectors.cases import Case
from tests.vectors.derandomised import m_of, whole_rounds

LABELS_UP = ("advertise_keys", "share_keys", "acknowledge", "upload_header", "upload_commitment",
             "consistency_check", "unmask")  # fmt: skip
DOWN = ("key_directory", "share_delivery", "agreed_view", "survivor_set", "quorum")


class Remembers(SimulatedTenant):
    """Keeps every state that its participant was in."""

    def __init__(self, **parts: Any) -> None:
        self.drawn: list[bytes] = []
        randomness = parts.pop("randomness")

        def noted(size: int) -> bytes:
            self.drawn.append(randomness(size))
            return self.drawn[-1]

        super().__init__(randomness=noted, **parts)

    def offer(self, plan: bytes) -> list[bytes]:
        return self._noted(super().offer(plan))

    def receive(self, message: bytes) -> list[bytes]:
        before = len(self.drawn)
        messages = self._noted(super().receive(message))
        if len(self.states) == 2:
            self.first_in_dealing = self.drawn[before]
        return messages

    def submit(self) -> list[bytes]:
        return self._noted(super().submit())

    def _noted(self, messages: list[bytes]) -> list[bytes]:
        state = self.running._state
        self.states = {**getattr(self, "states", {}), type(state): state}
        return messages


@dataclass(frozen=True)
class Recipe:
    """What makes one of the rounds."""

    n: int
    plan: Callable[[Cohort], RoundPlan]
    silent: str
    bystander: str = "t001"
    """The honest tenant that meets the spoilt messages."""


RECIPES = {
    "round-x25519": Recipe(4, lambda c: c.plan(5, suite="x25519"), "t003"),
    "round-hybrid": Recipe(4, lambda c: c.plan(5), "t003"),
    "round-sparse": Recipe(8, lambda c: c.plan(5, max_colluders=0, neighbours=4), "t005"),
    "round-ckks": Recipe(
        5, lambda c: c.plan(5, scheme="ckks", suite="x25519", share_threshold=2), "t003"
    ),
}


@lru_cache(maxsize=4)
def ran(name: str) -> SimulatedNetwork:
    """One of the rounds, finished."""
    recipe = RECIPES[name]
    members = cohort(recipe.n)
    plan = recipe.plan(members)
    with whole_rounds():
        network = make_round(
            recipe.n, plan=plan, faults=[Silence(recipe.silent, Step.ACKNOWLEDGE)],
            kinds=dict.fromkeys(plan.cohort, Remembers),
        )  # fmt: skip
        if network.run().result is None:
            raise AssertionError(network.outcome.error)
    return network


def message_of(name: str, tenant: str, label: str) -> bytes:
    """What a tenant was sent, or sent."""
    return next(e.data for e in ran(name).sent if (e.tenant, e.label) == (tenant, label))


def upload_of(name: str, tenant: str) -> bytes:
    """A tenant's whole upload."""
    return b"".join(
        e.data for e in ran(name).sent if (e.tenant, e.label) == (tenant, "upload_chunk")
    )


@lru_cache(maxsize=64)
def _replayed(name: str, tenant: str) -> Callable[[], SimulatedTenant]:
    recipe = RECIPES[name]
    plan = ran(name).aggregator.plan
    return lambda: make_tenants(cohort(recipe.n), plan)[tenant]


def parked(name: str, tenant: str, last: Step) -> SimulatedTenant:
    """A tenant of one of the rounds that has finished step `last`, made anew."""
    one = _replayed(name, tenant)()
    with whole_rounds():
        one.offer(ran(name).aggregator.plan.encode())
        for step, label in enumerate(DOWN, 1):
            if step <= last:
                one.receive(message_of(name, tenant, label))
                if step == Step.MASKED_INPUT:
                    one.submit()
                    list(one.running.upload())
                    one.finish_upload()
    return one


def waiting(name: str, step: Step) -> Aggregator:
    """The aggregator of one of the rounds, made anew, in `step`, with no answer yet."""
    network = ran(name)
    plan = network.aggregator.plan
    aggregator = Aggregator(plan, cohort(RECIPES[name].n).roster, spool=MemorySpool())
    aggregator.start(0.0)
    for envelope in network.sent:
        if aggregator.step is step:
            break
        feed(aggregator, envelope)
        if aggregator.waiting == (RECIPES[name].silent,):
            aggregator.on_silence(RECIPES[name].silent, 0.0)
    return aggregator


def feed(aggregator: Aggregator, envelope: Envelope) -> None:
    """Give the aggregator a message of the round, if it is one for it."""
    if envelope.label == "upload_chunk":
        aggregator.absorb(envelope.tenant, envelope.offset, envelope.data)
    elif envelope.up:
        aggregator.receive(envelope.tenant, envelope.data, 0.0)


# ---------------------------------------------------------------------------- facts


def facts(name: str) -> dict[str, Any]:
    """The content of one round's file."""
    network = ran(name)
    plan, roster = network.aggregator.plan, cohort(RECIPES[name].n).roster
    result = network.outcome.opened
    return {
        "suite": plan.suite,
        "roster": roster.encode().hex(),
        "roster_digest": roster.digest.hex(),
        "plan": plan.encode().hex(),
        "context": plan.context.hex(),
        "tenants": [tenant(name, one) for one in plan.cohort],
        "messages": list(messages(name)),
        "pads": list(pads(name)),
        "pairwise_seeds": list(pairwise_seeds(name)),
        **digests(name),
        "survivors": list(result.survivors),
        "level_sum": result.level_sum.tolist(),
        "total_weight": result.total_weight,
        "sum_root": sum_root(plan, result.level_sum, result.total_weight).hex(),
        "transcript_digest": verify_transcript(network.aggregator.transcript, roster).digest.hex(),
        "refused": list(refusals(name)),
    }


def tenant(name: str, who: str) -> dict[str, Any]:
    """A tenant's seeds, input and encoded input."""
    one = ran(name).tenants[who]
    assert isinstance(one, Remembers)
    advertised = one.states[Advertised]
    row: dict[str, Any] = {
        "tenant": who,
        "index": one.running.plan.index(who),
        "identity_seed": SeededRandomness(f"identity 0 {who}")(32).hex(),
        "channel_seed": advertised.secrets.channel.expose().hex(),
        "mask_seed": advertised.secrets.mask.expose().hex(),
        "self_mask_seed": advertised.secrets.self_mask.expose().hex(),
        "drawn": list(advertised.drawn),
        "vector": [float(value) for value in one.vector],
        "weight": one.weight,
    }
    if one.levels is not None:
        row["rounding_seed"] = one.states[Uploading].rounding.expose().hex()
        row["levels"] = one.levels.tolist()
    return row


def messages(name: str) -> Iterator[dict[str, Any]]:
    """In the order in which they were sent. What goes to all stands once; of the deliveries one
    stands whole, and of the others the SHA-256."""
    told: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    for envelope in ran(name).sent:
        if envelope.label == "plan":
            continue
        row: dict[str, Any] = {"message": envelope.label}
        if envelope.up:
            row = {"from": envelope.tenant, **row}
            if envelope.label == "upload_chunk":
                row["offset"] = envelope.offset
        elif envelope.label == "share_delivery":
            row = {"to": [envelope.tenant], **row}
            if envelope.tenant != RECIPES[name].bystander:
                rows.append({**row, "sha256": sha256(envelope.data).hex()})
                continue
        elif envelope.label in told:
            told[envelope.label]["to"].append(envelope.tenant)
            continue
        else:
            row = {"to": [envelope.tenant], **row}
            told[envelope.label] = row
        row["bytes"] = envelope.data.hex()
        rows.append(row)
    yield from rows


def pads(name: str) -> Iterator[dict[str, Any]]:
    """Every dealt pad, with the m's of box and bundle."""
    network = ran(name)
    plan = network.aggregator.plan
    for one in network.tenants.values():
        assert isinstance(one, Remembers)
        for dealt in one.states[Dealt].pads:
            place = (plan.context, dealt.dealer, dealt.holder)
            yield {
                "dealer": dealt.dealer, "holder": dealt.holder, "m": m_of("pad", *place).hex(),
                "pad": dealt.pad.expose().hex(), "commitment": dealt.commitment.hex(),
            }  # fmt: skip


def pairwise_seeds(name: str) -> Iterator[dict[str, Any]]:
    """Every pairwise seed, as either end has it (a dropout may have derived none)."""
    seeds: dict[tuple[int, int], str] = {}
    for index, one in enumerate(ran(name).tenants.values()):
        assert isinstance(one, Remembers)
        agreed = one.states.get(Agreed)
        for pair in () if agreed is None else agreed.protection.pairwise:
            seeds[min(index, pair.other), max(index, pair.other)] = pair.seed.expose().hex()
    for (low, high), seed in sorted(seeds.items()):
        yield {"low": low, "high": high, "seed": seed}


def digests(name: str) -> dict[str, str]:
    """What is agreed on in the course of the round."""
    aggregator = ran(name).aggregator
    return {
        "directory_digest": aggregator._directory.digest.hex(),
        "dealings_digest": acknowledged(name).dealings_digest.hex(),
        "view": aggregator.view.hex(),
        "members_digest": aggregator._survivors.body.members_digest.hex(),
    }


def acknowledged(name: str) -> Acknowledge:
    return signed(name, RECIPES[name].bystander, "acknowledge").read(Acknowledge)


def signed(name: str, who: str, label: str) -> Signed:
    message = decode_message(message_of(name, who, label))
    if isinstance(message, ShareKeys):
        return message.body
    assert isinstance(message, Signed)
    return message


# ---------------------------------------------------------------------------- refusals


def refusals(name: str) -> Iterator[dict[str, Any]]:
    """Spoilt messages; see the module's docstring."""
    who = RECIPES[name].bystander
    for label, last, spoil in (
        ("key_directory", Step.ADVERTISE_KEYS, spoilt_directories),
        ("share_delivery", Step.SHARE_KEYS, spoilt_deliveries),
        ("agreed_view", Step.ACKNOWLEDGE, spoilt_views),
        ("survivor_set", Step.MASKED_INPUT, spoilt_survivors),
        ("quorum", Step.CONSISTENCY_CHECK, spoilt_quorums),
    ):
        for case, check, data in spoil(name):
            where = {"message": label, "to": who, "after": last.label}
            yield refusal(name, {"case": case, **where, "bytes": data.hex()}, check)
    for label, step, case, check, data in spoilt_answers(name) if small(name) else ():
        where = {"message": label, "from": who, "in": step.label}
        yield refusal(name, {"case": case, **where, "bytes": data.hex()}, check)


SAYS = {
    "C01": "^malformed |no message of secagg/1|not for participants",
    "C02": "outside the cohort",
    "C03": "not signed by the key",
    "C04": "not unique and in index order",
    "C05": "U[12] has . members and the plan needs",
    "C06": "low order|no canonical X25519|KEM|advertise one key|advertises this key|no mask keys",
    "C07": "U1 lacks this participant's own keys",
    "C08": "holders are not U1|leaves are not unique and in order",
    "C09": "leaves (do|and)|another size than its scheme|commitment has another size",
    "C10": "lacks this participant's own dealing",
    "C13": "another U1",
    "C14": "has not acknowledged every member",
    "C15": "lacks this participant's own acknowledgement",
    "C16": "under another view|announces",
    "C17": "longer than its header|not 0|not those committed to|have arrived|offset",
    "C18": "uploaded under another view|committed to",
    "C20": "U3 has . members and the plan needs",
    "C21": "holders among those who are left",
    "C22": "U3 lacks this participant",
    "C23": "below the quorum|over another U3|outside U3",
    "C25": "dealers or kinds|not the one dealt to it|a sum( of shares|$)|31 bits|field's prime",
    "C44": "not below the plane's prime",
}


def refusal(name: str, row: dict[str, Any], check: str) -> dict[str, Any]:
    """The row with its outcome; the check that refused is the one that the case is for."""
    error, reason = met(name, row)
    if not re.search(SAYS[check], reason):
        raise AssertionError(f"{row['case']}: {check} does not say: {reason}")
    return {**row, "refused": {"error": error, "check": check}}


Edits = list[tuple[int, int, str]]


def edits(before: bytes, after: bytes) -> Edits:
    """(place, how many bytes go, what comes in hexadecimal), places counted in `before`."""
    found: Edits = []
    here = there = 0
    while True:
        pairs = zip(before[here:], after[there:], strict=False)
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        here, there = here + same, there + same
        if (here, there) == (len(before), len(after)):
            return found
        again = _together_again(before, after, here, there)
        found.append((here, again[0] - here, after[there : again[1]].hex()))
        here, there = again


def _together_again(before: bytes, after: bytes, here: int, there: int) -> tuple[int, int]:
    """Where 16 bytes in a row are in both again."""
    for place in range(here, len(before) - 15):
        found = after.find(before[place : place + 16], there, there + place - here + 600)
        if found >= 0:
            return place, found
    return len(before), len(after)


def edited_bytes(before: bytes, changes: Edits) -> bytes:
    """Inverse of `edits`."""
    after = before
    for place, count, text in reversed(changes):
        after = after[:place] + bytes.fromhex(text) + after[place + count :]
    return after


def bytes_of(name: str, row: dict[str, Any]) -> bytes:
    """A spoilt message: whole, or as edits of the one that its party sent or was sent."""
    if "bytes" in row:
        return bytes.fromhex(row["bytes"])
    party = row["to"] if "to" in row else row["from"]
    return edited_bytes(message_of(name, party, row["message"]), row["edits"])


def met(name: str, row: dict[str, Any]) -> tuple[str, str]:
    """How a spoilt message is met: the error's class, or Excluded, and the reason."""
    data = bytes_of(name, row)
    try:
        if "to" in row:
            parked(name, row["to"], Step[row["after"].upper()]).receive(data)
            return "accepted", ""
        outputs = received(name, Step[row["in"].upper()], row, data)
    except SecaggError as error:
        return type(error).__name__, str(error)
    excluded = [one for one in outputs if isinstance(one, Excluded)]
    return ("Excluded", excluded[0].reason) if excluded else ("accepted", "")


def received(name: str, step: Step, row: dict[str, Any], data: bytes) -> list[AggregatorOutput]:
    """What an aggregator does with a message of the bystander. Its upload comes after its header,
    its commitment after its upload."""
    aggregator, who, label = waiting(name, step), row["from"], row["message"]
    if label in ("upload_chunk", "upload_commitment"):
        aggregator.receive(who, message_of(name, who, "upload_header"), 0.0)
    if label == "upload_chunk":
        aggregator.absorb(who, row.get("offset", 0), data)
        return []
    if label == "upload_commitment" and row["case"] != "before the upload":
        aggregator.absorb(who, 0, edited_bytes(upload_of(name, who), row.get("upload_edits", [])))
    return aggregator.receive(who, data, 0.0)


def flipped(one: Signed) -> Signed:
    first, *rest = one.signature
    return replace(one, signature=bytes([first ^ 1, *rest]))


def resigned(name: str, one: Signed, body: Body) -> Signed:
    """Another body under its sender's real signature: what a colluder can make."""
    plan = ran(name).aggregator.plan
    return Signed.create(plan, cohort(RECIPES[name].n).identity(plan.cohort[one.sender]), body)


Spoilt = Iterator[tuple[str, str, bytes]]


def small(name: str) -> bool:
    """Messages of the hybrid suite are large; its files keep to what only they can show."""
    return name == "round-x25519"


def spoilt_directories(name: str) -> Spoilt:
    whole = message_of(name, RECIPES[name].bystander, "key_directory")
    message = decode_message(whole)
    assert isinstance(message, KeyDirectory)
    keys = message.keys
    first = keys[0].read(AdvertiseKeys)

    def with_first(body: AdvertiseKeys) -> bytes:
        return encode(KeyDirectory((resigned(name, keys[0], body), *keys[1:])))

    if name == "round-hybrid":
        yield (
            "a KEM key with a coefficient of q",
            "C06",
            with_first(replace(first, mask_kem=b"\x01\x0d" + first.mask_kem[2:])),
        )
        yield "no KEM keys", "C06", with_first(replace(first, channel_kem=b"", mask_kem=b""))
    if not small(name):
        return
    yield "truncated", "C01", whole[:-1]
    yield "a trailing byte", "C01", whole + b"\0"
    yield "another version", "C01", b"\x02" + whole[1:]
    yield "nothing", "C01", b""
    yield "a participant's message", "C01", encode(keys[0])
    yield "senders not in order", "C04", encode(KeyDirectory(keys[::-1]))
    yield "a sender twice", "C04", encode(KeyDirectory((*keys, keys[-1])))
    yield "too few", "C05", encode(KeyDirectory(keys[:2]))
    yield "the own keys are missing", "C07", encode(KeyDirectory((keys[0], *keys[2:])))
    yield "a changed signature", "C03", encode(KeyDirectory((flipped(keys[0]), *keys[1:])))
    exchanged = (replace(keys[2], body=keys[3].body), replace(keys[3], body=keys[2].body))
    yield "exchanged bodies", "C03", encode(KeyDirectory((*keys[:2], *exchanged)))
    yield (
        "a sender beyond the cohort",
        "C02",
        encode(KeyDirectory((*keys, replace(keys[3], sender=4)))),
    )
    yield "a point of low order", "C06", with_first(replace(first, mask_key=bytes(32)))
    yield "a mask key a byte short", "C06", with_first(replace(first, mask_key=first.mask_key[:-1]))
    yield "no mask key", "C06", with_first(replace(first, mask_key=b""))
    yield (
        "a key of another tenant",
        "C06",
        with_first(replace(first, mask_key=keys[2].read(AdvertiseKeys).mask_key)),
    )
    yield (
        "a KEM key where the suite has none",
        "C06",
        with_first(replace(first, channel_kem=b"kem")),
    )


def spoilt_deliveries(name: str) -> Spoilt:
    message = decode_message(message_of(name, RECIPES[name].bystander, "share_delivery"))
    assert isinstance(message, ShareDelivery)
    bodies, leaves = message.bodies, message.leaves

    def delivery(**changes: Any) -> bytes:
        return encode(replace(message, **changes))

    if not small(name):
        return
    yield "senders not in order", "C04", delivery(bodies=bodies[::-1])
    yield "a changed signature", "C03", delivery(bodies=(flipped(bodies[0]), *bodies[1:]))
    yield "leaves not in order", "C08", delivery(leaves=leaves[::-1])
    yield "a leaf twice", "C08", delivery(leaves=(leaves[0], *leaves))
    yield "the own dealing is missing", "C10", delivery(bodies=(bodies[0], *bodies[2:]))
    body = bodies[0].read(ShareKeysBody)
    narrow = resigned(name, bodies[0], replace(body, holders=body.holders[:-1]))
    yield "a dealer with other holders than U1", "C08", delivery(bodies=(narrow, *bodies[1:]))
    short = replace(body, secret_commitment=body.secret_commitment[:-1])
    bent = resigned(name, bodies[0], short)
    yield "a commitment of another size", "C09", delivery(bodies=(bent, *bodies[1:]))


def spoilt_views(name: str) -> Spoilt:
    message = decode_message(message_of(name, RECIPES[name].bystander, "agreed_view"))
    assert isinstance(message, AgreedView)
    records = message.acknowledgements
    body = records[0].read(Acknowledge)

    def with_first(changed: Acknowledge) -> bytes:
        return encode(AgreedView((resigned(name, records[0], changed), *records[1:])))

    yield (
        "the own acknowledgement is missing",
        "C15",
        encode(AgreedView((records[0], *records[2:]))),
    )
    yield "too few", "C05", encode(AgreedView(records[:2]))
    yield "senders not in order", "C04", encode(AgreedView(records[::-1]))
    yield "a changed signature", "C03", encode(AgreedView((flipped(records[0]), *records[1:])))
    yield "another U1", "C13", with_first(replace(body, directory_digest=bytes(32)))
    yield "other dealings", "C14", with_first(replace(body, dealings_digest=bytes(32)))
    yield "a refused member stays", "C14", with_first(replace(body, refused=(1,)))


def spoilt_survivors(name: str) -> Spoilt:
    message = decode_message(message_of(name, RECIPES[name].bystander, "survivor_set"))
    assert isinstance(message, SurvivorSet)
    records = message.commitments
    own = next(i for i, one in enumerate(records) if one.sender == 1)
    body, mine = records[0].read(UploadCommitment), records[own].read(UploadCommitment)

    def with_one(place: int, changed: UploadCommitment) -> bytes:
        other = resigned(name, records[place], changed)
        return encode(SurvivorSet((*records[:place], other, *records[place + 1 :])))

    # In a small cohort the own upload is not missing alone: too few are left, or too few holders.
    check = "C21" if name == "round-sparse" else "C20"
    without = SurvivorSet((*records[:own], *records[own + 1 :]))
    yield "the own upload is missing", check, encode(without)
    yield "another root under the own name", "C22", with_one(own, replace(mine, root=bytes(32)))
    yield "another view", "C18", with_one(0, replace(body, view=bytes(32)))
    yield "another length", "C18", with_one(0, replace(body, length=body.length + 1))
    yield "too few", "C20", encode(SurvivorSet(records[:2]))
    yield "senders not in order", "C04", encode(SurvivorSet(records[::-1]))
    yield "a changed signature", "C03", encode(SurvivorSet((flipped(records[0]), *records[1:])))


def spoilt_quorums(name: str) -> Spoilt:
    message = decode_message(message_of(name, RECIPES[name].bystander, "quorum"))
    assert isinstance(message, Quorum)
    records = message.signatures
    body = records[0].read(Survivors)
    other = resigned(name, records[0], replace(body, members_digest=bytes(32)))
    silent = ran(name).aggregator.plan.index(RECIPES[name].silent)
    assert silent is not None
    outside = resigned(name, replace(records[0], sender=silent), body)
    yield "a signature too few", "C23", encode(Quorum(records[:-1]))
    yield "a signature over another U3", "C23", encode(Quorum((other, *records[1:])))
    yield (
        "a signer outside U3",
        "C23",
        encode(Quorum(tuple(sorted((*records[:-1], outside), key=lambda one: one.sender)))),
    )
    yield "a changed signature", "C03", encode(Quorum((flipped(records[0]), *records[1:])))
    yield "a signature twice", "C04", encode(Quorum((records[0], *records)))


def spoilt_answers(name: str) -> Iterator[tuple[str, Step, str, str, bytes]]:
    """(message, step, case, check, bytes) in the bystander's name, to the aggregator."""
    who = RECIPES[name].bystander
    for label in LABELS_UP:
        if label not in ("share_keys", "upload_commitment"):
            one = signed(name, who, label)
            step = next(s for s in Step if s.label == label or label.startswith("upload"))
            step = Step.MASKED_INPUT if label.startswith("upload") else step
            yield label, step, "a changed signature", "C03", encode(flipped(one))
            yield label, step, "a trailing byte", "C01", encode(one) + b"\0"
    acknowledgement = signed(name, who, "acknowledge")
    body = acknowledgement.read(Acknowledge)
    yield (
        "acknowledge",
        Step.ACKNOWLEDGE,
        "another U1",
        "C13",
        encode(resigned(name, acknowledgement, replace(body, directory_digest=bytes(32)))),
    )
    header = signed(name, who, "upload_header")
    announced = header.read(UploadHeader)
    yield (
        "upload_header",
        Step.MASKED_INPUT,
        "another view",
        "C16",
        encode(resigned(name, header, replace(announced, view=bytes(32)))),
    )
    yield (
        "upload_header",
        Step.MASKED_INPUT,
        "another length",
        "C16",
        encode(resigned(name, header, replace(announced, length=announced.length - 1))),
    )
    yield from spoilt_uploads(name)
    yield from spoilt_dealings(name)
    yield from spoilt_unmasks(name)


def spoilt_uploads(name: str) -> Iterator[tuple[str, Step, str, str, bytes]]:
    who = RECIPES[name].bystander
    data, one = upload_of(name, who), signed(name, who, "upload_commitment")
    body = one.read(UploadCommitment)
    stray = bytes([*data[:-1], data[-1] | 0x80])
    yield "upload_chunk", Step.MASKED_INPUT, "a byte too many", "C17", data + b"\0"
    yield "upload_chunk", Step.MASKED_INPUT, "a bit after the last value", "C17", stray
    for case, check, changed in (
        ("before the upload", "C17", body),
        ("another root", "C17", replace(body, root=bytes(32))),
        ("another view", "C18", replace(body, view=bytes(32))),
        ("another length", "C18", replace(body, length=body.length - 1)),
    ):
        yield (
            "upload_commitment",
            Step.MASKED_INPUT,
            case,
            check,
            encode(resigned(name, one, changed)),
        )


def spoilt_dealings(name: str) -> Iterator[tuple[str, Step, str, str, bytes]]:
    dealing = decode_message(message_of(name, RECIPES[name].bystander, "share_keys"))
    assert isinstance(dealing, ShareKeys)
    leaves = dealing.leaves

    def redealt(*changed: Leaf, **said: bytes) -> bytes:
        root = merkle.root([checks.leaf_digest(leaf.outline) for leaf in changed])
        body = replace(dealing.body.read(ShareKeysBody), leaves_root=root, **said)
        return encode(ShareKeys(resigned(name, dealing.body, body), changed))

    place = "share_keys", Step.SHARE_KEYS
    yield (
        *place,
        "leaves not under their root",
        "C09",
        encode(ShareKeys(dealing.body, (replace(leaves[0], sealed=leaves[2].sealed), *leaves[1:]))),
    )
    yield *place, "leaves in another order", "C09", redealt(*leaves[::-1])
    for size in (0, 31, 33):
        case = f"a commitment of {size} bytes"
        yield *place, case, "C09", redealt(*leaves, secret_commitment=bytes(size))
    yield (
        *place,
        "a bundle of another size",
        "C09",
        redealt(replace(leaves[0], sealed=leaves[0].sealed + b"\0"), *leaves[1:]),
    )
    yield (
        *place,
        "a pad box where the suite has none",
        "C09",
        redealt(replace(leaves[0], pad_box=b"box", pad_commitment=bytes(32)), *leaves[1:]),
    )


def spoilt_unmasks(name: str) -> Iterator[tuple[str, Step, str, str, bytes]]:
    one = signed(name, RECIPES[name].bystander, "unmask")
    body = one.read(Unmask)
    first, *rest = body.answers
    for case, answers in (
        ("another share than dealt", (replace(first, share=bytes(33)), *rest)),
        ("another opening", (replace(first, opening=bytes(32)), *rest)),
        ("the other kind of share", (replace(first, kind=1 - first.kind), *rest)),
        ("an answer too few", tuple(rest)),
        ("an answer twice", (first, *body.answers)),
    ):
        data = encode(resigned(name, one, replace(body, answers=answers)))
        yield "unmask", Step.UNMASK, case, "C25", data
    for case, answers in (("beside the answers", body.answers), ("and no answer", ())):
        data = encode(resigned(name, one, replace(body, answers=answers, key_sum=bytes(33))))
        yield "unmask", Step.UNMASK, f"a sum of shares {case}", "C25", data


# ---------------------------------------------------------------------------- transcripts


def parts_of(name: str) -> list[bytes]:
    """The messages of a transcript, in order."""
    return [link.message for link in decode(Transcript, ran(name).aggregator.transcript).links]


def chained(name: str, parts: list[bytes]) -> bytes:
    """A transcript of these messages whose chain holds: what a lying coordinator can make."""
    plan, roster = ran(name).aggregator.plan, cohort(RECIPES[name].n).roster
    chain, links = chain_start(plan, roster), []
    for part in parts:
        chain = chain_next(plan, chain, part)
        links.append(ChainLink(part, chain))
    return encode(Transcript(plan.encode(), roster.encode(), tuple(links)))


def edited(name: str, edit: list[Any]) -> bytes:
    """A transcript after one edit, as docs/vectors.md defines them."""
    what, *arguments = edit
    whole, parts = ran(name).aggregator.transcript, parts_of(name)
    match what:
        case "xor byte":
            place, value = arguments
            return whole[:place] + bytes([whole[place] ^ value]) + whole[place + 1 :]
        case "cut":
            return whole[: arguments[0]]
        case "append":
            return whole + bytes.fromhex(arguments[0])
        case "remove":
            del parts[arguments[0]]
        case "repeat":
            parts.insert(arguments[0], parts[arguments[0]])
        case "exchange":
            one, other = arguments
            parts[one], parts[other] = parts[other], parts[one]
        case "replace":
            parts[arguments[0]] = bytes.fromhex(arguments[1])
        case "nothing":
            pass
    return chained(name, parts)


def transcript_case(name: str, case: str, check: str, *edit: Any) -> Case:
    data, roster = edited(name, list(edit)), cohort(RECIPES[name].n).roster
    row: Case = {"case": case, "round": name, "edit": list(edit)}
    try:
        verified = verify_transcript(data, roster)
    except ProtocolError as error:
        step = None if error.step is None else error.step.label
        refused = {"error": type(error).__name__, "step": step, "check": check}
        return {**row, "refused": refused}
    return {**row, "output": {
        "survivors": list(verified.survivors), "dropouts": list(verified.dropouts),
        "signers": list(verified.signers), "answered": list(verified.answered),
        "digest": verified.digest.hex(),
    }}  # fmt: skip


def transcript_cases(name: str) -> Iterator[Case]:
    parts = parts_of(name)
    whole = len(ran(name).aggregator.transcript)
    yield transcript_case(name, "as it is", "", "nothing")
    for place in range(0, whole, whole // 20 + 1):
        yield transcript_case(name, f"byte {place} is another", "C37", "xor byte", place, 1)
    yield transcript_case(name, "the last byte is missing", "C01", "cut", whole - 1)
    yield transcript_case(name, "half of it", "C01", "cut", whole // 2)
    yield transcript_case(name, "nothing at all", "C01", "cut", 0)
    yield transcript_case(name, "a byte more", "C01", "append", "00")
    for place in range(len(parts)):
        # An answer more or less than needed is a transcript too.
        yield transcript_case(name, f"without message {place}", "C37", "remove", place)
        yield transcript_case(name, f"message {place} twice", "C37", "repeat", place)
    for place in range(len(parts) - 1):
        yield transcript_case(
            name, f"messages {place} and {place + 1} exchanged", "C37", "exchange", place, place + 1
        )
    for case, check, place, message in forged_messages(name, parts):
        yield transcript_case(name, case, check, "replace", place, message.hex())


def forged_messages(name: str, parts: list[bytes]) -> Iterator[tuple[str, str, int, bytes]]:
    """(case, check, place, message): each under a chain that holds."""
    parsed = [decode_message(part) for part in parts]
    kinds = [type(one).__name__ for one in parsed]
    directory, agreed = parsed[0], parsed[kinds.index("AgreedView")]
    uploaded, quorum = parsed[kinds.index("SurvivorSet")], parsed[kinds.index("Quorum")]
    assert isinstance(directory, KeyDirectory)
    assert isinstance(agreed, AgreedView)
    assert isinstance(uploaded, SurvivorSet)
    assert isinstance(quorum, Quorum)
    if small(name):
        keys = directory.keys
        yield "U1 lacks a member", "C08", 0, encode(KeyDirectory(keys[:-1]))
        yield (
            "U1: a signature is changed",
            "C03",
            0,
            encode(KeyDirectory((flipped(keys[0]), *keys[1:]))),
        )
    records = agreed.acknowledgements
    place = kinds.index("AgreedView")
    yield "U2 lacks a member", "C18", place, encode(AgreedView(records[:-1]))
    yield (
        "U2: a signature is changed",
        "C03",
        place,
        encode(AgreedView((flipped(records[0]), *records[1:]))),
    )
    commitments = uploaded.commitments
    yield "U3 lacks a member", "C20", place + 1, encode(SurvivorSet(commitments[:-1]))
    yield "the quorum lacks a signature", "C23", place + 2, encode(Quorum(quorum.signatures[:-1]))
    signed_answer = parsed[place + 3]
    assert isinstance(signed_answer, Signed)
    answers = signed_answer.read(Unmask)
    unsigned = "an answer is not signed", "C03", place + 3, encode(flipped(signed_answer))
    if answers.key_sum:
        yield unsigned
        for case, check, data in forged_sums(answers.key_sum):
            body = replace(answers, key_sum=data)
            yield case, check, place + 3, encode(resigned(name, signed_answer, body))
        return
    first, *rest = answers.answers
    for case, changed in (
        ("an answer has another share", replace(first, share=bytes(33))),
        ("an answer has the other kind", replace(first, kind=1 - first.kind)),
        ("an answer is for another dealer", replace(first, dealer=first.dealer + 1)),
    ):
        body = replace(answers, answers=(changed, *rest))
        yield case, "C25", place + 3, encode(resigned(name, signed_answer, body))
    body = replace(answers, key_sum=first.share)
    yield "an answer has a sum too", "C25", place + 3, encode(resigned(name, signed_answer, body))
    yield unsigned
    boxes = parsed[-1]
    assert isinstance(boxes, PadBoxes)
    if boxes.boxes:
        head, *others = boxes.boxes
        spoilt = replace(head, box=head.box[:-1] + bytes([head.box[-1] ^ 1]))
        last = len(parts) - 1
        yield "a pad box is another", "C39", last, encode(PadBoxes((spoilt, *others)))
        yield "a pad box is missing", "C39", last, encode(PadBoxes(tuple(others)))


def forged_sums(key_sum: bytes) -> Iterator[tuple[str, str, bytes]]:
    """Sums of shares: (case, check, bytes)."""
    yield (
        "a sum of shares is another, which opening shows",
        "C45",
        bytes([key_sum[0] ^ 1]) + key_sum[1:],
    )
    yield "a sum of shares is a byte short", "C25", key_sum[:-1]
    yield (
        "an element of a sum is p",
        "C25",
        b"\xff\xff\xff" + bytes([key_sum[3] | 127]) + key_sum[4:],
    )
    yield "a sum of shares is missing", "C25", b""


@dataclass(frozen=True)
class Served:
    """Uploads by tenant, as somebody serves them who need not be trusted."""

    plan: RoundPlan
    uploads: dict[str, bytes]

    def leaf(self, participant: str, number: int) -> tuple[bytes, tuple[bytes, ...]]:
        sizes = [place.size for place in leaf_places(self.plan)]
        begins = [sum(sizes[:place]) for place in range(len(sizes))]
        data = self.uploads[participant]
        leaves = [data[at : at + size] for at, size in zip(begins, sizes, strict=True)]
        hashes = [merkle.bulk_leaf_hash(leaf) for leaf in leaves]
        return leaves[number], merkle.path(hashes, number)


def sum_case(name: str, case: str, check: str, claimed: str, *edit: Any) -> Case:
    """A claimed root, held against the uploads of which one byte may be another."""
    network = ran(name)
    verified = verify_transcript(network.aggregator.transcript, cohort(RECIPES[name].n).roster)
    uploads = {who: upload_of(name, who) for who in verified.survivors}
    if edit:
        who, place, value = edit
        data = bytearray(uploads[who])
        data[place] ^= value
        uploads[who] = bytes(data)
    row: Case = {"case": case, "round": name, "edit": list(edit), "claimed_root": claimed}
    try:
        leaves = check_sum(verified, Served(verified.plan, uploads), bytes.fromhex(claimed))
    except ProtocolError as error:
        step = None if error.step is None else error.step.label
        return {**row, "refused": {"error": type(error).__name__, "step": step, "check": check}}
    return {**row, "output": {"leaves": leaves}}


def sum_cases(name: str) -> Iterator[Case]:
    network = ran(name)
    result, plan = network.outcome.opened, network.aggregator.plan
    right = sum_root(plan, result.level_sum, result.total_weight).hex()
    other = result.level_sum.copy()
    other[-1] += 1
    invented = sum_root(plan, other, result.total_weight).hex()
    heavier = sum_root(plan, result.level_sum, result.total_weight + 1).hex()
    yield sum_case(name, "the sum that was opened", "", right)
    yield sum_case(name, "a sum that is off by one level", "C41", invented)
    yield sum_case(name, "another weight", "C41", heavier)
    yield sum_case(name, "an upload's first byte is another", "C40", right, "t001", 0, 1)
    yield sum_case(name, "an upload's weight is another", "C40", right, "t000", -1, 1)


def transcripts() -> dict[str, Any]:
    """The content of transcripts.json."""
    names = ("round-x25519", "round-hybrid", "round-ckks")
    return {
        "transcripts": [
            {"round": name, "bytes": ran(name).aggregator.transcript.hex()} for name in names
        ],
        "cases": [case for name in names for case in transcript_cases(name)],
        "sums": [case for name in names for case in sum_cases(name)],
    }


ROUNDS: dict[str, Callable[[], dict[str, Any]]] = {
    **{name: lambda name=name: facts(name) for name in RECIPES if name != "round-ckks"},  # type: ignore[misc]
    "transcripts": transcripts,
}
