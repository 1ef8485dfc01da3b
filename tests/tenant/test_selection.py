"""Choosing windows at a tenant: the form of what leaves, the memory, refusals, slots, the wire."""

from __future__ import annotations

import asyncio
import dataclasses
import stat
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from secagg.errors import PolicyRefused
from secagg.plan import RoundPlan
from secagg_models import updates
from secagg_models.base import Base
from secagg_models.block_weights import BlockWeights
from secagg_models.selection.state import load_state
from secagg_tenant.config import Config, Model, PolicyTable, SeriesTraining, VectorTraining
from secagg_tenant.trainer import Contribution, ModelVersion, seconds_to_slot
from secagg_tenant.update_trainer import UpdateTrainer
from secagg_tenant.window_choice import MEMORY_FILE, refuse_unsuited
from secagg_wire.v1 import owner_service_pb2 as owner_pb
from secagg_wire.v1 import round_pb2
from tests.coordinator.federation import CALL_S, TENANTS, Enrolled, Federation, federation
from tests.coordinator.test_transcript_service import transcript_of
from tests.tenant.forecasts import QUIET, disturbed, signed_over, start, trained_base, write
from tests.tenant.running import config_of, joined

BAND = {"windows": "surprise-band"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return trained_base(tmp_path_factory.mktemp("base"))


@dataclasses.dataclass
class Tenant:
    """A trainer with its folder, and the version that it trains from."""

    trainer: UpdateTrainer
    folder: Path
    plan: RoundPlan
    version: ModelVersion

    @classmethod
    def open(
        cls, base: Base, enrolled: Enrolled, folder: Path, rare_from: int | None, **training: Any
    ) -> Tenant:
        write(folder / "series", QUIET, rare_from)
        config = SeriesTraining(trainer="series", series=folder / "series", **training)
        model = Model(base=base.source, base_digest=base.digest)
        policy = PolicyTable(roster_digest="00" * 32)
        trainer = UpdateTrainer(config, model, policy, "ada", memory=folder / MEMORY_FILE)
        update = disturbed(start(base), 0.1)
        manifest, files = signed_over(base, update)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        plan = dataclasses.replace(enrolled.plan(), layout=updates.delta_layout(update))
        return cls(trainer, folder, plan, ModelVersion(1, manifest, folder))

    def train(self) -> Contribution:
        self.trainer.check(self.plan, self.version)
        return self.trainer.train(self.plan, self.version, lambda done, of: None)


@pytest.mark.parametrize("signal", ["loss", "loss-gap", "latent-error"])
def test_a_contribution_has_the_same_form_and_weight_whatever_is_chosen(
    base: Base, enrolled: Enrolled, tmp_path: Path, signal: str
) -> None:
    sent = []
    for number, (rare_from, options) in enumerate(
        [(None, {}), (None, BAND | {"surprise": signal}), (250, BAND | {"surprise": signal})]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        sent.append(Tenant.open(base, enrolled, folder, rare_from, **options).train())
    assert len({(each.vector.shape, each.weight) for each in sent}) == 1
    assert not np.array_equal(sent[0].vector, sent[1].vector)


def test_the_memory_is_private_and_is_used_in_the_next_round(
    base: Base, enrolled: Enrolled, tmp_path: Path
) -> None:
    tenant = Tenant.open(base, enrolled, tmp_path, 250, **BAND)
    tenant.train()
    path = tmp_path / MEMORY_FILE
    first = load_state(path)
    tenant.train()
    second = load_state(path)
    assert first is not None
    assert second is not None
    assert (first.rounds, second.rounds) == (1, 2)
    assert second.trained.sum() == first.trained.sum() * 2 == 16
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nobody_else_can_compute_which_windows_the_band_draws(
    base: Base, enrolled: Enrolled, tmp_path: Path
) -> None:
    """The version's seed is the owner's, and the same data under it give another contribution."""
    sent = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        sent.append(Tenant.open(base, enrolled, tmp_path / name, 250, **BAND).train().vector)
    assert not np.array_equal(*sent)


def test_a_broken_memory_keeps_nobody_from_a_round(
    base: Base, enrolled: Enrolled, tmp_path: Path
) -> None:
    (tmp_path / MEMORY_FILE).write_bytes(b"broken")
    tenant = Tenant.open(base, enrolled, tmp_path, None, **BAND)
    tenant.train()
    assert load_state(tmp_path / MEMORY_FILE) is not None


def test_uniform_windows_leave_no_memory(base: Base, enrolled: Enrolled, tmp_path: Path) -> None:
    Tenant.open(base, enrolled, tmp_path, None).train()
    assert not (tmp_path / MEMORY_FILE).exists()


def test_a_block_alone_is_refused_where_windows_are_to_be_chosen(tmp_path: Path) -> None:
    block = object.__new__(BlockWeights)  # only its kind is asked for
    for clause, options in (
        ("training.windows", BAND),
        ("training.per_window_clip", {"per_window_clip": 1.0}),
    ):
        config = SeriesTraining(trainer="series", series=tmp_path, **options)
        with pytest.raises(PolicyRefused, match=clause):
            refuse_unsuited(config, block)
    refuse_unsuited(SeriesTraining(trainer="series", series=tmp_path), block)


@pytest.mark.parametrize(("elapsed", "waits"), [(0.5, 9.5), (9.0, 1.0), (10.5, 9.5), (20.0, 0.0)])
def test_a_contribution_is_ready_at_a_slot_and_never_between(elapsed: float, waits: float) -> None:
    training = SeriesTraining(trainer="series", series=Path(), slot_seconds=10)
    assert seconds_to_slot(training, elapsed) == pytest.approx(waits)
    assert seconds_to_slot(SeriesTraining(trainer="series", series=Path()), elapsed) == 0
    band = SeriesTraining(trainer="series", series=Path(), windows="surprise-band")
    assert seconds_to_slot(band, 0.5) == 9.5
    assert seconds_to_slot(VectorTraining(trainer="vector"), elapsed) == 0


def test_windows_are_uniform_or_of_the_band_and_nothing_else() -> None:
    with pytest.raises(ValidationError, match="windows"):
        SeriesTraining(trainer="series", series=Path(), windows="largest")  # type: ignore[arg-type]


@dataclasses.dataclass
class Seen:
    """What coordinator and members hold of a round, and what this tenant's log says of it."""

    survivors: list[str]
    transcript_bytes: int
    upload_bytes: int
    logged: list[tuple[str, list[str]]]


_OF_THE_NETWORK = ("stream_ended", "connected", "training")


def one_round(
    enrolled: Enrolled, folder: Path, base: Base, rare_from: int | None, slot: float = 2.0
) -> Seen:
    """A round over TLS in which ada chooses by the surprise band."""
    folder.mkdir()
    write(folder / "series", QUIET, rare_from)

    async def scenario() -> Seen:
        async with federation(enrolled, folder) as running, AsyncExitStack() as stack:
            update = start(base)
            version = await _published(running, base, update)
            config = _config(running, folder, base, slot)
            node = await stack.enter_async_context(joined(running, config))
            for name in TENANTS[1:]:
                config = config_of(running, name, folder, policy={"recompute": "off"})
                await stack.enter_async_context(joined(running, config))
            plan = running.enrolled.plan(1, 1).next_round(
                1, layout=updates.delta_layout(update), model_digest=version[1]
            )
            context = await running.open(plan, version[0])
            status = await running.ended(context)
            assert status.outcome == round_pb2.ROUND_OUTCOME_OPENED, status.reason
            await node.until("round_ended", round=1)
            await node.until("version_evaluated", version=version[0])
            header, _ = await transcript_of(running, "ada", context)
            return Seen(
                list(status.survivors), header.size, node.heard("upload_started")[-1]["bytes"],
                sorted((event, sorted(fields)) for event, fields in node.events
                       if event not in _OF_THE_NETWORK),
            )  # fmt: skip

    return asyncio.run(scenario())


def test_over_the_wire_a_tenant_with_a_rare_regime_looks_like_one_without(
    enrolled: Enrolled, tmp_path: Path, base: Base
) -> None:
    plain = one_round(enrolled, tmp_path / "plain", base, None)
    rare = one_round(enrolled, tmp_path / "rare", base, 250)
    assert rare == plain
    assert (tmp_path / "rare" / "ada" / MEMORY_FILE).exists()


def test_a_training_that_overruns_its_slot_is_a_local_warning(
    enrolled: Enrolled, tmp_path: Path, base: Base
) -> None:
    seen = one_round(enrolled, tmp_path / "short", base, None, slot=0.001)
    assert "slot_too_short" in dict(seen.logged)


def _config(running: Federation, folder: Path, base: Base, slot: float) -> Config:
    values = config_of(running, "ada", folder, policy={"recompute": "off"}).model_dump()
    values["training"] = {
        "trainer": "series",
        "series": folder / "series",
        "slot_seconds": slot,
        **BAND,
    }
    values["model"] = {"base": base.source, "base_digest": base.digest}
    return Config.model_validate(values)


async def _published(running: Federation, base: Base, update: updates.Update) -> tuple[int, bytes]:
    manifest, files = signed_over(base, update)
    requests = [owner_pb.PublishVersionRequest(manifest=manifest.encode())]
    for name, data in files.items():
        piece = owner_pb.FilePiece(name=name, offset=0, payload=data)
        requests.append(owner_pb.PublishVersionRequest(piece=piece))
    answer = await running.owner().PublishVersion(iter(requests), timeout=CALL_S)
    return int(answer.version), manifest.digest
