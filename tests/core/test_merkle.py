"""RFC 6962 trees: the published roots, the RFC's own recursion, and no path but the right one."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg.errors import UsageError
from secagg.merkle import BulkLeaf, bulk_leaf_hash, leaf_hash, path, paths, root, verify_path

# Leaves and roots of Certificate Transparency's own Merkle tree tests.
LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]

trees = st.lists(st.binary(max_size=8).map(leaf_hash), min_size=1, max_size=70)


def split_point(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def tree_hash(hashes: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, over leaf hashes."""
    if len(hashes) == 1:
        return hashes[0]
    k = split_point(len(hashes))
    return hashlib.sha256(b"\x01" + tree_hash(hashes[:k]) + tree_hash(hashes[k:])).digest()


def audit_path(hashes: list[bytes], index: int) -> tuple[bytes, ...]:
    """PATH of RFC 6962, section 2.1.1."""
    if len(hashes) == 1:
        return ()
    k = split_point(len(hashes))
    if index < k:
        return (*audit_path(hashes[:k], index), tree_hash(hashes[k:]))
    return (*audit_path(hashes[k:], index - k), tree_hash(hashes[:k]))


@pytest.mark.parametrize("size", range(9))
def test_roots_are_the_published_ones(size: int) -> None:
    assert root([leaf_hash(leaf) for leaf in LEAVES[:size]]).hex() == ROOTS[size]


@given(trees)
def test_roots_and_paths_follow_the_rfcs_recursion(hashes: list[bytes]) -> None:
    assert root(hashes) == tree_hash(hashes)
    assert paths(hashes) == tuple(audit_path(hashes, index) for index in range(len(hashes)))


@given(trees)
def test_every_path_proves_its_own_leaf_and_place(hashes: list[bytes]) -> None:
    top, size = root(hashes), len(hashes)
    for index, proof in enumerate(paths(hashes)):
        assert proof == path(hashes, index)
        assert verify_path(hashes[index], index, size, proof, top)


@given(trees, st.data())
def test_one_flipped_bit_fails(hashes: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(hashes) - 1))
    parts = [hashes[index], root(hashes), *path(hashes, index)]
    flipped, bit = data.draw(st.integers(0, len(parts) - 1)), data.draw(st.integers(0, 255))
    number = int.from_bytes(parts[flipped]) ^ (1 << bit)
    parts[flipped] = number.to_bytes(32)
    leaf, top, *proof = parts
    assert not verify_path(leaf, index, len(hashes), proof, top)


@given(trees, st.data())
def test_a_path_of_another_length_fails(hashes: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(hashes) - 1))
    proof, top = path(hashes, index), root(hashes)
    assert not verify_path(hashes[index], index, len(hashes), (*proof, top), top)
    for short in range(len(proof)):
        assert not verify_path(hashes[index], index, len(hashes), proof[:short], top)


@given(st.integers(2, 70), st.data())
def test_a_path_for_another_place_fails(size: int, data: st.DataObject) -> None:
    hashes = [leaf_hash(bytes([number])) for number in range(size)]
    index, other = data.draw(st.permutations(range(size)))[:2]
    assert not verify_path(hashes[index], other, size, path(hashes, index), root(hashes))


@pytest.mark.parametrize("index", [-1, 3])
def test_places_outside_the_tree_have_no_path(index: int) -> None:
    hashes = [leaf_hash(leaf) for leaf in LEAVES[:3]]
    with pytest.raises(UsageError):
        path(hashes, index)
    assert not verify_path(hashes[0], index, 3, (), root(hashes))
    assert not verify_path(hashes[0], 0, 0, (), root([]))


def test_a_node_is_not_accepted_as_a_leaf() -> None:
    left, right = leaf_hash(b"l"), leaf_hash(b"r")
    assert leaf_hash(left + right) != root([left, right])


def test_nodes_of_another_length_fail() -> None:
    hashes = [leaf_hash(leaf) for leaf in LEAVES[:2]]
    moved = hashes[1][:-1]
    assert not verify_path(hashes[0], 0, 2, (moved,), root([hashes[0], moved]))


# BLAKE3's own test vectors: https://github.com/BLAKE3-team/BLAKE3 (test_vectors.json), and "abc".
@pytest.mark.parametrize(
    ("data", "digest"),
    [
        (b"", "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
        (b"\0", "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"),
        (b"abc", "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"),
    ],
)
def test_a_bulk_leaf_is_the_leaf_of_its_blake3_digest(data: bytes, digest: str) -> None:
    assert bulk_leaf_hash(data) == leaf_hash(bytes.fromhex(digest))


@given(st.lists(st.binary(max_size=3000), max_size=5))
def test_a_bulk_leaf_does_not_depend_on_its_pieces(pieces: list[bytes]) -> None:
    leaf = BulkLeaf()
    for piece in pieces:
        leaf.update(memoryview(piece))
    assert leaf.hash() == bulk_leaf_hash(b"".join(pieces))
