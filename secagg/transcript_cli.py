"""Check offline over whom a round's sum was opened, and under which plan."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from secagg.errors import ConfigError, MalformedMessage, ProtocolError
from secagg.identity import Roster
from secagg.transcript import Verified, verify_transcript


def main(argv: list[str]) -> int:
    """`secagg verify-transcript`: exit code 0 if the transcript holds, 4 if it does not."""
    options = _parser().parse_args(argv)
    try:
        roster = Roster.decode(_read(options.roster))
    except MalformedMessage as error:
        raise ConfigError(f"{options.roster} is not the roster that you pinned: {error}") from None
    try:
        verified = verify_transcript(_read(options.transcript), roster)
    except ProtocolError as error:
        where = f" in {error.step.label}" if error.step is not None else ""
        print(f"secagg: the transcript does not hold{where}: {error}", file=sys.stderr)
        return 4
    print(json.dumps(_facts(verified), indent=2) if options.format == "json" else _words(verified))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="secagg verify-transcript",
        description="Replay the checks of a finished round: signatures, views, survivors, quorum. "
        "The sum itself is not recomputed.",
        epilog="example: secagg verify-transcript round-7.transcript --roster roster.bin",
    )
    parser.add_argument("transcript", type=Path, help="the round's transcript")
    parser.add_argument("--roster", type=Path, required=True, help="the roster that you pinned")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    return parser


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give a file that can be read") from None


def _facts(verified: Verified) -> dict[str, object]:
    return {
        "round": verified.plan.round_number,
        "context": verified.plan.context.hex(),
        "roster": verified.plan.roster_digest.hex(),
        "model": verified.plan.model_digest.hex(),
        "scheme": verified.plan.scheme,
        "cohort": verified.plan.cohort,
        "survivors": verified.survivors,
        "dropouts": verified.dropouts,
        "signers": verified.signers,
        "answered": verified.answered,
        "digest": verified.digest.hex(),
        "sum_recomputed": False,
    }


def _words(verified: Verified) -> str:
    lines = [f"{name:>14}  {_text(value)}" for name, value in _facts(verified).items()]
    return "\n".join(["the transcript holds", *lines])


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
