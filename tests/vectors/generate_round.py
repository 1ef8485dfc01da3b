"""Vectors of whole messages: one round of four with a dropout, and what its parties refuse.

    python tests/vectors/generate_round.py           writes tests/vectors/round.json
    python tests/vectors/generate_round.py --check   exits with 1 if the committed file differs

The file fixes what goes over the wire and what is signed: plan, roster, context, every message in
the order in which it was sent, upload bytes, the opened sum and the transcript's digest. Secrets
come from `secagg.testing`'s seeded randomness, so the file is the same in every run. Under
"refused" stand messages that one byte or one field made wrong, the party that meets them, and the
class of its error. Bytes are hexadecimal.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from secagg.errors import SecaggError, Step
from secagg.messages import KeyDirectory, Signed, decode_message
from secagg.records import encode
from secagg.testing import Silence, SimulatedNetwork, SimulatedTenant, cohort, make_round
from secagg.transcript import verify_transcript

FILE = Path(__file__).parent / "round.json"
N, LENGTH = 4, 5


def round_of_four() -> SimulatedNetwork:
    """t003 falls silent before its upload, so that its mask seed is rebuilt."""
    network = make_round(N, length=LENGTH, faults=[Silence("t003", Step.ACKNOWLEDGE)])
    network.run()
    return network


def sent(network: SimulatedNetwork) -> Iterator[dict[str, Any]]:
    for envelope in network.sent:
        if envelope.label == "plan":
            continue
        row: dict[str, Any] = {"tenant": envelope.tenant, "message": envelope.label}
        if envelope.label == "upload_chunk":
            row["offset"] = envelope.offset
        yield {**row, "bytes": envelope.data.hex()}


def waiting_tenant() -> SimulatedTenant:
    """t001 after step 0."""
    network = make_round(N, length=LENGTH)
    tenant = network.tenants["t001"]
    tenant.offer(network.aggregator.plan.encode())
    return tenant


def spoilt(directory: bytes) -> Iterator[tuple[str, bytes]]:
    """U1 as t001 must not accept it."""
    message = decode_message(directory)
    assert isinstance(message, KeyDirectory)
    keys = message.keys
    yield "truncated", directory[:-1]
    yield "a trailing byte", directory + b"\0"
    yield "another version", b"\x02" + directory[1:]
    yield "nothing", b""
    yield "a participant's message", encode(keys[0])
    yield "senders not in order", encode(KeyDirectory(keys[::-1]))
    yield "a sender twice", encode(KeyDirectory((*keys, keys[-1])))
    yield "too few", encode(KeyDirectory(keys[:2]))
    yield "the own keys are missing", encode(KeyDirectory((keys[0], *keys[2:])))
    yield "a changed signature", encode(KeyDirectory((_flipped(keys[0]), *keys[1:])))
    yield "exchanged bodies", encode(KeyDirectory((*keys[:2], *_exchanged(keys[2], keys[3]))))
    yield "a sender beyond the cohort", encode(KeyDirectory((*keys, replace(keys[3], sender=4))))


def _flipped(signed: Signed) -> Signed:
    first, *rest = signed.signature
    return replace(signed, signature=bytes([first ^ 1, *rest]))


def _exchanged(first: Signed, second: Signed) -> tuple[Signed, Signed]:
    return replace(first, body=second.body), replace(second, body=first.body)


def outcome(message: bytes) -> str:
    """The class of the error with which t001 meets this message after step 0."""
    try:
        waiting_tenant().receive(message)
    except SecaggError as error:
        return type(error).__name__
    return "accepted"


def content() -> dict[str, Any]:
    """What round.json says."""
    network = round_of_four()
    plan, roster = network.aggregator.plan, cohort(N).roster
    result = network.outcome.opened
    directory = next(e.data for e in network.sent if e.label == "key_directory")
    transcript = network.aggregator.transcript
    return {
        "roster": roster.encode().hex(),
        "roster_digest": roster.digest.hex(),
        "plan": plan.encode().hex(),
        "context": plan.context.hex(),
        "sent": list(sent(network)),
        "survivors": list(result.survivors),
        "level_sum": result.level_sum.tolist(),
        "total_weight": result.total_weight,
        "transcript_digest": verify_transcript(transcript, roster).digest.hex(),
        "refused": [
            {"case": name, "bytes": data.hex(), "error": outcome(data)}
            for name, data in spoilt(directory)
        ],
    }


def render() -> str:
    """The text of round.json: one line for each message."""
    facts = content()
    lines = []
    for key, value in facts.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n".join(json.dumps(row) for row in value)
            lines.append(f"{json.dumps(key)}: [\n{rows}\n]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main(arguments: list[str]) -> int:
    if "--check" not in arguments:
        FILE.write_text(render())
    elif not FILE.exists() or FILE.read_text() != render():
        print(f"{FILE.name} differs from what the code does")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
