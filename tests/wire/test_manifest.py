"""A manifest has one encoding, names plain files, and has no place for what runs when loaded."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg.errors import ConfigError
from secagg_wire.manifest import FORMAT, FileEntry, Manifest, Origin, Rollback

FILES = {"b.json": b"{}", "a.safetensors": b"abc"}


def test_a_manifest_is_read_as_it_was_written() -> None:
    manifest = Manifest.of(FILES, {"round": 3, "note": "é"})
    assert Manifest.decode(manifest.encode()) == manifest
    assert [entry.name for entry in manifest.files] == ["a.safetensors", "b.json"]
    assert manifest.total_size == 5
    assert manifest.entry("b.json") is not None
    assert manifest.entry("c") is None


def test_equal_manifests_have_equal_digests_and_others_do_not() -> None:
    assert Manifest.of(FILES).digest == Manifest.of(dict(reversed(FILES.items()))).digest
    assert Manifest.of(FILES).digest != Manifest.of(FILES, {"round": 1}).digest
    assert Manifest.of(FILES).digest != Manifest.of(FILES | {"b.json": b"{ }"}).digest


@pytest.mark.parametrize(
    "name",
    ["x.pkl", "x.bin", "x.pt", "x", "../x.json", "a/b.json", ".hidden.json", "", "x.json\n",
     "a" * 200 + ".json", "x.SAFETENSORS"],
)  # fmt: skip
def test_paths_and_files_that_run_code_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        FileEntry(name, 1, bytes(32))


def spoilt() -> list[bytes]:
    good = json.loads(Manifest.of(FILES).encode())

    def dump(value: Any, **options: Any) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), **options).encode()

    entry = good["files"]["b.json"]
    return [
        b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000,
        Manifest.of(FILES).encode() + b" ",
        json.dumps(good).encode(),
        dump(good | {"extra": 1}),
        dump(good | {"format": "secagg-model/2"}),
        dump(good | {"files": {}}),
        dump(good | {"files": []}),
        dump(good | {"meta": None}),
        dump(good | {"files": {"b.json": entry | {"size": -1}}}),
        dump(good | {"files": {"b.json": entry | {"size": True}}}),
        dump(good | {"files": {"b.json": entry | {"size": 2.0}}}),
        dump(good | {"files": {"b.json": entry | {"sha256": "AB" * 32}}}),
        dump(good | {"files": {"b.json": entry | {"sha256": 5}}}),
        dump(good | {"files": {"b.json": {"size": 2}}}),
        dump(good | {"files": {"evil.pkl": entry}}),
        dump(good | {"meta": {"x": "y" * (1 << 20)}}),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(len(spoilt())))
def test_anything_else_is_refused_with_one_kind_of_error(number: int) -> None:
    with pytest.raises(ConfigError):
        Manifest.decode(spoilt()[number])


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_with_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(ConfigError):
        Manifest.decode(data)


def test_numbers_without_a_json_form_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        Manifest.of(FILES, {"loss": float("nan")}).encode()
    assert FORMAT == "secagg-model/1"


ORIGIN = Origin(b"\1" * 32, b"\2" * 32, b"\3" * 32)


def test_a_version_made_from_a_sum_names_its_round_in_its_digest() -> None:
    first, made = Manifest.of(FILES), Manifest.of(FILES, origin=ORIGIN)
    other = Manifest.of(FILES, origin=Origin(*[bytes(32)] * 3))
    assert Manifest.decode(made.encode()).origin == ORIGIN
    assert Manifest.decode(first.encode()).origin is None
    assert b"origin" not in first.encode()
    assert len({first.digest, made.digest, other.digest}) == 3


@pytest.mark.parametrize(
    "origin",
    [None, {}, [], "x", {**ORIGIN.to_json(), "more": "00" * 32}, {"context": "00" * 32},
     {**ORIGIN.to_json(), "sum_root": "0" * 63}, {**ORIGIN.to_json(), "sum_root": "0A" * 32},
     {**ORIGIN.to_json(), "sum_root": 7}],
)  # fmt: skip
def test_a_spoilt_origin_is_refused(origin: Any) -> None:
    value = json.loads(Manifest.of(FILES, origin=ORIGIN).encode()) | {"origin": origin}
    with pytest.raises(ConfigError):
        Manifest.decode(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


ROLLBACK = Rollback(restores=b"\4" * 32, undoes=b"\5" * 32)


def test_a_version_that_goes_back_names_both_versions_in_its_digest() -> None:
    manifest = Manifest.of(FILES, origin=ORIGIN)
    back = replace(manifest, rollback=ROLLBACK)
    assert Manifest.decode(back.encode()) == back
    assert Manifest.decode(manifest.encode()).rollback is None
    assert back.digest != manifest.digest
    with pytest.raises(ConfigError, match="two versions"):
        Rollback(b"\4" * 32, b"\4" * 32)


@pytest.mark.parametrize(
    "rollback",
    [None, {}, [], "x", {**ROLLBACK.to_json(), "more": "00" * 32}, {"restores": "00" * 32},
     {**ROLLBACK.to_json(), "undoes": "04" * 32}, {**ROLLBACK.to_json(), "undoes": 7}],
)  # fmt: skip
def test_a_spoilt_rollback_is_refused(rollback: Any) -> None:
    value = json.loads(Manifest.of(FILES).encode()) | {"rollback": rollback}
    with pytest.raises(ConfigError):
        Manifest.decode(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
