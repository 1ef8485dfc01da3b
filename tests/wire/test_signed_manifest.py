"""A signed folder is exactly what its owner signed; signatures hold for one manifest and key."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg.errors import ConfigError
from secagg.identity import NO_CONTEXT, Identity, IdentitySeed
from secagg_wire.manifest import Manifest
from secagg_wire.signed_manifest import (
    MANIFEST_FILE,
    SIGNATURE_FILE,
    ManifestSignature,
    SignedFolder,
    read_signed_folder,
    sign_manifest,
    verify_manifest,
    write_signed_folder,
)

OWNER = Identity("acme", IdentitySeed(bytes(range(32))))
OTHER = Identity("acme", IdentitySeed(bytes(range(1, 33))))
MANIFEST = Manifest.of({"a.json": b"{}"}, {"signed": True}).encode()


def package(folder: Path, identity: Identity | None = OWNER) -> SignedFolder:
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    (folder / "config.json").write_bytes(b"{}")
    return write_signed_folder(folder, {"signed": identity is not None}, identity)


def test_a_signature_holds_for_its_manifest_owner_and_key_alone() -> None:
    signature = sign_manifest(MANIFEST, OWNER)
    assert signature.verifies(MANIFEST)
    assert ManifestSignature.decode(signature.encode()) == signature
    verify_manifest(MANIFEST, signature, OWNER.public_key)
    assert not signature.verifies(MANIFEST + b" ")
    renamed = ManifestSignature("other", signature.public_key, signature.signature)
    assert not renamed.verifies(MANIFEST)
    for bad in (sign_manifest(MANIFEST, OTHER), renamed, None):
        with pytest.raises(ConfigError):
            verify_manifest(MANIFEST, bad, OWNER.public_key)


def test_a_signature_made_for_anything_else_is_none_over_a_manifest() -> None:
    other = OWNER.sign("", "roster entry", NO_CONTEXT, MANIFEST)
    assert not ManifestSignature("acme", OWNER.public_key, other).verifies(MANIFEST)


@given(st.binary(max_size=120))
def test_arbitrary_bytes_are_no_signature_file(data: bytes) -> None:
    with pytest.raises(ConfigError):
        ManifestSignature.decode(data)


@pytest.mark.parametrize(
    "value",
    [None, [], {}, {"owner": "x"}, {"owner": "", "public_key": "00" * 32, "signature": "00" * 64},
     {"owner": "x", "public_key": "00", "signature": "00" * 64},
     {"owner": "x", "public_key": "0G" * 32, "signature": "00" * 64},
     {"owner": "x", "public_key": 5, "signature": "00" * 64},
     {"owner": "x\n", "public_key": "00" * 32, "signature": "00" * 64},
     {"owner": "x", "public_key": "00" * 32, "signature": "00" * 64, "more": 1}],
)  # fmt: skip
def test_other_json_is_no_signature_file(value: object) -> None:
    with pytest.raises(ConfigError):
        ManifestSignature.decode(json.dumps(value).encode())


def test_a_folder_is_read_as_it_was_signed(tmp_path: Path) -> None:
    written = package(tmp_path)
    for key in (None, OWNER.public_key):
        for digest in (None, written.manifest.digest):
            assert read_signed_folder(tmp_path, key, digest) == written
    assert written.names == {"model.safetensors", "config.json"}


def test_pins_that_do_not_hold_are_refused_with_both_values(tmp_path: Path) -> None:
    package(tmp_path)
    with pytest.raises(ConfigError, match=OTHER.public_key.hex()):
        read_signed_folder(tmp_path, OTHER.public_key, None)
    with pytest.raises(ConfigError, match="00" * 32):
        read_signed_folder(tmp_path, OWNER.public_key, bytes(32))


def test_an_unsigned_folder_is_read_only_where_no_key_is_pinned(tmp_path: Path) -> None:
    written = package(tmp_path, None)
    assert read_signed_folder(tmp_path, None, None) == written
    assert written.signature is None
    with pytest.raises(ConfigError, match="not signed"):
        read_signed_folder(tmp_path, OWNER.public_key, None)


def test_a_signature_cannot_be_dropped_or_promised_falsely(tmp_path: Path) -> None:
    package(tmp_path)
    (tmp_path / SIGNATURE_FILE).unlink()
    with pytest.raises(ConfigError, match="signed = True"):
        read_signed_folder(tmp_path, None, None)
    for identity in (OWNER, None):
        with pytest.raises(ConfigError, match="signed"):
            write_signed_folder(tmp_path, {"signed": identity is None}, identity)


def test_what_lies_beside_a_package_is_named_by_the_reader(tmp_path: Path) -> None:
    package(tmp_path)
    (tmp_path / "audit.json").write_text("{}")
    read_signed_folder(tmp_path, None, None, beside={"audit.json"})
    with pytest.raises(ConfigError, match=r"does not name: \['audit.json'\]"):
        read_signed_folder(tmp_path, None, None)


def replaced(name: str, data: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return apply


def linked(folder: Path) -> None:
    data = (folder / "config.json").read_bytes()
    (folder / "config.json").unlink()
    (folder.parent / "elsewhere.json").write_bytes(data)
    os.symlink(folder.parent / "elsewhere.json", folder / "config.json")


def resigned(folder: Path) -> None:
    manifest = (folder / MANIFEST_FILE).read_bytes()
    signature = sign_manifest(manifest, OWNER)
    broken = ManifestSignature("acme", OWNER.public_key, signature.signature[::-1])
    (folder / SIGNATURE_FILE).write_bytes(broken.encode())


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "a byte changed": (replaced("model.safetensors", b"weightS" * 100), "is not the file"),
    "cut off": (replaced("model.safetensors", b"weights"), "has 7 bytes"),
    "a file more": (replaced("extra.json", b"{}"), r"does not name: \['extra.json'\]"),
    "a pickle": (replaced("extra.pkl", b"{}"), "does not name"),
    "a file less": (lambda f: (f / "config.json").unlink(), r"missing: \['config.json'\]"),
    "a folder": (lambda f: (f / "sub").mkdir(), "no plain file"),
    "a link": (linked, "no plain file"),
    "no manifest": (lambda f: (f / MANIFEST_FILE).unlink(), "is it a package"),
    "a manifest too long": (replaced(MANIFEST_FILE, b" " * ((1 << 20) + 1)), "above"),
    "another manifest": (replaced(MANIFEST_FILE, MANIFEST), "not over this manifest"),
    "no signature": (replaced(SIGNATURE_FILE, b"{}"), "not the JSON of a signature"),
    "a signature too long": (replaced(SIGNATURE_FILE, b" " * 5000), "above"),
    "a wrong signature": (resigned, "not over this manifest"),
}


@pytest.mark.parametrize("case", SPOILT)
@pytest.mark.parametrize("pinned", [True, False])
def test_a_spoilt_folder_is_refused(case: str, pinned: bool, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    package(folder)
    spoil, said = SPOILT[case]
    spoil(folder)
    with pytest.raises(ConfigError, match=said):
        read_signed_folder(folder, OWNER.public_key if pinned else None, None)


def test_a_folder_that_is_not_there_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        read_signed_folder(tmp_path / "nowhere", None, None)


def test_a_manifest_may_not_name_itself_or_its_signature(tmp_path: Path) -> None:
    package(tmp_path, None)
    contents = {"config.json": b"{}", "manifest.sig.json": b""}
    forged = Manifest.of(contents, {"signed": False}).encode()
    (tmp_path / MANIFEST_FILE).write_bytes(forged)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="names and are missing"):
        read_signed_folder(tmp_path, None, None)
