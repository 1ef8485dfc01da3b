"""Rounds of scheme `ckks` by real participants over real TLS: what opens, what is refused, what is
left on disk. What the scheme does to the state machine alone is in tests/core/test_ckks_*.py.
"""

import asyncio
import gc
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

from secagg.ckks.parameters import Parameters
from secagg.cli import main
from secagg.errors import ConfigError, ProtocolError, Step
from secagg.ledger import MemoryLedger
from secagg.messages import Signed, Unmask, decode_message
from secagg.participant import Participant
from secagg.plan import RoundPlan
from secagg.policy import Policy
from secagg.records import encode
from secagg.scheme import leaf_places
from secagg.testing import cohort, make_round
from secagg.traffic import traffic
from secagg_coordinator import rounds
from secagg_coordinator.archive import Archive
from secagg_wire import message_sizes
from secagg_wire.limits import DOWNLINK_MESSAGE_BYTES, UPLINK_MESSAGE_BYTES
from secagg_wire.manifest import Origin
from secagg_wire.recomputation import Fetched, transcript_bound
from secagg_wire.rehearsal import rehearse
from secagg_wire.v1 import owner_service_pb2 as owner_pb
from secagg_wire.v1 import round_pb2
from tests.coordinator.federation import (
    CALL_S,
    TENANTS,
    Enrolled,
    Federation,
    Tenant,
    federation,
    goes_silent,
    play,
    refusal,
    vectors,
)
from tests.coordinator.recomputing import (
    InventingOneLeaf,
    InventingWeight,
    fetched,
    finished_round,
    invent,
    recomputation,
)
from tests.coordinator.test_round_over_tls import check_transcript, download_sum, levels

LENGTH = 20_000
WITHOUT_DAN = tuple(name for name in TENANTS if name != "dan")


@pytest.fixture(scope="module", autouse=True)
def compiled_before_any_clock_runs() -> None:
    """The first compilation on a machine takes longer than a call of these tests may."""
    rehearse(cohort(5).plan(8, scheme="ckks"))


def ckks_plan(enrolled: Enrolled, **changes: object) -> RoundPlan:
    return enrolled.plan(LENGTH, scheme="ckks", **changes)


@pytest.mark.parametrize("packing", ["coefficients", "slots"])
def test_a_sum_of_ciphertexts_is_exact_though_one_tenant_never_uploads(
    enrolled: Enrolled, tmp_path: Path, packing: str
) -> None:
    async def scenario() -> None:
        plan, inputs = ckks_plan(enrolled, packing=packing), vectors(LENGTH)
        assert len(leaf_places(plan)) > 2
        async with federation(enrolled, tmp_path, evidence=tmp_path / "evidence") as running:
            context = await running.open(plan)
            tenants = [running.tenant(name, plan, inputs[name], 100) for name in TENANTS]
            for tenant in tenants:
                tenant.participant = allowing(enrolled, tenant.name, plan, packing)
            playing = asyncio.create_task(play(tenants, dan=goes_silent))
            for tenant in tenants:
                await reached(playing, tenant.agreed if tenant.name == "dan" else tenant.uploaded)
            await running.let_pass(plan.deadlines.masked_input_ms / 1000)
            await playing
            status = await running.ended(context)
            assert status.outcome == round_pb2.ROUND_OUTCOME_OPENED
            assert tuple(status.survivors) == WITHOUT_DAN
            header, total = await download_sum(running, context)
            assert (header.length, header.total_weight) == (LENGTH, 400)
            expected = sum(levels(plan, inputs[name], 100) for name in WITHOUT_DAN)
            np.testing.assert_array_equal(total, expected)
            await check_transcript(running, header, WITHOUT_DAN)
            check_evidence(tmp_path / "evidence" / "round-1", plan)

    asyncio.run(scenario())


def allowing(enrolled: Enrolled, name: str, plan: RoundPlan, packing: str) -> Participant:
    policy = Policy(enrolled.roster.digest, packings=(packing,))  # type: ignore[arg-type]
    return Participant(
        plan, identity=enrolled.keys[name].identity(), roster=enrolled.roster, policy=policy,
        ledger=MemoryLedger(),
    )  # fmt: skip


async def reached(playing: asyncio.Task[None], event: asyncio.Event) -> None:
    """Wait for a tenant, unless one has failed: then that is what went wrong."""
    waiting = asyncio.ensure_future(event.wait())
    await asyncio.wait({playing, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if playing.done():
        playing.result()


def check_evidence(directory: Path, plan: RoundPlan) -> None:
    """plan.json says all that reading an upload takes, and uploads have just that form."""
    view = json.loads((directory / "plan.json").read_text())
    ckks = view["ckks"]
    assert (view["scheme"], view["context"]) == ("ckks", plan.context.hex())
    assert ckks["packing"] == plan.ckks.packing  # type: ignore[union-attr]
    assert ckks["log2_modulus"] == pytest.approx(sum(map(math.log2, ckks["primes"])), abs=0.01)
    assert [prime.bit_length() for prime in ckks["primes"]] == ckks["modulus_bits"]
    size = ckks["polynomials"] * ckks["degree"] * sum(ckks["modulus_bits"]) // 8
    uploads = {path.stem: path.stat().st_size for path in (directory / "upload").iterdir()}
    assert uploads == dict.fromkeys(WITHOUT_DAN, size)


class Unreduced(Tenant):
    """Signs and sends an upload with a residue that is its prime or more."""

    async def announce_upload(self) -> None:
        await super().announce_upload()
        upload = self.participant._submitted()
        honest = upload.leaf

        def leaf(number: int) -> bytes:
            data = honest(number)
            return data[:-8] + b"\xff" * 8 if number == 1 else data

        upload.leaf = leaf  # type: ignore[method-assign]


def test_a_malformed_ciphertext_costs_its_sender_its_place_with_proof(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    """C44: its first leaf had been added by then, and was taken out again."""
    plan, inputs = ckks_plan(enrolled), vectors(LENGTH)

    async def scenario(running: Federation) -> None:
        context = await running.open(plan)
        tenants = [
            (Unreduced if name == "dan" else Tenant)(running, name, plan, inputs[name], 100)
            for name in TENANTS
        ]
        await play(tenants)
        status = await running.ended(context)
        assert tuple(status.survivors) == WITHOUT_DAN
        (excluded,) = status.excluded
        assert (excluded.tenant, excluded.step) == ("dan", round_pb2.STEP_MASKED_INPUT)
        assert excluded.reason.startswith("faulty: ")
        _, total = await download_sum(running, context)
        expected = sum(levels(plan, inputs[name], 100) for name in WITHOUT_DAN)
        np.testing.assert_array_equal(total, expected)

    async def whole() -> None:
        async with federation(enrolled, tmp_path) as running:
            await scenario(running)

    asyncio.run(whole())


class WrongSum(Tenant):
    """Releases and signs another sum of shares than the one it holds."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.lied = asyncio.Event()

    async def submit(self, message: bytes) -> object:
        signed = decode_message(message)
        if not isinstance(signed, Signed) or signed.label != Unmask.LABEL:
            return await super().submit(message)
        answer = signed.read(Unmask)
        body = encode(replace(answer, key_sum=bytes([answer.key_sum[0] ^ 1]) + answer.key_sum[1:]))
        plan, identity = self.participant.plan, self.identity
        signature = identity.sign(plan.suite, signed.label, plan.context, body)
        answered = await super().submit(
            encode(Signed(signed.label, signed.sender, body, signature))
        )
        self.lied.set()
        return answered


class AfterTheLiar(Tenant):
    """Answers when the wrong sum has been taken, so that it is always among those that came."""

    liar: WrongSum

    async def submit(self, message: bytes) -> object:
        signed = decode_message(message)
        if isinstance(signed, Signed) and signed.label == Unmask.LABEL:
            await self.liar.lied.wait()
        return await super().submit(message)


def test_a_wrong_sum_of_shares_is_left_out_and_nobody_is_named_for_it(
    enrolled: Enrolled, tmp_path: Path
) -> None:
    """C45: with t = 3 any three right sums open. The coordinator could say whose was wrong only
    if a fourth agreed, and it does not wait for one."""
    plan, inputs = ckks_plan(enrolled, share_threshold=3), vectors(LENGTH)

    async def scenario(running: Federation) -> None:
        context = await running.open(plan)
        liar = WrongSum(running, "eve", plan, inputs["eve"], 100)
        liar.identity = enrolled.keys["eve"].identity()
        others = [AfterTheLiar(running, n, plan, inputs[n], 100) for n in TENANTS if n != "eve"]
        for tenant in others:
            tenant.liar = liar
        await play([*others, liar])
        status = await running.ended(context)
        assert status.outcome == round_pb2.ROUND_OUTCOME_OPENED, status.reason
        assert tuple(status.survivors) == TENANTS
        assert not status.excluded
        _, total = await download_sum(running, context)
        expected = sum(levels(plan, inputs[name], 100) for name in TENANTS)
        np.testing.assert_array_equal(total, expected)

    async def whole() -> None:
        async with federation(enrolled, tmp_path) as running:
            await scenario(running)

    asyncio.run(whole())


# ---------------------------------------------------------------------- what is refused at once


async def opening_refused(running: Federation, plan: RoundPlan) -> Exception:
    request = owner_pb.OpenRoundRequest(plan=plan.encode())
    return await refusal(running.owner().OpenRound(request, timeout=CALL_S))


def test_a_coordinator_without_the_schemes_packages_refuses_the_plan_and_says_why(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(plan: RoundPlan) -> None:
        raise ConfigError("scheme ckks needs packages that are not installed")

    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            error = await opening_refused(running, ckks_plan(enrolled))
            assert "this coordinator cannot run the plan" in str(error)
            assert "packages that are not installed" in str(error)
            await running.open(enrolled.plan())  # masking goes on

    real = rounds.rehearse
    monkeypatch.setattr(rounds, "rehearse", lambda p: missing(p) if p.ckks else real(p))
    asyncio.run(scenario())


def test_a_plan_whose_messages_the_wire_cannot_carry_is_refused(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            error = await opening_refused(running, ckks_plan(enrolled))
            assert "in step share_keys the message from each tenant has" in str(error)
            assert "name a smaller committee than 5" in str(error)

    monkeypatch.setattr(message_sizes, "UPLINK_MESSAGE_BYTES", 30_000)
    asyncio.run(scenario())


def test_a_committee_of_64_among_1000_fits_the_wire() -> None:
    plan = cohort(1000, committee=64).plan(10_000_000, scheme="ckks")
    assert plan.ckks is not None
    assert plan.ckks.degree == 8192
    message_sizes.require_messages_fit(plan)
    dealt = traffic(plan)[Step.SHARE_KEYS]
    assert 30e6 < dealt.down < DOWNLINK_MESSAGE_BYTES / 3
    assert 2e6 < dealt.up < UPLINK_MESSAGE_BYTES / 6


@pytest.mark.parametrize("packing", ["coefficients", "slots"])
def test_a_rehearsal_leaves_nothing_to_compile(packing: str) -> None:
    plan = cohort(5).plan(LENGTH, scheme="ckks", packing=packing)  # type: ignore[arg-type]
    rehearse(plan)
    before = compiled()
    assert before > 15
    assert make_round(5, plan=plan).run().opened.survivors == plan.cohort
    assert compiled() == before


def compiled() -> int:
    """Signatures for which this project's kernels are compiled."""
    kernels = [one for one in gc.get_objects() if isinstance(one, Dispatcher)]
    return sum(len(one.signatures) for one in kernels if one.__module__.startswith("secagg."))


# ---------------------------------------------------------------------- the sum once more


async def round_and_claim(running: Federation, plan: RoundPlan) -> tuple[Fetched, Origin]:
    claim = await finished_round(running, plan)
    return await fetched(running, claim), claim


def test_every_leaf_of_the_sum_is_recomputed_from_what_the_coordinator_serves(
    enrolled: Enrolled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, evidence = ckks_plan(enrolled), tmp_path / "evidence"

    async def scenario() -> None:
        async with federation(enrolled, tmp_path, evidence=evidence) as running:
            found, claim = await round_and_claim(running, plan)
            everything = tuple(range(len(leaf_places(plan))))
            done = await recomputation(running).compare(found.verified, claim.sum_root, everything)
            assert done == len(everything) > 2
            assert len(found.transcript) < transcript_bound(plan)

    asyncio.run(scenario())
    folder, roster = evidence / "round-1", enrolled.keys["ona"].directory / "roster.bin"
    capsys.readouterr()
    command = ["verify-transcript", folder / "transcript", "--roster", roster]
    assert main([*map(str, command), "--uploads", str(folder / "upload")]) == 0
    assert "recomputed" in capsys.readouterr().out


@pytest.mark.parametrize("archive", [InventingOneLeaf, InventingWeight])
def test_an_invented_sum_is_found_out(
    enrolled: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: type[Archive]
) -> None:
    invent(monkeypatch, archive)
    plan = ckks_plan(enrolled)

    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            found, claim = await round_and_claim(running, plan)
            everything = tuple(range(len(leaf_places(plan))))
            with pytest.raises(ProtocolError, match="not that of the uploads"):
                await recomputation(running).compare(found.verified, claim.sum_root, everything)

    asyncio.run(scenario())


def test_a_small_cohorts_transcript_with_long_sums_of_shares_is_within_the_bound() -> None:
    """Two sums of 63 kB each are more than the rest of such a transcript."""
    plan = cohort(3).plan(8, scheme="ckks")
    assert plan.ckks is not None
    wide = replace(plan, ckks=Parameters(16384, (30, 30)))
    network = make_round(3, plan=wide)
    assert network.run().opened.survivors == plan.cohort
    size = len(network.aggregator.transcript)
    assert 2 * wide.ckks.share_bytes < size < transcript_bound(wide)  # type: ignore[union-attr]
