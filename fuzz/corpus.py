"""The seed corpus: for each target some good inputs, out of the rounds and files of tests/vectors.

    python fuzz/corpus.py           writes fuzz/corpus/TARGET/NAME
    python fuzz/corpus.py --check   exits with 1 if a committed seed differs

fuzz/regressions/TARGET/ keeps every input that ever broke a target; nothing here writes there.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz import targets
from secagg.canonical import Writer
from secagg.ckks import parameters
from secagg.errors import PolicyRefused, Step, TooFewSurvivors
from secagg.identity import sha256
from secagg.layout import Layout, TensorSpec
from secagg.messages import BODIES, Signed, decode_message
from secagg.records import decode, encode
from secagg.transcript import Transcript
from secagg_wire import codec
from secagg_wire.enrol import create_keys, make_request
from secagg_wire.key_files import Party
from secagg_wire.manifest import Manifest
from tests.vectors import rounds
from tests.vectors.generate import FOLDER as VECTORS

FOLDER = Path(__file__).parent / "corpus"
REGRESSIONS = Path(__file__).parent / "regressions"
ROUND = "round-x25519"
Seed = tuple[str, str, bytes]
"""Target, name, bytes."""


def seeds() -> Iterator[Seed]:
    """Everything that can be made again byte by byte."""
    yield from round_seeds()
    yield from record_seeds()
    yield from transcript_seeds()
    yield from vector_seeds()
    yield from machine_seeds()
    yield from ckks_seeds()
    yield from wire_seeds()
    yield from file_seeds()


def cases(name: str, operation: str) -> Iterator[dict[str, Any]]:
    """The inputs of one operation's vectors, good and bad."""
    for case in json.loads((VECTORS / f"{name}.json").read_text()):
        if case["operation"] == operation:
            yield {**case["input"], "case": case["name"]}


def plain(name: str) -> str:
    """A case's name as a file's."""
    return "".join(letter if letter.isalnum() else "-" for letter in name).strip("-").lower()


def uplinks() -> Iterator[tuple[str, bytes]]:
    """What t001 says, by label."""
    for label in rounds.LABELS_UP:
        yield label, rounds.message_of(ROUND, "t001", label)


def downlinks() -> Iterator[tuple[str, bytes]]:
    """What t001 is told, by label."""
    for label in rounds.DOWN:
        yield label, rounds.message_of(ROUND, "t001", label)


def round_seeds() -> Iterator[Seed]:
    for label, data in (*uplinks(), *downlinks()):
        yield "message", label, data
    hybrid = rounds.message_of("round-hybrid", "t002", "share_keys")
    yield "message", "share_keys_hybrid", hybrid
    yield "message", "dealing", rounds.parts_of(ROUND)[1]
    yield "message", "pad_boxes", rounds.parts_of("round-hybrid")[-1]


def record_seeds() -> Iterator[Seed]:
    """One of every type, behind its number."""
    found: dict[str, bytes] = {}
    for one in rounds.ran(ROUND).tenants.values():
        for state in one.states.values():  # type: ignore[attr-defined]
            _collect(found, state)
    for _, data in (*uplinks(), *downlinks()):
        _collect(found, decode_message(data))
    for name in (ROUND, "round-hybrid"):
        _collect(found, decode(Transcript, rounds.ran(name).aggregator.transcript))
        for part in rounds.parts_of(name):
            _collect(found, decode_message(part))
    for number, kind in enumerate(targets.RECORDS):
        yield "record", kind.__name__, bytes([number]) + found[kind.__name__]


def _collect(found: dict[str, bytes], value: object) -> None:
    if isinstance(value, tuple):
        for item in value:
            _collect(found, item)
    elif type(value) in targets.RECORDS:
        found.setdefault(type(value).__name__, encode(value))
        if isinstance(value, Signed):
            _collect(found, value.read(BODIES[value.label]))
        for name in getattr(type(value), "__slots__", ()):
            _collect(found, getattr(value, name))


def transcript_seeds() -> Iterator[Seed]:
    for name in (ROUND, "round-hybrid"):
        yield "transcript", name, rounds.ran(name).aggregator.transcript
    for number, part in enumerate(rounds.parts_of(ROUND)):
        yield "chained", f"message_{number:02}", bytes([number]) + part


def vector_seeds() -> Iterator[Seed]:
    for operation, name in (("plan.decode", "plan"), ("roster.decode", "roster")):
        for case in cases("plans", operation):
            yield name, plain(case["case"]), bytes.fromhex(case["data"])
    for case in cases("packing", "packing.unpack"):
        if 8 <= case["bits"] <= 64:
            head = bytes([case["bits"] - 8]) + case["count"].to_bytes(2, "big")
            yield "packing", plain(case["case"]), head + bytes.fromhex(case["data"])
    for case in cases("shamir", "shamir.open"):
        (data, *_) = case["shares"].values()
        yield "share", plain(case["case"]), bytes.fromhex(data)
    for case in cases("suites", "suite.check_public_keys"):
        keys, hybrid = case["keys"], case["suite"] != "x25519"
        names = ("channel_key", "mask_key", "channel_kem", "mask_kem")
        short = 32 - len(bytes.fromhex(keys["mask_key"]))
        if 0 <= short < 32:
            keys = {**keys, "mask_key": keys["mask_key"].ljust(64, "0")}
            data = b"".join(bytes.fromhex(keys[name]) for name in names)
            yield "public_keys", plain(case["case"]), bytes([hybrid + 4 * short]) + data
            if case["case"].endswith("as advertised"):
                alone = bytes.fromhex(keys["channel_key"]) + bytes(32)
                alone += bytes.fromhex(keys["channel_kem"])
                yield (
                    "public_keys",
                    plain(f"{case['case']} without masks"),
                    bytes([hybrid + 2]) + alone,
                )
    layout = Layout((TensorSpec("a", (2, 3)), TensorSpec("Zoë", (), "bfloat16")))
    for name, one in (("two_tensors", layout), ("flat", Layout.flat(7))):
        writer = Writer()
        one.write(writer)
        yield "layout", name, writer.finish()


def machine_seeds() -> Iterator[Seed]:
    yield "sealed_state", "dealt", targets.exported()
    for step, (label, data) in enumerate(downlinks()):
        yield "participant", label, bytes([step]) + data
        records = vars_of(decode_message(data))
        if label != "share_delivery":
            yield "colluder", label, bytes([{0: 0, 2: 1, 3: 2, 4: 3}[step]]) + records[0].body
    for label, data in uplinks():
        yield "aggregator", label, bytes([BODIES[label].STEP]) + data
        if label != "share_keys":
            labels = [one for one in rounds.LABELS_UP if one != "share_keys"]
            body = rounds.signed(ROUND, "t001", label).body
            yield "signed_uplink", label, bytes([labels.index(label)]) + body
    state = rounds.parked(ROUND, "t001", Step.ACKNOWLEDGE).running._state
    for one in state.held[:2]:  # type: ignore[union-attr]
        plain_bundle = b"".join(part.share.expose() + part.opening for part in one.opened)
        yield "bundle", f"of_{one.dealer}", plain_bundle
    whole = rounds.upload_of(ROUND, "t001")
    yield "upload", "in_one_piece", bytes([len(whole)]) + whole
    yield "upload", "in_small_pieces", b"".join(b"\x05" + whole[i : i + 5] for i in range(0, 20, 5))


def ckks_seeds() -> Iterator[Seed]:
    name, plan = targets.CKKS, rounds.ran(targets.CKKS).aggregator.plan
    for packing in ("coefficients", "slots"):
        writer = Writer()
        parameters.choose(
            n=5, length=9, ring_bits=23, weight_ring_bits=14, holders=5, packing=packing
        ).write(writer)
        yield "ckks_parameters", packing, b"\0\5\x17" + writer.finish()
    for case in cases("ckks", "ckks.elements"):
        head = case["count"].to_bytes(2, "big")
        yield "ckks_elements", plain(case["case"]), head + bytes.fromhex(case["data"])
    for case in cases("ckks", "ckks.check"):
        head = bytes([case["threshold"]])
        yield "ckks_check", plain(case["case"]), head + bytes.fromhex(case["data"])
    for case in cases("ckks", "ckks.unpack"):
        yield "ckks_leaf", plain(case["case"]), bytes.fromhex(case["leaf"])
    for number, part in enumerate(rounds.parts_of(name)):
        if number in (0, 1, 6, 7, 8, 9, 11):
            yield "ckks_chained", f"message_{number:02}", bytes([number]) + part
    for step, label in enumerate(rounds.DOWN):
        data = rounds.message_of(name, "t001", label)
        yield "ckks_participant", label, bytes([step]) + data
        records = vars_of(decode_message(data))
        if label != "share_delivery":
            place = {0: 0, 2: 1, 3: 2, 4: 3}[step]
            yield "ckks_colluder", label, bytes([place]) + records[0].body
    labels = [one for one in rounds.LABELS_UP if one != "share_keys"]
    for label in rounds.LABELS_UP:
        data = rounds.message_of(name, "t001", label)
        yield "ckks_aggregator", label, bytes([BODIES[label].STEP]) + data
        if label != "share_keys":
            body = rounds.signed(name, "t001", label).body
            yield "ckks_uplink", label, bytes([labels.index(label)]) + body
    yield "ckks_bundle", "as_dealt", bytes(2)
    yield "ckks_bundle", "an_element_is_p", b"\0\0\xff\xff\xff\xff"
    yield "ckks_upload", "as_sent", bytes(2)
    last = plan.ckks.leaf_bytes - 3
    yield "ckks_upload", "a_residue_beyond", last.to_bytes(2, "big") + b"\xff\xff\xff"
    yield "ckks_sums", "two", b"\0"
    yield "ckks_sums", "one_of_four_is_wrong", b"\2\0\0\0\1"


def vars_of(message: object) -> tuple[Signed, ...]:
    """The signed records that a downlink bundles."""
    value = getattr(message, next(iter(type(message).__slots__)))  # type: ignore[attr-defined]
    return tuple(one for one in value if isinstance(one, Signed))


def wire_seeds() -> Iterator[Seed]:
    context = rounds.ran(ROUND).aggregator.plan.context
    for label, data in uplinks():
        request = codec.submit_request("t001", context, data)
        yield "submission", label, request.SerializeToString(deterministic=True)
    for step, (label, data) in zip(Step, downlinks(), strict=False):
        event = codec.step_message(context, step, data)
        yield "step_message", label, event.SerializeToString(deterministic=True)
    whole = rounds.upload_of(ROUND, "t001")
    requests = codec.upload_requests("t001", context, [whole], lambda: bytes(32), size=10)
    for number, data in enumerate(requests):
        yield "upload_request", f"request_{number}", data
    for error in (TooFewSurvivors(1, 2, step=Step.UNMASK), PolicyRefused("suites", "it is weak")):
        ((_, details),) = codec.error_to_status(error).trailing
        yield "status_details", type(error).__name__, details


def file_seeds() -> Iterator[Seed]:
    files = {"adapter.safetensors": b"weights", "config.json": b"{}"}
    yield "manifest", "two_files", Manifest.of(files, {"rank": 8, "names": ["a"]}).encode()
    yield "key_files", "tenant", targets._about()
    identity = sha256(b"no seed of anybody").hex().encode() + b"\n"
    yield "identity_seed", "of_somebody_else", identity
    for name, header, rest in (
        ("one_tensor", {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        ("no_tensor", {"__metadata__": {"format": "pt"}}, b""),
    ):
        text = json.dumps(header).encode()
        yield "safetensors", name, len(text).to_bytes(8, "little") + text + rest


def recorded() -> Iterator[Seed]:
    """Seeds with fresh signatures in them: made once, then kept."""
    with tempfile.TemporaryDirectory() as folder:
        for role, hosts in (("tenant", ()), ("coordinator", ("localhost", "127.0.0.1"))):
            keys = create_keys(Path(folder) / role, Party(role, "t000"), "group")  # type: ignore[arg-type]
            request = make_request(keys, hosts, targets.NOW)
            yield "enrolment_request", role, request.encode()
            signed = bytes([bool(hosts)]) + request.created.to_bytes(8) + request.csr.encode()
            yield "enrolment_signed", role, signed


def main(arguments: list[str]) -> int:
    """Write the corpus, or compare it."""
    due = {FOLDER / target / name: data for target, name, data in seeds()}
    drifted = [file for file, data in due.items() if not file.exists() or file.read_bytes() != data]
    if "--check" in arguments:
        for file in drifted:
            print(f"{file.relative_to(FOLDER.parent)} is not what fuzz/corpus.py writes")
        return int(bool(drifted))
    kept = {FOLDER / target / name: data for target, name, data in recorded()}
    for file in set(FOLDER.glob("*/*")) - due.keys() - kept.keys():
        file.unlink()
    for file, data in {**kept, **due}.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        if file in due or not file.exists():
            file.write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
