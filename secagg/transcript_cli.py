"""Check offline over whom a round's sum was opened, under which plan, and what it is.

  secagg verify-transcript round-7.transcript --roster roster.bin
  secagg verify-transcript round-7.transcript --roster roster.bin --uploads round-7/upload
  secagg verify-transcript round-7.transcript --roster roster.bin --uploads round-7/upload \\
      --sum round-7/opened_sum.npy

The transcript alone proves survivors, plan and quorum. With the survivors' uploads, one file
TENANT.bin each, the sum is recomputed from them and the released shares; with --sum it is compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from secagg import merkle
from secagg.errors import ConfigError, MalformedMessage, ProtocolError, Step
from secagg.identity import Roster
from secagg.recompute import random_leaves, recompute
from secagg.scheme import leaf_places
from secagg.transcript import Verified, verify_transcript


def main(argv: list[str]) -> int:
    """`secagg verify-transcript`: exit code 0 if everything holds, 4 if something does not."""
    options = _parser().parse_args(argv)
    if options.uploads is None and (options.sum or options.out or options.leaves):
        raise ConfigError("--sum, --out and --leaves recompute: give --uploads DIR as well")
    if options.leaves and options.out:
        raise ConfigError("--out writes the whole sum; leave --leaves away")
    try:
        roster = Roster.decode(_read(options.roster))
    except MalformedMessage as error:
        raise ConfigError(f"{options.roster} is not the roster that you pinned: {error}") from None
    try:
        verified = verify_transcript(_read(options.transcript), roster)
        facts = _facts(verified) | _recomputed(verified, options)
    except ProtocolError as error:
        where = f" in {error.step.label}" if error.step is not None else ""
        print(f"secagg: the transcript does not hold{where}: {error}", file=sys.stderr)
        return 4
    print(json.dumps(facts, indent=2) if options.format == "json" else _words(facts))
    return 0


class StoredUploads:
    """Uploads as a coordinator keeps them: DIRECTORY/TENANT.bin, the packed leaves in order."""

    def __init__(self, directory: Path, verified: Verified) -> None:
        self._directory = directory
        self._places = leaf_places(verified.plan)
        self._hashes: dict[str, list[bytes]] = {}

    def leaf(self, participant: str, number: int) -> tuple[bytes, Sequence[bytes]]:
        """See `secagg.recompute.Uploads`."""
        if participant not in self._hashes:
            self._hashes[participant] = self._hash(participant)
        start = sum(place.size for place in self._places[:number])
        with self._open(participant) as file:
            file.seek(start)
            data = file.read(self._places[number].size)
        return data, merkle.path(self._hashes[participant], number)

    def _hash(self, participant: str) -> list[bytes]:
        with self._open(participant) as file:
            hashes = [merkle.bulk_leaf_hash(file.read(place.size)) for place in self._places]
            if file.read(1):
                raise ProtocolError(
                    f"the upload of {participant!r} is longer than the plan's",
                    step=Step.MASKED_INPUT,
                )
        return hashes

    def _open(self, participant: str) -> BinaryIO:
        path = self._directory / f"{participant}.bin"
        try:
            return path.open("rb")
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; give every survivor's upload") from None


def _recomputed(verified: Verified, options: argparse.Namespace) -> dict[str, object]:
    if options.uploads is None:
        return {}
    plan = verified.plan
    claimed = None if options.sum is None else _read_sum(options.sum, plan.layout.size)
    numbers = None
    if options.leaves:
        numbers = random_leaves(plan, min(options.leaves, len(leaf_places(plan))), os.urandom)
    whole = np.empty(plan.layout.size if options.out else 0, np.int64)
    digest, weight, compared = hashlib.sha256(), None, 0
    for leaf in recompute(verified, StoredUploads(options.uploads, verified), numbers):
        compared += 1
        part, values = leaf.place.data, leaf.values
        if leaf.place.weighs:
            values, weight = values[:-1], int(values[-1])
        digest.update(np.ascontiguousarray(values, "<i8").data)
        if options.out:
            whole[part] = values
        if claimed is not None and not np.array_equal(claimed[part], values):
            raise ProtocolError(
                f"the claimed sum is not that of the uploads in values {part.start} to "
                f"{part.stop - 1}",
                step=Step.UNMASK,
            )
    if options.out:
        np.save(options.out, whole, allow_pickle=False)
    return {
        "sum_recomputed": "whole" if numbers is None else f"{compared} random leaves",
        "sum_compared": claimed is not None,
        "total_weight": weight,
        "sum_sha256": digest.hexdigest() if numbers is None else None,
    }


def _read_sum(path: Path, length: int) -> NDArray[np.int64]:
    """.npy, or the coordinator's raw little-endian int64."""
    try:
        if path.suffix == ".npy":
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            values = np.memmap(path, "<i8", "r")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no sum: {error}; give int64 in .npy or raw") from None
    if values.shape != (length,) or values.dtype.kind != "i":
        raise ConfigError(f"{path} is no sum of {length} integers, but {values.shape}")
    return np.asarray(values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="secagg verify-transcript",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("transcript", type=Path, help="the round's transcript")
    parser.add_argument("--roster", type=Path, required=True, help="the roster that you pinned")
    parser.add_argument(
        "--uploads", type=Path, metavar="DIR", help="the survivors' uploads, TENANT.bin each"
    )
    parser.add_argument(
        "--sum", type=Path, metavar="FILE", help="the announced sum: .npy or raw int64"
    )
    parser.add_argument(
        "--leaves", type=int, metavar="N", help="recompute N leaves drawn at random, not all"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the recomputed sum (.npy)")
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
        "suite": verified.plan.suite,
        "cohort": verified.plan.cohort,
        "survivors": verified.survivors,
        "dropouts": verified.dropouts,
        "signers": verified.signers,
        "answered": verified.answered,
        "digest": verified.digest.hex(),
        "sum_recomputed": False,
    }


def _words(facts: dict[str, object]) -> str:
    lines = [f"{name:>14}  {_text(value)}" for name, value in facts.items()]
    return "\n".join(["the transcript holds", *lines])


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
