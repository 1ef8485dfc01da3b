"""Step 3 over the wire: resumed, spoilt and unkeepable uploads; the round outlives all of them."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import grpc
import pytest

from secagg import merkle
from secagg.errors import MalformedMessage, SecaggError
from secagg.scheme import leaf_places
from secagg_coordinator.spool import DiskSpool, SpoolQuota
from secagg_wire import refusals
from secagg_wire.codec import upload_requests
from secagg_wire.limits import PIECE_BYTES
from secagg_wire.v1 import round_pb2
from secagg_wire.v1 import round_service_pb2 as pb
from tests.coordinator.federation import (
    TENANTS,
    Enrolled,
    Federation,
    Tenant,
    answer_of,
    federation,
    play,
    refusal,
    vectors,
)

LENGTH = 3000
Upload = Callable[[Tenant], Awaitable[bool]]


def run_with(
    enrolled: Enrolled, directory: Path, upload: Upload, *, length: int = LENGTH,
    survivors: tuple[str, ...] = TENANTS, spool: Any = None, **tables: Any,
) -> None:  # fmt: skip
    """A round in which ada uploads in her own way, and which must open over `survivors`."""

    async def whole() -> None:
        async with federation(enrolled, directory, spool=spool, **tables) as running:
            plan, inputs = enrolled.plan(length), vectors(length)
            await running.open(plan)
            tenants = [running.tenant(name, plan, inputs[name]) for name in TENANTS]
            playing = asyncio.create_task(play(tenants, ada=upload))
            if survivors != TENANTS:
                await close_step(running, tenants, survivors)
            await playing
            status = await running.ended(plan.context)
            assert status.outcome == round_pb2.ROUND_OUTCOME_OPENED, status.reason
            assert tuple(status.survivors) == survivors

    asyncio.run(whole())


async def close_step(
    running: Federation, tenants: list[Tenant], survivors: tuple[str, ...]
) -> None:
    for tenant in tenants:
        await (tenant.uploaded if tenant.name in survivors else tenant.refused).wait()
    await running.let_pass(600)


def root_of(ada: Tenant, whole: bytes) -> Callable[[], bytes]:
    """The root over other bytes than those that the participant made."""
    sizes = [place.size for place in leaf_places(ada.participant.plan)]
    ends = list(accumulate(sizes))
    leaves = [whole[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    return lambda: merkle.root([merkle.bulk_leaf_hash(leaf) for leaf in leaves])


WITHOUT_ADA = TENANTS[1:]


def test_a_broken_upload_is_taken_up_where_it_stood(enrolled: Enrolled, tmp_path: Path) -> None:
    async def upload(ada: Tenant) -> bool:
        await ada.announce_upload()
        whole = b"".join(ada.pieces())
        first = pb.UploadInputRequest(context=ada.context, tenant="ada", payload=whole[:1234])
        reply = await ada.send_pieces([first])
        assert reply.committed_size == 1234
        query = await ada.query_upload()
        assert (query.committed_size, query.complete) == (1234, False)
        rest = upload_requests("ada", ada.context, ada.pieces(1234), ada.root, 1234)
        reply = await ada.send_pieces(rest)
        assert reply.committed_size == len(whole)
        query = await ada.query_upload()
        assert (query.committed_size, query.complete) == (len(whole), True)
        await ada.commit_upload()
        return True

    run_with(enrolled, tmp_path, upload)


def test_an_upload_cut_off_in_the_middle_of_its_stream_keeps_what_came(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def upload(ada: Tenant) -> bool:
        await ada.announce_upload()
        whole = b"".join(ada.pieces())
        call = ada.stub.UploadInput()
        await call.write(
            pb.UploadInputRequest(context=ada.context, tenant="ada", payload=whole[:500])
        )
        while (await ada.query_upload()).committed_size < 500:
            pass
        call.cancel()
        await ada.send_pieces(upload_requests("ada", ada.context, ada.pieces(500), ada.root, 500))
        await ada.commit_upload()
        return True

    run_with(enrolled, tmp_path, upload)


def spoilt(ada: Tenant, whole: bytes) -> Iterator[tuple[str, list[pb.UploadInputRequest], Any]]:
    """(what, pieces, error) for uploads that are refused and change nothing."""

    def piece(**fields: Any) -> pb.UploadInputRequest:
        return pb.UploadInputRequest(context=ada.context, tenant="ada", **fields)

    yield "starts late", [piece(offset=5, payload=b"x")], refusals.OffsetMismatch
    yield "beyond the end", [piece(offset=len(whole) + 1)], refusals.OffsetMismatch
    yield "over-long", [piece(payload=whole + b"\0")], MalformedMessage
    yield "piece too large", [piece(payload=bytes(PIECE_BYTES + 1))], refusals.InvalidRequest


def test_spoilt_uploads_are_refused_and_the_right_one_still_counts(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def upload(ada: Tenant) -> bool:
        await ada.announce_upload()
        whole = b"".join(ada.pieces())
        for what, pieces, kind in spoilt(ada, whole):
            error = await refusal(ada.send_pieces(pieces))
            assert type(error) is kind, what
            assert (await ada.query_upload()).committed_size == 0, what
        await ada.send_pieces(upload_requests("ada", ada.context, ada.pieces(), ada.root))
        await ada.commit_upload()
        return True

    run_with(enrolled, tmp_path, upload)


def test_pieces_out_of_order_or_repeated_are_refused(enrolled: Enrolled, tmp_path: Path) -> None:
    async def upload(ada: Tenant) -> bool:
        await ada.announce_upload()
        whole = b"".join(ada.pieces())

        def requests(*offsets: int) -> Iterable[pb.UploadInputRequest]:
            for offset in offsets:
                yield pb.UploadInputRequest(
                    context=ada.context, tenant="ada", offset=offset,
                    payload=whole[offset : offset + 100],
                )  # fmt: skip

        error = await refusal(answer_of(lambda: ada.send_pieces(requests(0, 100, 300, 200))))
        assert type(error) is refusals.OffsetMismatch
        error = await refusal(answer_of(lambda: ada.send_pieces(requests(200, 200))))
        assert type(error) is refusals.OffsetMismatch
        assert (await ada.query_upload()).committed_size == 300
        await ada.send_pieces(upload_requests("ada", ada.context, ada.pieces(300), ada.root, 300))
        await ada.commit_upload()
        return True

    run_with(enrolled, tmp_path, upload)


async def refused_for_good(ada: Tenant, error: SecaggError, kind: type[SecaggError]) -> bool:
    assert type(error) is kind, error
    ada.refused.set()
    return False


def test_a_wrong_digest_is_refused(enrolled: Enrolled, tmp_path: Path) -> None:
    async def upload(ada: Tenant) -> bool:
        await ada.announce_upload()
        *pieces, end = upload_requests("ada", ada.context, ada.pieces(), ada.root)
        last = pb.UploadInputRequest.FromString(end)
        last.digest = bytes(32)
        error = await refusal(ada.send_pieces([*pieces, last]))
        assert not (await ada.query_upload()).complete
        return await refused_for_good(ada, error, refusals.DigestMismatch)

    run_with(enrolled, tmp_path, upload, survivors=WITHOUT_ADA)


def test_bytes_other_than_those_committed_to_cost_only_their_sender(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def upload(ada: Tenant) -> bool:
        await ada.announce_upload()
        whole = bytearray(b"".join(ada.pieces()))
        whole[17] ^= 1
        await ada.send_pieces(
            upload_requests("ada", ada.context, [bytes(whole)], root_of(ada, whole))
        )
        error = await refusal(ada.commit_upload())
        assert "not those committed to" in str(error)
        ada.refused.set()
        return False

    run_with(enrolled, tmp_path, upload, survivors=WITHOUT_ADA)


def test_a_commitment_before_all_bytes_came_is_refused(enrolled: Enrolled, tmp_path: Path) -> None:
    async def upload(ada: Tenant) -> bool:
        await ada.announce_upload()
        whole = b"".join(ada.pieces())
        error = await refusal(ada.commit_upload())
        assert "bytes have arrived" in str(error)
        await ada.send_pieces(upload_requests("ada", ada.context, [whole], ada.root))
        await ada.commit_upload()
        return True

    run_with(enrolled, tmp_path, upload)


def test_an_older_call_ends_when_a_newer_one_takes_over(enrolled: Enrolled, tmp_path: Path) -> None:
    async def upload(ada: Tenant) -> bool:
        await ada.announce_upload()
        whole = b"".join(ada.pieces())
        older = ada.stub.UploadInput()
        await older.write(
            pb.UploadInputRequest(context=ada.context, tenant="ada", payload=whole[:10])
        )
        while (await ada.query_upload()).committed_size < 10:
            pass
        await ada.send_pieces(upload_requests("ada", ada.context, ada.pieces(10), ada.root, 10))
        await older.write(pb.UploadInputRequest(offset=10, payload=whole[10:20]))
        error = await refusal(older)
        assert type(error) is refusals.Superseded
        assert error.__notes__ == [grpc.StatusCode.ABORTED.name]
        await ada.commit_upload()
        return True

    run_with(enrolled, tmp_path, upload)


async def finds_no_room(ada: Tenant) -> bool:
    await ada.announce_upload()
    error = await refusal(
        ada.send_pieces(upload_requests("ada", ada.context, ada.pieces(), ada.root))
    )
    assert error.__notes__ == [grpc.StatusCode.RESOURCE_EXHAUSTED.name]
    return await refused_for_good(ada, error, refusals.QuotaExceeded)


def test_a_full_disk_fails_that_upload_and_the_round_lives(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    spool = DiskSpool(tmp_path / "spool", SpoolQuota(tmp_path / "spool", 1 << 30))
    spool.path("ada").symlink_to("/dev/full")  # every write there fails with ENOSPC
    run_with(enrolled, tmp_path, finds_no_room, survivors=WITHOUT_ADA, spool=spool)


def test_an_upload_goes_on_when_the_operator_has_made_room(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    quota = SpoolQuota(tmp_path / "spool", 1 << 30)

    async def upload(ada: Tenant) -> bool:
        await ada.announce_upload()
        quota.take((1 << 30) - 100)
        error = await refusal(
            ada.send_pieces(upload_requests("ada", ada.context, ada.pieces(), ada.root))
        )
        assert type(error) is refusals.QuotaExceeded
        quota.give_back((1 << 30) - 100)
        await ada.upload_again()
        return True

    spool = DiskSpool(tmp_path / "spool", quota)

    async def patient(tenant: Tenant) -> bool:
        await tenants_turn.wait()
        return await tenant.upload()

    tenants_turn = asyncio.Event()

    async def first(ada: Tenant) -> bool:
        uploaded = await upload(ada)
        tenants_turn.set()
        return uploaded

    async def whole() -> None:
        async with federation(enrolled, tmp_path, spool=spool) as running:
            plan, inputs = enrolled.plan(LENGTH), vectors(LENGTH)
            await running.open(plan)
            tenants = [running.tenant(name, plan, inputs[name]) for name in TENANTS]
            others = dict.fromkeys(WITHOUT_ADA, patient)
            await play(tenants, ada=first, **others)
            assert tuple((await running.ended(plan.context)).survivors) == TENANTS

    asyncio.run(whole())


def test_uploads_beyond_the_bound_wait_their_turn(enrolled: Enrolled, tmp_path: Path) -> None:
    async def upload(ada: Tenant) -> bool:
        return await ada.upload()

    run_with(enrolled, tmp_path, upload, limits={"concurrent_uploads": 1}, length=200_000)


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_a_failed_append_leaves_what_was_committed(tmp_path: Path, size: int) -> None:
    quota = SpoolQuota(tmp_path, 2 * size + 10)
    spool = DiskSpool(tmp_path, quota)
    spool.append("ada", bytes(size))
    with pytest.raises(refusals.QuotaExceeded):
        spool.append("ada", bytes(size + 11))
    assert spool.path("ada").stat().st_size == size
    spool.append("ada", b"\1" * 10)
    assert list(spool.read("ada", [size, 10])) == [bytes(size), b"\1" * 10]
    spool.discard("ada")
    spool.discard("ada")
    quota.take(2 * size + 10)


def test_the_quota_counts_what_an_earlier_process_left(tmp_path: Path) -> None:
    DiskSpool(tmp_path / "round", SpoolQuota(tmp_path, 1000)).append("ada", bytes(900))
    with pytest.raises(refusals.QuotaExceeded):
        SpoolQuota(tmp_path, 1000).take(101)
