"""Audit paths of a Merkle tree in a file, so that serving a leaf does not hash all of them again.

One record of equal length for each leaf: how many hashes its path has, then those hashes, padded
with zeros. RFC 6962 moves an odd node up as it is, so paths differ in length.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from secagg import merkle


def write(file: Path, leaf_hashes: Sequence[bytes]) -> bytes:
    """Write the paths of all leaves; returns the root (32 bytes)."""
    width = _width(len(leaf_hashes))
    file.parent.mkdir(parents=True, exist_ok=True)
    passing = file.with_name(f".{file.name}.{threading.get_ident()}.new")
    with passing.open("wb") as target:
        for path in merkle.paths(leaf_hashes):
            target.write(bytes([len(path)]) + b"".join(path).ljust(width, b"\0"))
    os.replace(passing, file)
    return merkle.root(leaf_hashes)


def read(file: Path, leaves: int, number: int) -> tuple[bytes, ...]:
    """The path of leaf `number` of `leaves`, from its sibling upwards."""
    size = 1 + _width(leaves)
    with file.open("rb") as source:
        source.seek(number * size)
        record = source.read(size)
    hashes = range(1, 1 + record[0] * merkle.HASH_BYTES, merkle.HASH_BYTES)
    return tuple(record[start : start + merkle.HASH_BYTES] for start in hashes)


def _width(leaves: int) -> int:
    return (leaves - 1).bit_length() * merkle.HASH_BYTES
