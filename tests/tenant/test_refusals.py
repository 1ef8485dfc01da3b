"""What a tenant node refuses, clause by clause, and that it stays well and takes the next plan."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from secagg.errors import ConfigError, PolicyRefused, ProtocolError, UsageError
from secagg_tenant.versions import VersionFiles
from secagg_wire.client import BackOff, Caller, model_service
from secagg_wire.manifest import Manifest
from secagg_wire.refusals import Superseded
from secagg_wire.v1 import owner_service_pb2 as owner_pb
from tests.coordinator.federation import CALL_S, TENANTS, Enrolled, Federation, federation
from tests.tenant.running import all_joined, config_of, joined

CLAUSES: list[tuple[str, Any]] = [
    ("suites", ("x25519",)),
    ("schemes", ()),
    ("max_colluders", 2),
    ("min_survivors", 5),
    ("min_cohort", 6),
    ("min_threshold", 5),
    ("model_digests", ("00" * 32,)),
    ("layout_digests", ("00" * 32,)),
    ("max_clip", 0.5),
    ("max_weight", 99),
    ("max_length", 999),
]


def test_a_plan_outside_the_policy_is_refused_by_its_clause_and_the_round_goes_on(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def refuse(running: Federation, number: int, clause: str, value: Any) -> None:
        strict = config_of(running, "ada", tmp_path, policy={clause: value})
        async with joined(running, strict) as node:
            context = await running.open(enrolled.plan(round_number=number))
            refused = await node.until("plan_refused", round=number)
            assert refused["clause"] == clause
            status = await running.ended(context)
            assert list(status.survivors) == [name for name in TENANTS if name != "ada"]
            (excluded,) = status.excluded
            assert excluded.tenant == "ada"
            assert clause in excluded.reason

    async def scenario() -> None:
        async with (
            federation(enrolled, tmp_path) as running,
            all_joined(running, tmp_path, without=("ada",)),
        ):
            for number, (clause, value) in enumerate(CLAUSES, 1):
                await refuse(running, number, clause, value)

    asyncio.run(scenario())


def test_a_downgraded_suite_and_a_sparse_graph_for_few_are_refused_unless_allowed(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    weaker = {
        "suites": {"suite": "x25519"},
        "complete_up_to": {"neighbours": 4},
        "sparse_corrupt": {"neighbours": 4},
    }
    allowing = {"suites": ("x25519-mlkem768", "x25519"), "complete_up_to": 4}
    strict: dict[str, Any] = {"sparse_corrupt": {"complete_up_to": 4, "sparse_corrupt": 0.5}}

    async def refuse(running: Federation, number: int, clause: str) -> None:
        plan = enrolled.plan(round_number=number, **weaker[clause])
        config = config_of(running, "ada", tmp_path, policy=strict.get(clause, {}))
        async with joined(running, config) as node:
            context = await running.open(plan)
            assert (await node.until("plan_refused", round=number))["clause"] == clause
            assert "ada" not in (await running.ended(context)).survivors

    async def scenario() -> None:
        async with (
            federation(enrolled, tmp_path) as running,
            all_joined(running, tmp_path, without=("ada",), policy=allowing),
        ):
            for number, clause in enumerate(weaker, 1):
                await refuse(running, number, clause)
            async with joined(running, config_of(running, "ada", tmp_path, policy=allowing)):
                for number, clause in enumerate(weaker, 4):
                    plan = enrolled.plan(round_number=number, **weaker[clause])
                    status = await running.ended(await running.open(plan))
                    assert list(status.survivors) == list(TENANTS)

    asyncio.run(scenario())


def test_after_a_refused_plan_the_next_one_is_taken(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            strict = config_of(running, "ada", tmp_path, policy={"max_length": 999})
            async with (
                all_joined(running, tmp_path, without=("ada",)),
                joined(running, strict) as node,
            ):
                await running.ended(await running.open(enrolled.plan(length=1000)))
                await node.until("plan_refused", clause="max_length")
                second = await running.open(enrolled.plan(length=999, round_number=2))
                assert list((await running.ended(second)).survivors) == list(TENANTS)

    asyncio.run(scenario())


def test_a_weight_above_the_plans_cap_is_refused_here(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            heavy = config_of(running, "ada", tmp_path, training={"weight": 101})
            async with joined(running, heavy) as node:
                await running.open(enrolled.plan())
                assert (await node.until("plan_refused"))["clause"] == "training.weight"

    asyncio.run(scenario())


def test_one_identity_runs_in_one_process(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            config = config_of(running, "ada", tmp_path)
            async with joined(running, config), joined(running, config):
                raise AssertionError("the ledger let a second one in")

    with pytest.raises(UsageError, match="in use by process"):
        asyncio.run(scenario())


def test_a_second_session_from_another_machine_ends_the_first_with_its_reason(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            here = config_of(running, "ada", tmp_path / "here")
            there = config_of(running, "ada", tmp_path / "there")
            async with joined(running, here) as first:
                await first.until("connected")
                async with joined(running, there):
                    while not first.session.done():
                        await asyncio.sleep(0)

    with pytest.raises(Superseded):
        asyncio.run(scenario())


def test_a_roster_that_is_not_the_pinned_one_stops_the_node_before_it_connects(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            config = config_of(running, "ada", tmp_path, policy={"roster_digest": "00" * 32})
            async with joined(running, config):
                raise AssertionError("it joined")

    with pytest.raises(ConfigError, match="pins"):
        asyncio.run(scenario())


def test_keys_of_another_role_are_refused(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            config = config_of(running, "ada", tmp_path)
            config = config.model_copy(update={"keys": enrolled.keys["ona"].directory})
            async with joined(running, config):
                raise AssertionError("it joined")

    with pytest.raises(ConfigError, match="not of a tenant"):
        asyncio.run(scenario())


FILES = {
    "adapter.safetensors": save({"lora_A": np.arange(600_000, dtype=np.float32)}),
    "notes.txt": b"hello",
}


async def publish(running: Federation) -> tuple[int, bytes]:
    manifest = Manifest.of(FILES)
    requests = [owner_pb.PublishVersionRequest(manifest=manifest.encode())]
    for entry in manifest.files:
        data = FILES[entry.name]
        for offset in range(0, len(data), 1 << 20):
            piece = owner_pb.FilePiece(
                name=entry.name, offset=offset, payload=data[offset : offset + (1 << 20)]
            )
            requests.append(owner_pb.PublishVersionRequest(piece=piece))
    answer = await running.owner().PublishVersion(iter(requests), timeout=CALL_S)
    return answer.version, manifest.digest


def fetcher(running: Federation, tmp_path: Path) -> Any:
    caller = Caller("the coordinator", back_off=BackOff(0.01, 0.1))
    service = model_service(running.channel("ada"))
    files = VersionFiles(tmp_path / "versions")

    async def fetch(number: int, digest: bytes) -> Any:
        manifest = await files.manifest(caller, service, number, digest)
        return await files.fetch(caller, service, number, manifest)

    return files, fetch


def test_a_version_is_fetched_in_pieces_and_kept(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            number, digest = await publish(running)
            files, fetch = fetcher(running, tmp_path)
            folder = tmp_path / "versions" / digest.hex()
            folder.mkdir(parents=True)
            (folder / "adapter.safetensors.part").write_bytes(FILES["adapter.safetensors"][:1000])
            version = await fetch(number, digest)
            for name, data in FILES.items():
                assert (version.directory / name).read_bytes() == data
            assert files.at_hand(digest) is not None

    asyncio.run(scenario())


def test_another_version_than_the_plans_is_refused(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            number, _ = await publish(running)
            with pytest.raises(PolicyRefused, match="model_digest"):
                await fetcher(running, tmp_path)[1](number, bytes(32))

    asyncio.run(scenario())


def test_a_file_that_is_not_the_manifests_is_refused_and_not_kept(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            number, digest = await publish(running)
            (stored,) = (running.config.data / "models").rglob("adapter.safetensors")
            stored.write_bytes(stored.read_bytes()[:-1] + b"x")
            files, fetch = fetcher(running, tmp_path)
            with pytest.raises(ProtocolError, match="not the file in its manifest"):
                await fetch(number, digest)
            assert files.at_hand(digest) is None
            assert not list((tmp_path / "versions").rglob("adapter.safetensors*"))

    asyncio.run(scenario())
