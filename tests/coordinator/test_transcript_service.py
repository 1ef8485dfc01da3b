"""TranscriptService: what an opened round stands on, for those who may read it, and no others."""

import asyncio
import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from secagg import merkle
from secagg.plan import RoundPlan
from secagg.recompute import recompute, sum_path, sum_root
from secagg.scheme import leaf_places
from secagg.transcript import verify_transcript
from secagg_coordinator import audit_paths
from secagg_coordinator.cli import main
from secagg_wire import refusals
from secagg_wire.limits import LEAVES_PER_REQUEST
from secagg_wire.manifest import Origin
from secagg_wire.v1 import owner_service_pb2 as owner_pb
from secagg_wire.v1 import round_pb2
from secagg_wire.v1 import transcript_service_pb2 as pb
from secagg_wire.v1 import transcript_service_pb2_grpc as transcript_grpc
from tests.coordinator.federation import (
    CALL_S,
    STRANGER,
    TENANTS,
    Enrolled,
    Federation,
    federation,
    refusal,
)
from tests.coordinator.recomputing import finished_round, with_round
from tests.coordinator.test_cli import configuration


def stub(running: Federation, party: str) -> Any:
    return transcript_grpc.TranscriptServiceStub(running.channel(party))


async def transcript_of(running: Federation, party: str, context: bytes) -> tuple[Any, bytes]:
    call = stub(running, party).ReadTranscript(
        pb.ReadTranscriptRequest(context=context), timeout=CALL_S
    )
    parts = [part async for part in call]
    assert [part.WhichOneof("part") for part in parts[:2]] == ["header", "payload"]
    return parts[0].header, b"".join(part.payload for part in parts[1:])


def read_leaves(running: Federation, party: str, context: bytes, numbers: Any) -> Any:
    request = pb.ReadLeavesRequest(context=context, numbers=numbers)
    return stub(running, party).ReadLeaves(request, timeout=CALL_S)


class Kept:
    """Leaves as they came over the wire, as `secagg.recompute.Uploads`."""

    def __init__(self, answers: list[Any]) -> None:
        self.leaves = {(a.upload.tenant, a.number): a.upload for a in answers}

    def leaf(self, participant: str, number: int) -> tuple[bytes, tuple[bytes, ...]]:
        upload = self.leaves[participant, number]
        return upload.payload, tuple(upload.path.hashes)


async def level_sum(running: Federation, context: bytes) -> tuple[Any, np.ndarray]:
    call = running.owner().DownloadSum(owner_pb.DownloadSumRequest(context=context), timeout=CALL_S)
    parts = [part async for part in call]
    data = b"".join(part.payload for part in parts[1:])
    return parts[0].header, np.frombuffer(data, "<i8").astype(np.int64)


def test_members_and_owner_read_all_that_recomputes_the_announced_sum(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario(running: Federation, plan: RoundPlan, claim: Origin) -> None:
        header, opened = await level_sum(running, claim.context)
        root = sum_root(plan, opened, header.total_weight)
        assert root == claim.sum_root == header.sum_root
        status = await running.status(claim.context)
        assert (status.sum_root, status.transcript_sha256) == (root, claim.transcript_sha256)
        for party in ("eve", "ona"):
            shown, transcript = await transcript_of(running, party, claim.context)
            assert (shown.plan, shown.size) == (plan.encode(), len(transcript))
            assert shown.sha256 == hashlib.sha256(transcript).digest() == claim.transcript_sha256
            assert shown.sum_root == root
            verified = verify_transcript(transcript, enrolled.roster)
            numbers = range(len(leaf_places(plan)))
            answers = [a async for a in read_leaves(running, party, claim.context, numbers)]
            assert [(a.number, a.WhichOneof("part")) for a in answers] == [
                (number, part) for number in numbers for part in ["upload"] * 5 + ["claimed"]
            ]
            leaves = list(recompute(verified, Kept(answers)))
            parts = [leaf.values for leaf in leaves if leaf.place.vector == 0]
            np.testing.assert_array_equal(np.concatenate(parts), opened)
            assert merkle.root([leaf.digest for leaf in leaves]) == root
            for answer in answers[5::6]:
                path = sum_path(plan, opened, header.total_weight, answer.number)
                assert tuple(answer.claimed.hashes) == path

    with_round(enrolled, tmp_path, scenario)


def test_who_is_not_in_the_cohort_gets_nothing(enrolled: Enrolled, tmp_path: Path) -> None:
    async def whole() -> None:
        async with federation(enrolled, tmp_path) as running:
            plan = enrolled.plan(100, cohort=TENANTS[1:])
            claim = await finished_round(running, plan, TENANTS[1:])
            for party in ("ada", STRANGER):
                for call in (
                    stub(running, party).ReadTranscript(
                        pb.ReadTranscriptRequest(context=claim.context), timeout=CALL_S
                    ),
                    read_leaves(running, party, claim.context, [0]),
                ):
                    error = await refusal(call)
                    assert type(error) is refusals.UnknownTenant, party
                    assert error.__notes__ == [grpc.StatusCode.PERMISSION_DENIED.name]

    asyncio.run(whole())


def test_running_aborted_and_unknown_rounds_have_nothing_to_recompute(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def whole() -> None:
        async with federation(enrolled, tmp_path) as running:
            context = await running.open(enrolled.plan(100))
            assert type(await refusal(read_leaves(running, "ada", context, [0]))) is (
                refusals.WrongStep
            )
            await running.owner().AbortRound(
                owner_pb.AbortRoundRequest(context=context, reason="x"), timeout=CALL_S
            )
            status = await running.ended(context)
            assert status.outcome == round_pb2.ROUND_OUTCOME_ABORTED
            assert status.sum_root == b""
            error = await refusal(read_leaves(running, "ada", context, [0]))
            assert type(error) is refusals.WrongStep
            assert "aborted" in str(error)
            for wrong, kind in (
                (bytes(32), refusals.UnknownRound),
                (b"short", refusals.InvalidRequest),
            ):
                assert type(await refusal(read_leaves(running, "ada", wrong, [0]))) is kind

    asyncio.run(whole())


def test_requests_are_bounded(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario(running: Federation, plan: RoundPlan, claim: Origin) -> None:
        leaves = len(leaf_places(plan))
        for numbers in (
            [], [leaves], [0, 0], [1, 0], list(range(LEAVES_PER_REQUEST + 1)), [(1 << 32) - 1]
        ):  # fmt: skip
            error = await refusal(read_leaves(running, "ada", claim.context, numbers))
            assert type(error) is refusals.InvalidRequest, numbers
        request = pb.ReadTranscriptRequest(context=claim.context, offset=1 << 40)
        error = await refusal(stub(running, "ada").ReadTranscript(request, timeout=CALL_S))
        assert type(error) is refusals.OffsetMismatch

    with_round(enrolled, tmp_path, scenario)


def test_a_newer_stream_of_a_caller_ends_its_older_one(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario(running: Federation, plan: RoundPlan, claim: Origin) -> None:
        older = read_leaves(running, "ada", claim.context, range(len(leaf_places(plan))))
        await older.read()
        newer = read_leaves(running, "ada", claim.context, [0])
        assert len([answer async for answer in newer]) == 6
        others = read_leaves(running, "bob", claim.context, [0])
        assert len([answer async for answer in others]) == 6
        with suppress(grpc.aio.AioRpcError):
            while await older.read() is not grpc.aio.EOF:
                pass
        # What the transport had taken before still comes: that may have been all of it.
        assert await older.code() in (grpc.StatusCode.ABORTED, grpc.StatusCode.OK)

    with_round(enrolled, tmp_path, scenario)


def test_after_retention_the_uploads_are_gone_in_words_and_the_spool_has_its_room_back(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario(running: Federation, plan: RoundPlan, claim: Origin) -> None:
        answers = [a async for a in read_leaves(running, "ada", claim.context, [0])]
        assert len(answers) == 6
        rounds = tmp_path / "data/rounds" / claim.context.hex()
        assert sorted(path.name for path in (rounds / "upload-paths").iterdir()) == list(TENANTS)
        running.coordinator.rounds.purge_uploads()
        assert not (rounds / "upload-paths").exists()
        assert running.coordinator.rounds._quota._used == 0
        error = await refusal(read_leaves(running, "ada", claim.context, [0]))
        assert type(error) is refusals.NoLongerKept
        assert error.__notes__ == [grpc.StatusCode.NOT_FOUND.name]
        _, transcript = await transcript_of(running, "ada", claim.context)
        assert transcript

    with_round(enrolled, tmp_path, scenario, retention={"hours": 0})


def test_what_was_announced_outlives_a_restart(enrolled: Enrolled, tmp_path: Path) -> None:
    async def whole() -> None:
        async with federation(enrolled, tmp_path) as running:
            claim = await finished_round(running, enrolled.plan(100))
        async with federation(enrolled, tmp_path) as running:
            assert (await running.status(claim.context)).sum_root == claim.sum_root
            header, _ = await transcript_of(running, "ada", claim.context)
            assert header.sum_root == claim.sum_root
            answers = [a async for a in read_leaves(running, "ada", claim.context, [0, 1])]
            assert len(answers) == 12

    asyncio.run(whole())


def test_the_operator_sees_what_sum_was_announced(
    enrolled: Enrolled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario(running: Federation, plan: RoundPlan, claim: Origin) -> None:
        config = configuration(enrolled, tmp_path)
        assert main(["round", "show", "1", "--config", str(config), "--format", "json"]) == 0
        status = json.loads(capsys.readouterr().out)
        assert status["sum_root"] == claim.sum_root.hex()
        assert status["transcript_sha256"] == claim.transcript_sha256.hex()
        assert main(["round", "show", "1", "--config", str(config)]) == 0
        assert claim.sum_root.hex() in capsys.readouterr().out

    with_round(enrolled, tmp_path, scenario)


@pytest.mark.parametrize("leaves", [1, 2, 3, 4, 5, 8, 9, 17])
def test_audit_paths_come_back_as_they_were_written(tmp_path: Path, leaves: int) -> None:
    hashes = [merkle.leaf_hash(bytes([number])) for number in range(leaves)]
    root = audit_paths.write(tmp_path / "x.paths", hashes)
    assert root == merkle.root(hashes)
    for number in range(leaves):
        path = audit_paths.read(tmp_path / "x.paths", leaves, number)
        assert path == merkle.path(hashes, number)
    assert [path.name for path in tmp_path.iterdir()] == ["x.paths"]
