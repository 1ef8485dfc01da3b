"""A tenant that pins its owner's key takes that owner's versions alone, and only it goes back."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from secagg.identity import Identity, IdentitySeed
from secagg_tenant.store import read_report
from secagg_wire.manifest import Origin, Rollback
from secagg_wire.v1 import round_pb2
from tests.coordinator.federation import TENANTS, Enrolled, Federation, federation
from tests.coordinator.recomputing import claim_of, publish
from tests.tenant.running import Node, config_of, joined
from tests.tenant.test_admission import round_on, versions_of


def owner_of(enrolled: Enrolled) -> Identity:
    return enrolled.keys["ona"].identity()


async def pinning(
    stack: AsyncExitStack, running: Federation, data: Path, *, without: str = "", **policy: Any
) -> dict[str, Node]:
    """Every tenant, pinning the owner's key (except `without`)."""
    nodes = {}
    for name in TENANTS:
        config = config_of(running, name, data, policy=policy)
        if name != without:
            key = owner_of(running.enrolled).public_key.hex()
            pinned = config.model.model_copy(update={"owner_key": key})
            config = config.model_copy(update={"model": pinned})
        nodes[name] = await stack.enter_async_context(joined(running, config))
    return nodes


def audited(node: Node, event: str) -> list[Any]:
    report = read_report(node.tenant.config.data / "tenant.sqlite")
    return [row for row in report["audit"] if row["event"] == event]


@pytest.mark.parametrize("signer", ["nobody", "mallory"])
def test_a_version_that_the_pinned_owner_did_not_sign_is_refused_and_audited(
    enrolled: Enrolled, tmp_path: Path, signer: str
) -> None:
    other = Identity("ona", IdentitySeed(bytes(range(32)))) if signer == "mallory" else None

    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running, AsyncExitStack() as stack:
            nodes = await pinning(stack, running, tmp_path, without="ada")
            status = await round_on(running, 1, await publish(running, 1, signer=other))
            assert status.outcome == round_pb2.ROUND_OUTCOME_ABORTED
            for name, node in nodes.items():
                if name == "ada":
                    continue
                assert (await node.until("plan_refused"))["clause"] == "owner_key"
                assert audited(node, "version_refused")
                assert versions_of(node) == []
            assert versions_of(nodes["ada"]) == ["beginning"]

    asyncio.run(scenario())


def test_the_pinned_owners_versions_are_trained_and_stay_good_after_a_restart(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            async with AsyncExitStack() as stack:
                await pinning(stack, running, tmp_path)
                version = await publish(running, 1, signer=owner_of(enrolled))
                status = await round_on(running, 1, version)
                assert list(status.survivors) == list(TENANTS)
            async with AsyncExitStack() as stack:
                nodes = await pinning(stack, running, tmp_path)
                status = await round_on(running, 2, version)
                assert list(status.survivors) == list(TENANTS)
                assert versions_of(nodes["ada"]) == ["beginning"]

    asyncio.run(scenario())


def test_who_pins_a_key_later_asks_for_the_signature_of_what_it_had_accepted(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            async with AsyncExitStack() as stack:
                for name in TENANTS:
                    config = config_of(running, name, tmp_path)
                    node = await stack.enter_async_context(joined(running, config))
                version = await publish(running, 1)
                await node.until("version_evaluated")
            async with AsyncExitStack() as stack:
                nodes = await pinning(stack, running, tmp_path)
                await round_on(running, 1, version)
                refused = await nodes["eve"].until("plan_refused")
                assert refused["clause"] == "owner_key"
                # The owner signs what it had published before.
                assert await publish(running, 1, signer=owner_of(enrolled)) == version
                status = await round_on(running, 2, version)
                assert list(status.survivors) == list(TENANTS)

    asyncio.run(scenario())


async def two_rounds(
    running: Federation, nodes: dict[str, Node]
) -> tuple[tuple[int, bytes], tuple[int, bytes], Origin]:
    """Versions 1 (a beginning) and 2 (of round 1), and round 2 on the second; both versions and
    round 1's claim."""
    signer = owner_of(running.enrolled)
    first = await publish(running, 1, signer=signer)
    origin = claim_of(await round_on(running, 1, first))
    for node in nodes.values():
        await node.until("round_ended", round=1)
    second = await publish(running, 2, origin, signer=signer)
    await round_on(running, 2, second)
    for node in nodes.values():
        await node.until("round_ended", round=2)
    return first, second, origin


def test_a_signed_rollback_to_an_admitted_version_is_trained_and_rounds_go_on_from_it(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        signer = owner_of(enrolled)
        async with federation(enrolled, tmp_path) as running, AsyncExitStack() as stack:
            nodes = await pinning(stack, running, tmp_path)
            first, second, _ = await two_rounds(running, nodes)
            rollback = Rollback(restores=first[1], undoes=second[1])
            restored = await publish(running, 1, rollback=rollback, signer=signer)
            assert restored[1] != first[1]
            status = await round_on(running, 3, restored)
            assert list(status.survivors) == list(TENANTS)
            for node in nodes.values():
                await node.until("round_ended", round=3)
                assert versions_of(node)[-1] == f"restores {first[1].hex()[:16]}"
                assert len(audited(node, "version_restored")) == 1
            following = await publish(running, 4, claim_of(status), signer=signer)
            status = await round_on(running, 4, following)
            assert list(status.survivors) == list(TENANTS)

    asyncio.run(scenario())


def test_a_rollback_to_a_version_of_a_round_keeps_that_rounds_origin(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        signer = owner_of(enrolled)
        async with federation(enrolled, tmp_path) as running, AsyncExitStack() as stack:
            nodes = await pinning(stack, running, tmp_path)
            _, second, origin = await two_rounds(running, nodes)
            rollback = Rollback(restores=second[1], undoes=bytes(32))
            restored = await publish(running, 2, origin, rollback, signer)
            assert list((await round_on(running, 3, restored)).survivors) == list(TENANTS)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("text", "origin_too", "restores", "words"),
    [
        (3, False, "first", "are not those of version"),
        (2, False, "second", "are not those of version"),
        (1, True, "first", "are not those of version"),
        (1, False, "stranger", "has never admitted"),
    ],
    ids=["other files", "origin left out", "origin added", "a version nobody knows"],
)
def test_a_rollback_that_restores_something_else_is_refused(
    enrolled: Enrolled, tmp_path: Path, text: int, origin_too: bool, restores: str, words: str
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running, AsyncExitStack() as stack:
            nodes = await pinning(stack, running, tmp_path)
            first, second, origin = await two_rounds(running, nodes)
            named = {"first": first[1], "second": second[1], "stranger": bytes(32)}[restores]
            await publish(
                running, text, origin if origin_too else None,
                Rollback(named, undoes=b"u" * 32), owner_of(enrolled),
            )  # fmt: skip
            for node in nodes.values():
                refused = await node.until("version_refused", version=3)
                assert words in refused["reason"]
                assert "policy clause 'rollback'" in refused["reason"]

    asyncio.run(scenario())


def test_without_a_pinned_owner_nobody_goes_back(enrolled: Enrolled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running, AsyncExitStack() as stack:
            nodes = await pinning(stack, running, tmp_path, without="ada")
            first, second, _ = await two_rounds(running, nodes)
            rollback = Rollback(restores=first[1], undoes=second[1])
            await publish(running, 1, rollback=rollback, signer=owner_of(enrolled))
            refused = await nodes["ada"].until("version_refused", version=3)
            assert "set model.owner_key" in refused["reason"]
            await nodes["bob"].until("version_restored")

    asyncio.run(scenario())


def test_a_rollback_to_what_was_admitted_without_recomputation_is_refused(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        signer = owner_of(enrolled)
        async with federation(enrolled, tmp_path) as running:
            async with AsyncExitStack() as stack:
                nodes = await pinning(stack, running, tmp_path, recompute="off")
                first, second, _ = await two_rounds(running, nodes)
            async with AsyncExitStack() as stack:
                nodes = await pinning(stack, running, tmp_path)
                await publish(running, 1, rollback=Rollback(first[1], second[1]), signer=signer)
                refused = await nodes["ada"].until("version_refused", version=3)
                assert "without recomputation" in refused["reason"]

    asyncio.run(scenario())
