"""A sum is recomputed from uploads and released shares; an invented one is found out."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import merkle, transcript_cli
from secagg.errors import (
    ConfigError,
    FaultyParticipant,
    FaultyParticipantOrCoordinator,
    ProtocolError,
    Step,
    UsageError,
)
from secagg.plan import RoundPlan
from secagg.recompute import check_sum, random_leaves, recompute, sum_path, sum_root
from secagg.scheme import leaf_places
from secagg.testing import SeededRandomness, Silence, SimulatedNetwork, cohort, make_round
from secagg.transcript import Verified, verify_transcript

LENGTH = 150_000  # three leaves of 65,536 coordinates


class RoundUploads:
    """The survivors' uploads of a simulated round."""

    def __init__(self, network: SimulatedNetwork) -> None:
        self.places = leaf_places(network.aggregator.plan)
        self.leaves: dict[str, list[bytes]] = {}
        sizes = [place.size for place in self.places]
        for name in network.aggregator.result.survivors:  # type: ignore[union-attr]
            read = network.aggregator._spool.read(name, iter(sizes))
            self.leaves[name] = [bytes(leaf) for leaf in read]

    def leaf(self, participant: str, number: int) -> tuple[bytes, Sequence[bytes]]:
        leaves = self.leaves[participant]
        return leaves[number], merkle.path([merkle.bulk_leaf_hash(one) for one in leaves], number)


def run(suite: str, neighbours: int | None) -> SimulatedNetwork:
    """Dropouts on both sides of their neighbours, so that pads are needed in both directions."""
    n = 6 if neighbours is None else 20
    f = None if neighbours is None else 2
    plan = cohort(n).plan(LENGTH, suite=suite, neighbours=neighbours, max_colluders=f)  # type: ignore[arg-type]
    names = ("t002",) if neighbours is None else ("t002", "t009", "t017")
    network = make_round(
        n, LENGTH, plan=plan, faults=[Silence(name, Step.ACKNOWLEDGE) for name in names]
    )
    assert network.run().result is not None
    return network


ROUNDS = [("x25519", None), ("x25519-mlkem768", None), ("x25519-mlkem768", 12)]


@lru_cache(maxsize=4)
def opened(suite: str, neighbours: int | None) -> tuple[SimulatedNetwork, Verified]:
    network = run(suite, neighbours)
    roster = next(iter(network.tenants.values())).roster
    return network, verify_transcript(network.aggregator.transcript, roster)


@lru_cache(maxsize=1)
def default() -> tuple[SimulatedNetwork, Verified, bytes]:
    network, verified = opened(*ROUNDS[1])
    result = network.aggregator.result
    assert result is not None
    return network, verified, sum_root(verified.plan, result.level_sum, result.total_weight)


@pytest.mark.parametrize(("suite", "neighbours"), ROUNDS)
def test_the_recomputed_sum_is_the_opened_one(suite: str, neighbours: int | None) -> None:
    network, verified = opened(suite, neighbours)
    result = network.aggregator.result
    assert result is not None
    leaves = list(recompute(verified, RoundUploads(network)))
    assert np.array_equal(np.concatenate([one.values for one in leaves[:-1]]), result.level_sum)
    assert leaves[-1].values.tolist() == [result.total_weight]
    root = sum_root(verified.plan, result.level_sum, result.total_weight)
    assert check_sum(verified, RoundUploads(network), root) == len(leaves) == 4


def test_chosen_leaves_are_compared_by_the_paths_of_the_claimed_sum() -> None:
    network, verified, root = default()
    result, plan = network.aggregator.result, verified.plan
    assert result is not None

    def path(number: int) -> Sequence[bytes]:
        return sum_path(plan, result.level_sum, result.total_weight, number)

    assert check_sum(verified, RoundUploads(network), root, path, [1, 3]) == 2
    with pytest.raises(ProtocolError, match="leaf 1 differs") as caught:
        check_sum(verified, RoundUploads(network), root, lambda number: path(0), [1])
    assert caught.value.step is Step.UNMASK


@given(place=st.integers(0, LENGTH), by=st.integers(-(2**40), 2**40).filter(bool))
@settings(max_examples=20, deadline=None)
def test_an_invented_sum_is_refused(place: int, by: int) -> None:
    """C41: one value, or the weight, off by anything at all."""
    network, verified, _ = default()
    result = network.aggregator.result
    assert result is not None
    levels, weight = result.level_sum.copy(), result.total_weight
    if place < LENGTH:
        levels[place] += by
    else:
        weight += by
    root = sum_root(verified.plan, levels, weight)
    number = place // 65_536 if place < LENGTH else 3
    with pytest.raises(ProtocolError, match="claimed sum") as caught:
        check_sum(
            verified,
            RoundUploads(network),
            root,
            lambda leaf: sum_path(verified.plan, levels, weight, leaf),
            [number],
        )
    assert caught.value.step is Step.UNMASK


def test_a_wholly_recomputed_sum_needs_no_paths_and_refuses_an_invented_one() -> None:
    """C41."""
    network, verified, _ = default()
    with pytest.raises(ProtocolError, match="claimed sum") as caught:
        check_sum(verified, RoundUploads(network), bytes(32))
    assert caught.value.step is Step.UNMASK


@pytest.mark.parametrize("number", range(4))
def test_an_upload_that_its_participant_did_not_sign_is_refused(number: int) -> None:
    """C40: one bit, a byte less, a byte more, another participant's leaf."""
    network, verified, root = default()
    for spoil in (
        lambda leaf: bytes([leaf[0] ^ 1, *leaf[1:]]),
        lambda leaf: leaf[:-1],
        lambda leaf: leaf + b"\0",
    ):
        uploads = RoundUploads(network)
        uploads.leaves["t003"][number] = spoil(uploads.leaves["t003"][number])
        with pytest.raises(ProtocolError, match="of the upload of 't003'") as caught:
            check_sum(verified, uploads, root)
        assert caught.value.step is Step.MASKED_INPUT
    uploads = RoundUploads(network)
    uploads.leaves["t003"] = uploads.leaves["t004"]
    with pytest.raises(ProtocolError, match="'t003'"):
        check_sum(verified, uploads, root)


def test_a_dealing_that_rebuilds_something_else_is_noticed_when_recomputed() -> None:
    """C26: a transcript's answers are what was dealt, and yet do not open the commitments."""
    network, verified, root = default()
    shares = {dealer: dict(given) for dealer, given in verified.opening.shares.items()}
    holder = next(iter(shares[0]))
    shares[0][holder] = shares[1][holder]
    opening = _changed(verified.opening, shares=shares)
    with pytest.raises(FaultyParticipant, match="'t000'"):
        check_sum(_changed(verified, opening=opening), RoundUploads(network), root)


def test_a_sum_out_of_range_is_refused_when_recomputed() -> None:
    """C27: a survivor signed an upload that no quantiser gives."""
    network, verified, _ = default()
    uploads = RoundUploads(network)
    leaves = uploads.leaves["t003"]
    leaves[0] = bytes(byte ^ 0x80 for byte in leaves[0])
    root = merkle.root([merkle.bulk_leaf_hash(leaf) for leaf in leaves])
    roots = {**verified.roots, "t003": root}
    with pytest.raises(FaultyParticipantOrCoordinator, match="out of range"):
        list(recompute(_changed(verified, roots=roots), uploads, [0]))


def _changed(value, **changes):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return replace(value, **changes)


def test_misuse_is_named() -> None:
    network, verified, root = default()
    with pytest.raises(UsageError, match="leaves 0 to 3"):
        list(recompute(verified, RoundUploads(network), [4]))
    with pytest.raises(UsageError, match="audit paths"):
        check_sum(verified, RoundUploads(network), root, None, [0])
    with pytest.raises(UsageError, match="a sum of 3 values"):
        sum_root(verified.plan, np.zeros(3, np.int64), 1)


def test_random_leaves_are_distinct_and_reach_every_leaf() -> None:
    plan: RoundPlan = default()[1].plan
    draw = SeededRandomness("leaves")
    seen = [random_leaves(plan, 2, draw) for _ in range(64)]
    assert all(low < high for low, high in seen)
    assert {number for pair in seen for number in pair} == {0, 1, 2, 3}


# ---------------------------------------------------------------------- the command


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    network, _, _ = default()
    result = network.aggregator.result
    assert result is not None
    (tmp_path / "upload").mkdir()
    (tmp_path / "transcript").write_bytes(network.aggregator.transcript)
    (tmp_path / "roster").write_bytes(next(iter(network.tenants.values())).roster.encode())
    for name, leaves in RoundUploads(network).leaves.items():
        (tmp_path / "upload" / f"{name}.bin").write_bytes(b"".join(leaves))
    np.save(tmp_path / "sum.npy", result.level_sum)
    (tmp_path / "sum.bin").write_bytes(result.level_sum.astype("<i8").tobytes())
    return tmp_path


def command(at: Path, *more: str) -> int:
    return transcript_cli.main(
        [str(at / "transcript"), "--roster", str(at / "roster"), "--format", "json", *more]
    )


@pytest.mark.parametrize("name", ["sum.npy", "sum.bin"])
def test_the_command_recomputes_and_compares_the_sum(
    stored: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = stored / "again.npy"
    uploads = ["--uploads", str(stored / "upload")]
    assert command(stored, *uploads, "--sum", str(stored / name), "--out", str(out)) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["sum_recomputed"] == "whole"
    assert facts["sum_compared"] is True
    assert np.array_equal(np.load(out), np.load(stored / "sum.npy"))
    assert command(stored, *uploads, "--sum", str(stored / name), "--leaves", "2") == 0
    assert json.loads(capsys.readouterr().out)["sum_recomputed"] == "2 random leaves"


def test_the_command_names_the_step_of_an_invented_sum(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """C41."""
    levels = np.load(stored / "sum.npy")
    levels[70_000] += 1
    np.save(stored / "sum.npy", levels)
    uploads = ["--uploads", str(stored / "upload")]
    assert command(stored, *uploads, "--sum", str(stored / "sum.npy")) == 4
    assert "in unmask: the claimed sum is not that of the uploads" in capsys.readouterr().err


def test_the_command_names_the_step_of_a_changed_missing_or_longer_upload(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """C40."""
    upload = stored / "upload" / "t004.bin"
    data = upload.read_bytes()
    for spoilt in (data[:-1], data + b"\0", bytes([data[0] ^ 1]) + data[1:]):
        upload.write_bytes(spoilt)
        assert command(stored, "--uploads", str(stored / "upload")) == 4
        assert "in masked_input" in capsys.readouterr().err
    upload.unlink()
    with pytest.raises(ConfigError, match=r"t004\.bin.*give every survivor's upload"):
        command(stored, "--uploads", str(stored / "upload"))


def test_the_command_refuses_options_that_do_not_go_together(stored: Path) -> None:
    with pytest.raises(ConfigError, match="give --uploads"):
        command(stored, "--sum", str(stored / "sum.npy"))
    uploads = ["--uploads", str(stored / "upload")]
    with pytest.raises(ConfigError, match="leave --leaves away"):
        command(stored, *uploads, "--leaves", "1", "--out", "x.npy")
    for name, content in (("short.bin", bytes(16)), ("text.npy", b"no array")):
        (stored / name).write_bytes(content)
        with pytest.raises(ConfigError, match="is no sum"):
            command(stored, *uploads, "--sum", str(stored / name))
