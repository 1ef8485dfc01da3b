"""Merkle trees with RFC 6962 hashing: a root commits to leaves, a path proves one of them.

Leaf: SHA-256(0x00 || data); node: SHA-256(0x01 || left || right); an odd node moves up as it is,
which builds RFC 6962's tree (section 2.1). The root alone does not fix the number of leaves;
whoever signs a root signs the size or can derive it.

The data of a bulk leaf (a chunk of an upload or of a sum) is the BLAKE3 digest of that chunk, so
that bytes of model size are hashed at BLAKE3's speed and the tree stays RFC 6962's (ADR 0006).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from blake3 import blake3

from secagg.errors import UsageError

HASH_BYTES = 32


def leaf_hash(data: bytes | memoryview) -> bytes:
    """Hash of one leaf (32 bytes)."""
    digest = hashlib.sha256(b"\x00")
    digest.update(data)
    return digest.digest()


class BulkLeaf:
    """The hash of a bulk leaf whose bytes arrive in pieces."""

    __slots__ = ("_digest",)

    def __init__(self) -> None:
        self._digest = blake3()

    def update(self, piece: bytes | memoryview) -> None:
        """The next bytes."""
        self._digest.update(piece)

    def hash(self) -> bytes:
        """Hash of the leaf (32 bytes)."""
        return leaf_hash(self._digest.digest())


def bulk_leaf_hash(data: bytes | memoryview) -> bytes:
    """Hash of a bulk leaf that is there as a whole (32 bytes)."""
    leaf = BulkLeaf()
    leaf.update(data)
    return leaf.hash()


def root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Root over the leaves' hashes (32 bytes); SHA-256 of nothing when there are none."""
    return _levels(leaf_hashes)[-1][0] if leaf_hashes else hashlib.sha256().digest()


def path(leaf_hashes: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Audit path of leaf `index`, from its sibling upwards (RFC 6962, section 2.1.1)."""
    if not 0 <= index < len(leaf_hashes):
        raise UsageError(f"there is no leaf {index} among {len(leaf_hashes)}")
    return _path(_levels(leaf_hashes), index)


def paths(leaf_hashes: Sequence[bytes]) -> tuple[tuple[bytes, ...], ...]:
    """The audit paths of all leaves; every node is hashed once."""
    levels = _levels(leaf_hashes)
    return tuple(_path(levels, index) for index in range(len(leaf_hashes)))


def verify_path(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether `path` proves that leaf hash `leaf` is number `index` of `size` under `root`.

    Source: RFC 9162, section 2.1.3.2. Every malformed argument is a plain False.
    """
    if not 0 <= index < size:
        return False
    node, last, rest = leaf, size - 1, iter(path)
    while last:
        if index % 2 or index < last:
            sibling = next(rest, None)
            if sibling is None or len(sibling) != HASH_BYTES:
                return False
            node = _node(sibling, node) if index % 2 else _node(node, sibling)
        index, last = index // 2, last // 2
    return next(rest, None) is None and hmac.compare_digest(node, root)


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _levels(leaf_hashes: Sequence[bytes]) -> list[Sequence[bytes]]:
    """All levels of the tree, leaves first; the last one is the root alone."""
    levels = [leaf_hashes]
    while len(below := levels[-1]) > 1:
        pairs = [_node(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)]
        levels.append(pairs + list(below[len(pairs) * 2 :]))
    return levels


def _path(levels: Sequence[Sequence[bytes]], index: int) -> tuple[bytes, ...]:
    steps = []
    for level in levels[:-1]:
        if (sibling := index ^ 1) < len(level):
            steps.append(level[sibling])
        index //= 2
    return tuple(steps)
