"""Tenant nodes under scheme `ckks`: rounds that open, a restart in mid upload, a node that lacks
the scheme's packages.
"""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from secagg.errors import ConfigError
from secagg.plan import RoundPlan
from secagg.scheme import leaf_places
from secagg.testing import cohort
from secagg_tenant import round as tenant_round
from secagg_wire.rehearsal import rehearse
from tests.coordinator.federation import TENANTS, Enrolled, federation
from tests.tenant.running import all_joined, config_of, drawn, joined, opened_sum

WITHOUT_ADA = [name for name in TENANTS if name != "ada"]


@pytest.fixture(scope="module", autouse=True)
def compiled_before_any_clock_runs() -> None:
    """The first compilation on a machine takes longer than a call of these tests may."""
    rehearse(cohort(5).plan(8, scheme="ckks"))


def test_nodes_take_part_by_their_default_policy_and_the_sum_is_exact(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        encoded = tmp_path / "encoded"
        tables = {"demonstration": {"encoded_dir": encoded}}
        async with (
            federation(enrolled, tmp_path) as running,
            all_joined(running, tmp_path, **tables),
        ):
            context = await running.open(enrolled.plan(length=3000, scheme="ckks"))
            assert list((await running.ended(context)).survivors) == list(TENANTS)
            files = [np.load(encoded / "round-1" / f"{name}.npy") for name in TENANTS]
            assert np.array_equal(np.sum(files, axis=0), await opened_sum(running, context))

    asyncio.run(scenario())


def test_a_node_stopped_between_two_ciphertexts_sends_the_same_bytes_when_it_is_back(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    """Its ledger compares every ciphertext that it makes again (C34), the coordinator the root."""
    plan = enrolled.plan(length=200_000, scheme="ckks")
    first, *_, last = leaf_places(plan)
    assert last.chunk > 8

    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            slow = config_of(running, "ada", tmp_path, upload={"max_bytes_per_second": 300_000})
            fast = config_of(running, "ada", tmp_path)
            async with all_joined(running, tmp_path, without=("ada",)):
                async with joined(running, slow) as node:
                    context = await running.open(plan)
                    # What was sent last may not have arrived; what was sent before it has.
                    await node.until("upload_progress", sent=6 * first.size)
                async with joined(running, fast) as node:
                    restored = await node.until("round_restored")
                    assert restored["step"] == "masked_input"
                    started = await node.until("upload_started")
                    ciphertexts, rest = divmod(started["offset"], first.size)
                    assert rest == 0
                    assert 5 <= ciphertexts < last.chunk
                    status = await running.ended(context)
                    assert list(status.survivors) == list(TENANTS)
                    total = (await opened_sum(running, context)) * plan.quantiser.scale
                    expected = sum(drawn(plan, each).astype(np.float64) for each in TENANTS) / 100
                    assert np.abs(total - expected).max() <= len(TENANTS) * plan.quantiser.scale

    asyncio.run(scenario())


def test_a_node_without_the_schemes_packages_declines_by_clause_and_stays_for_the_next_round(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = tenant_round.rehearse
    missing = {"ada"}

    def lacking(plan: RoundPlan) -> None:
        if plan.ckks is not None and missing:
            missing.pop()
            raise ConfigError("scheme ckks needs packages; run: pip install 'secagg[ckks]'")
        honest(plan)

    async def scenario() -> None:
        async with (
            federation(enrolled, tmp_path) as running,
            joined(running, config_of(running, "ada", tmp_path)) as node,
        ):
            context = await running.open(enrolled.plan(scheme="ckks"))
            refused = await node.until("plan_refused")
            assert refused["clause"] == "schemes"
            assert "pip install 'secagg[ckks]'" in refused["reason"]
            assert not node.heard("training")
            async with all_joined(running, tmp_path, without=("ada",)):
                status = await running.ended(context)
                assert list(status.survivors) == WITHOUT_ADA
                (excluded,) = status.excluded
                assert excluded.reason == "declined: PolicyRefused (schemes)"
                second = await running.open(enrolled.plan(round_number=2))
                assert list((await running.ended(second)).survivors) == list(TENANTS)

    monkeypatch.setattr(tenant_round, "rehearse", lacking)
    asyncio.run(scenario())


def test_a_node_that_allows_masking_alone_refuses_by_its_policy(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            strict = config_of(running, "ada", tmp_path, policy={"schemes": ("masking",)})
            async with (
                all_joined(running, tmp_path, without=("ada",)),
                joined(running, strict) as node,
            ):
                context = await running.open(enrolled.plan(scheme="ckks"))
                assert (await node.until("plan_refused"))["clause"] == "schemes"
                assert list((await running.ended(context)).survivors) == WITHOUT_ADA

    asyncio.run(scenario())


def test_nothing_that_a_node_logs_in_a_round_holds_its_key_or_shares(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    """Fields are names, counts and digests: no field is as long as a share or a packed key."""

    async def scenario() -> None:
        async with (
            federation(enrolled, tmp_path) as running,
            all_joined(running, tmp_path) as nodes,
        ):
            await running.ended(await running.open(enrolled.plan(scheme="ckks")))
            for node in nodes.values():
                await node.until("round_ended")
                for name, fields in node.events:
                    for value in fields.values():
                        assert len(repr(value)) < 400, name

    asyncio.run(scenario())
