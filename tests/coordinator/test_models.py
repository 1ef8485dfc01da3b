"""Publishing and downloading model versions: stored is what the manifest says, or nothing."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from secagg.errors import ConfigError
from secagg_wire import refusals
from secagg_wire.codec import signature_from_wire, signature_to_wire
from secagg_wire.limits import PIECE_BYTES
from secagg_wire.manifest import Manifest
from secagg_wire.signed_manifest import ManifestSignature, sign_manifest
from secagg_wire.v1 import model_service_pb2 as model_pb
from secagg_wire.v1 import owner_service_pb2 as owner_pb
from tests.coordinator.federation import (
    CALL_S,
    Enrolled,
    Federation,
    answer_of,
    federation,
    refusal,
)

Pieces = list[owner_pb.PublishVersionRequest]


def safetensors(payload: bytes) -> bytes:
    header = json.dumps(
        {"w": {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}}
    ).encode()
    return len(header).to_bytes(8, "little") + header + payload


FILES = {
    "adapter.safetensors": safetensors(bytes(range(256)) * 9000),
    "config.json": b'{"rank": 8}',
    "empty.txt": b"",
}


def publication(files: dict[str, bytes], meta: dict[str, Any] | None = None) -> Pieces:
    manifest = Manifest.of(files, meta)
    parts = [owner_pb.PublishVersionRequest(manifest=manifest.encode())]
    for name in sorted(files):
        parts += [piece(name, offset, data) for offset, data in cut(files[name])]
    return parts


def cut(data: bytes) -> Iterator[tuple[int, bytes]]:
    for offset in range(0, len(data), PIECE_BYTES):
        yield offset, data[offset : offset + PIECE_BYTES]


def piece(name: str, offset: int, payload: bytes) -> owner_pb.PublishVersionRequest:
    part = owner_pb.FilePiece(name=name, offset=offset, payload=payload)
    return owner_pb.PublishVersionRequest(piece=part)


async def publish(running: Federation, parts: Sequence[owner_pb.PublishVersionRequest]) -> Any:
    owner = running.owner()
    return await answer_of(lambda: owner.PublishVersion(iter(parts), timeout=CALL_S))


async def download(running: Federation, party: str, name: str, offset: int = 0) -> bytes:
    request = model_pb.DownloadFileRequest(name=name, offset=offset)
    stream = running.models(party).DownloadFile(request, timeout=CALL_S)
    return b"".join([part.payload async for part in stream])


def test_what_was_published_is_what_tenants_download(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            parts = publication(FILES, {"round": 0})
            reply = await publish(running, parts)
            assert reply.version == 1
            models = running.models("ada")
            got = await models.GetVersion(model_pb.GetVersionRequest(), timeout=CALL_S)
            assert got.manifest == parts[0].manifest
            manifest = Manifest.decode(got.manifest)
            assert manifest.digest == got.summary.manifest_sha256 == reply.manifest_sha256
            for name, data in FILES.items():
                assert await download(running, "ada", name) == data
            tail = await download(running, "bob", "adapter.safetensors", 1_500_000)
            assert tail == FILES["adapter.safetensors"][1_500_000:]

    asyncio.run(scenario())


def test_the_same_version_again_keeps_its_number_and_the_next_one_gets_the_next(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            for _ in range(2):
                assert (await publish(running, publication(FILES, {"round": 0}))).version == 1
            assert (await publish(running, publication(FILES, {"round": 1}))).version == 2
            versions = (
                await running.models("ada").ListVersions(
                    model_pb.ListVersionsRequest(), timeout=CALL_S
                )
            ).versions
            assert [v.version for v in versions] == [1, 2]
        async with federation(enrolled, tmp_path) as running:
            assert await download(running, "ada", "config.json") == FILES["config.json"]

    asyncio.run(scenario())


def test_every_tenant_hears_of_a_new_version(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            from secagg_wire.v1 import round_service_pb2 as pb

            stream = running.rounds_of("eve").WatchRounds(
                pb.WatchRoundsRequest(tenant="eve"), timeout=CALL_S
            )
            reply = await publish(running, publication(FILES))
            event = (await stream.read()).version_published
            assert (event.version, event.manifest_sha256) == (1, reply.manifest_sha256)
            stream.cancel()

    asyncio.run(scenario())


def test_a_round_is_opened_on_the_version_whose_manifest_its_plan_names(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            reply = await publish(running, publication(FILES))
            plan = enrolled.plan(20)
            error = await refusal(running.open(plan, version=reply.version))
            assert type(error) is refusals.InvalidRequest
            plan = plan.next_round(1, model_digest=reply.manifest_sha256)
            status = await running.status(await running.open(plan, version=reply.version))
            assert status.adapter_version == reply.version

    asyncio.run(scenario())


def spoil_first_file(parts: Pieces) -> Pieces:
    bad = bytes(len(parts[1].piece.payload))
    return [parts[0], piece(parts[1].piece.name, 0, bad), *parts[2:]]


def signed(parts: Pieces, signature: ManifestSignature) -> Pieces:
    first = owner_pb.PublishVersionRequest(
        manifest=parts[0].manifest, signature=signature_to_wire(signature)
    )
    return [first, *parts[1:]]


async def signature_of(running: Federation) -> ManifestSignature | None:
    answer = await running.models("ada").GetVersion(model_pb.GetVersionRequest(), timeout=CALL_S)
    return signature_from_wire(answer.signature) if answer.HasField("signature") else None


def test_a_signature_travels_with_its_manifest_and_may_come_later(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            parts = publication(FILES)
            signature = sign_manifest(parts[0].manifest, enrolled.keys["ona"].identity())
            assert (await publish(running, parts)).version == 1
            assert await signature_of(running) is None
            assert (await publish(running, signed(parts, signature))).version == 1
            assert await signature_of(running) == signature
            assert (await publish(running, parts)).version == 1
        async with federation(enrolled, tmp_path) as running:
            assert await signature_of(running) == signature
            other = publication(FILES, {"round": 1})
            fresh = sign_manifest(other[0].manifest, enrolled.keys["ona"].identity())
            assert (await publish(running, signed(other, fresh))).version == 2
            assert await signature_of(running) == fresh

    asyncio.run(scenario())


def test_a_signature_over_something_else_is_refused_at_publication(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            parts = publication(FILES)
            wrong = sign_manifest(b"another manifest", enrolled.keys["ona"].identity())
            for _ in range(2):  # as a new version, and over one that is there
                error = await refusal(publish(running, signed(parts, wrong)))
                assert type(error) is refusals.InvalidRequest
                await publish(running, parts)
            assert await signature_of(running) is None
            short = owner_pb.PublishVersionRequest(manifest=parts[0].manifest)
            short.signature.owner = "ona"
            error = await refusal(publish(running, [short, *parts[1:]]))
            assert type(error) is refusals.InvalidRequest

    asyncio.run(scenario())


SPOILT: dict[str, tuple[Callable[[Pieces], Pieces], Any]] = {
    "nothing at all": (lambda parts: [], refusals.InvalidRequest),
    "no manifest": (lambda parts: parts[1:], refusals.InvalidRequest),
    "manifest twice": (lambda parts: [parts[0], *parts], refusals.InvalidRequest),
    "other bytes": (spoil_first_file, refusals.DigestMismatch),
    "a file is missing": (lambda parts: parts[:-1], refusals.InvalidRequest),
    "a piece is missing": (lambda parts: [parts[0], *parts[2:]], refusals.OffsetMismatch),
    "a piece comes twice": (
        lambda parts: [parts[0], parts[1], parts[1]],
        refusals.OffsetMismatch,
    ),
    "files interleave": (
        lambda parts: [parts[0], parts[1], parts[-1]],
        refusals.InvalidRequest,
    ),
    "a file comes twice": (lambda parts: [*parts, parts[-1]], refusals.InvalidRequest),
    "over-long": (
        lambda parts: [parts[0], piece("config.json", 0, b"x" * 99)],
        refusals.InvalidRequest,
    ),
    "a stranger's file": (
        lambda parts: [parts[0], piece("../x", 0, b"x")],
        refusals.InvalidRequest,
    ),
    "piece too large": (
        lambda parts: [parts[0], piece("adapter.safetensors", 0, bytes(PIECE_BYTES + 1))],
        refusals.InvalidRequest,
    ),
    "no manifest's bytes": (
        lambda parts: [owner_pb.PublishVersionRequest(manifest=b"{}")],
        ConfigError,
    ),
}


def test_a_spoilt_publication_leaves_nothing(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            for what, (spoil, kind) in SPOILT.items():
                error = await refusal(publish(running, spoil(publication(FILES))))
                assert type(error) is kind, (what, error)
            request = model_pb.GetVersionRequest()
            error = await refusal(running.models("ada").GetVersion(request, timeout=CALL_S))
            assert type(error) is refusals.UnknownVersion
            assert error.__notes__ == [grpc.StatusCode.NOT_FOUND.name]
            models = tmp_path / "data" / "models"
            assert [path for path in models.rglob("*") if path.is_file()] == []
            assert (await publish(running, publication(FILES))).version == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80\x04pickle", (1 << 40).to_bytes(8, "little") + b"{}", safetensors(b"abc") + b"x"],
    ids=["empty", "pickle", "endless header", "longer than its header says"],
)
def test_what_is_no_safetensors_file_is_refused_under_that_name(
    enrolled: Enrolled, tmp_path: Path, data: bytes
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            call = publish(running, publication({"w.safetensors": data}))
            assert type(await refusal(call)) is refusals.InvalidRequest

    asyncio.run(scenario())


def test_a_version_beyond_the_quota_is_refused(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path, limits={"model_bytes": 1000}) as running:
            error = await refusal(publish(running, publication(FILES)))
            assert type(error) is refusals.QuotaExceeded

    asyncio.run(scenario())


def test_downloads_of_what_is_not_there_are_refused(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            await publish(running, publication(FILES))
            for request, kind in (
                (model_pb.DownloadFileRequest(name="none.json"), refusals.UnknownVersion),
                (model_pb.DownloadFileRequest(name="../../x.json"), refusals.UnknownVersion),
                (
                    model_pb.DownloadFileRequest(name="config.json", version=9),
                    refusals.UnknownVersion,
                ),
                (
                    model_pb.DownloadFileRequest(name="config.json", offset=99),
                    refusals.OffsetMismatch,
                ),
            ):
                call = running.models("ada").DownloadFile(request, timeout=CALL_S)
                assert type(await refusal(call)) is kind

    asyncio.run(scenario())
