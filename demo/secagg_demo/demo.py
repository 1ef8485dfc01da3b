"""The whole demonstration: keys, text, emulator, audit, admission, rounds, plug-in, report.

The comparison's arms train in two processes of lower priority while the federation runs, so the
federation's waiting costs no time. Every process is a child of this one and ends with it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import platform
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secagg.cli import EXIT_PROTOCOL
from secagg_demo import arms_pool, federation, nodes, texts
from secagg_demo.arms_pool import POOL_SIZE, ArmsPool
from secagg_demo.commands import run
from secagg_demo.comparison import Arms, Comparison
from secagg_demo.console import Narrator
from secagg_demo.evidence import write_readme
from secagg_demo.federation import Federation, Kill
from secagg_demo.journal import Journal, Timeline
from secagg_demo.processes import Child, Children, Event, ProcessFailed
from secagg_demo.results import DemoResult, Mission, RoundResult
from secagg_demo.settings import KILL_ROUND, Settings
from secagg_demo.site import COORDINATOR, OWNER, Site, enrol
from secagg_demo.texts import TenantText
from secagg_models.base import SHIPPED_EMULATOR
from secagg_models.recipe import Recipe
from secagg_wire.key_files import KeyFiles

# A victim uploads for some seconds, so that there is a middle to kill it in.
_SLOW_UPLOAD_S = 9.0
_SUM_S = 120.0
_END_S = 120.0


@dataclass
class Demonstration:
    """One run; `run` may be called once."""

    settings: Settings
    recipe: Recipe
    narrator: Narrator
    journal: Journal = field(default_factory=Journal)
    parts: dict[str, float] = field(default_factory=dict)

    async def run(self) -> DemoResult:
        """Do everything but the report.

        Raises:
            ProcessFailed: a process died or fell silent; the message has the end of its log.
            ConfigError: a package or a folder is missing.
        """
        site = Site.prepare(self.settings.out)
        write_readme(site.evidence, self.settings.scheme)
        with self.part("keys and text"):
            assigned, summaries, digest = self._prepare(site)
        names = tuple(text.tenant for text in assigned)
        async with Children(site.logs, self._listen) as children:
            running = Federation(site, names, children, self.narrator, self.journal)
            with self.part("emulator"):
                emulator = await self._emulate(running)
            async with self._arms(running) as arms:
                with self.part("audit and admission"):
                    mission = await self._audit_and_start(running, emulator, digest)
                rounds, comparison = await self._federate_and_compare(running, arms)
            with self.part("plug-in"):
                mission = await self._plug_in(running, mission, rounds)
        return DemoResult(
            rounds=tuple(rounds),
            comparison=comparison,
            parameters=self._parameters(rounds),
            texts=tuple(summaries),
            timeline=self._timeline(names),
            seconds=self.narrator.elapsed,
            seconds_by_part=self.parts,
            mission=mission,
        )

    # ------------------------------------------------------------------ keys and text

    def _prepare(self, site: Site) -> tuple[tuple[TenantText, ...], list[dict[str, Any]], str]:
        say = self.narrator.say
        self.narrator.heading("Keys and private text")
        assigned = texts.assign(self.recipe.packages, self.settings.tenants)
        summaries = []
        for text in assigned:
            corpus = texts.lay_out(text, site.party(text.tenant) / "text")
            summaries.append(texts.summary(text, corpus))
            files = summaries[-1]["files"]
            say(f"{text.tenant} holds the source of {text.source}: {sum(files.values())} files")
        digest = enrol(site, [text.tenant for text in assigned])
        say(
            f"fresh keys for {len(assigned)} tenants, coordinator and owner",
            f"everybody pins the roster {digest[:16]}...; the mTLS certificates name their holders",
        )
        return assigned, summaries, digest

    # ------------------------------------------------------------------ emulator, audit, admission

    async def _emulate(self, running: Federation) -> Mapping[str, Any]:
        """The owner's package; its middle was distilled before and ships with the base."""
        self.narrator.heading("The owner's emulator")
        owner = running.site.party(OWNER)
        made, = await run(
            running.children, "owner-emulate", "owner", "emulate", "shipped",
            "--from", SHIPPED_EMULATOR, "--keys", owner / "keys", "--out", owner / "emulator",
        )  # fmt: skip
        self.narrator.say(
            f"of {made['layers']} layers the outer {2 * made['edge']} leave as they are, "
            f"{len(made['kept'])} of the other {made['layers'] - 2 * made['edge']} stay, distilled",
            f"signed by the owner; tenants pin the manifest {made['manifest_sha256'][:16]}...",
        )
        result: Mapping[str, Any] = made
        return result

    @asynccontextmanager
    async def _arms(self, running: Federation) -> AsyncIterator[Arms]:
        site, settings = running.site, self.settings
        victims = self._victims(running.tenants)
        setting = {
            "recipe": dataclasses.asdict(self.recipe),
            "texts": {name: str(site.party(name) / "text") for name in running.tenants},
            "full": "shipped",
            "emulator": str(site.party(OWNER) / "emulator"),
            "update_seed": self.recipe.seed,
        }
        pool = ArmsPool(running.children, setting, federation.environment())
        await pool.start()
        survivors = tuple(
            tuple(t for t in running.tenants if number != KILL_ROUND or t not in victims)
            for number in range(1, settings.rounds + 1)
        )
        yield Arms(pool, self.recipe, running.tenants, survivors, site.arms)

    async def _audit_and_start(
        self, running: Federation, emulator: Mapping[str, Any], digest: str
    ) -> Mission:
        """The owner audits what is to leave while coordinator and tenants start."""
        self.narrator.heading("The owner audits the emulator, every tenant admits it")
        auditing = asyncio.create_task(self._audit(running))
        port = await running.start_coordinator(nodes.coordinator(running.site, self.settings.port))
        self.narrator.say(f"the coordinator listens on 127.0.0.1:{port}, mutual TLS only")
        audit = await auditing
        for tenant in running.tenants:
            shutil.copytree(
                running.site.party(OWNER) / "emulator", running.site.party(tenant) / "emulator",
                ignore=shutil.ignore_patterns("audit*"),
            )  # fmt: skip
        await running.start_tenants(self._tenants(running, port, digest, emulator))
        admissions = {name: self._admission(running, name) for name in running.tenants}
        self.narrator.say(
            f"{len(running.tenants)} tenants have admitted the emulator and are connected",
            "signature, pins, no code, no layer that would carry their text through an update",
        )
        await running.start_owner(
            nodes.offsite_owner(
                port, self.recipe, running.site.party(OWNER) / "emulator", self.settings.scheme
            )
        )
        return Mission(emulator, audit, admissions)

    async def _audit(self, running: Federation) -> Mapping[str, Any]:
        owner = running.site.party(OWNER)
        audit: Mapping[str, Any] = await run(
            running.children, "owner-audit", "owner", "audit", owner / "emulator",
            "--full", "shipped", "--budget", "quick", "--keys", owner / "keys",
            "--out", running.site.root / "audit", accept=(0, EXIT_PROTOCOL),
        )  # fmt: skip
        failed = [v["clause"] for v in audit["verdicts"] if v["outcome"] != "pass"]
        if failed:
            raise ProcessFailed(
                f"the audit does not let the emulator leave ({', '.join(failed)}); what it found, "
                f"and what to change: {running.site.root / 'audit' / 'report.html'}"
            )
        self.narrator.say("the audit lets the emulator leave", "its figures: audit/report.html")
        return audit

    def _tenants(
        self, running: Federation, port: int, digest: str, emulator: Mapping[str, Any]
    ) -> dict[str, dict[str, Any]]:
        names = running.tenants
        owner = KeyFiles(running.site.party(OWNER) / "keys").identity().public_key
        return nodes.tenants(
            names,
            port=port,
            policy={
                "roster_digest": digest,
                "max_colluders": (len(names) - 1) // 3,
                "max_training_steps": self.recipe.steps_per_round,
            },
            training={name: nodes.text_training("text") for name in names},
            model={
                "emulator": "emulator",
                "emulator_digest": emulator["manifest_sha256"],
                "owner_key": owner.hex(),
            },
            slow=self._victims(names),
            slow_bytes_per_second=round(
                3 * int(emulator["values_outside_middle"]) / _SLOW_UPLOAD_S
            ),
        )

    def _admission(self, running: Federation, tenant: str) -> Mapping[str, Any]:
        events = running.running[tenant].events
        return next((e.fields for e in events if e.name == "emulator_admitted"), {})

    def _victims(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return names[len(names) - self.settings.victims :]

    # ------------------------------------------------------------------ federation, comparison

    async def _federate_and_compare(
        self, running: Federation, arms: Arms
    ) -> tuple[list[RoundResult], Comparison | None]:
        self.narrator.heading("The federation, and beside it the comparison")
        loop = asyncio.get_running_loop()
        versions: list[asyncio.Future[Path]] = [
            loop.create_future() for _ in range(self.settings.rounds)
        ]
        comparing = asyncio.create_task(arms.train_and_measure(versions))
        try:
            with self.part("federation"):
                rounds = await self._federate(running, versions)
            if rounds[-1].outcome == "aborted":
                return rounds, None
            with self.part("comparison after the federation"):
                comparison = await running.unless_a_child_dies(comparing)
            await arms.pool.close()
            return rounds, comparison
        finally:
            comparing.cancel()
            await asyncio.gather(comparing, return_exceptions=True)

    async def _federate(
        self, running: Federation, versions: list[asyncio.Future[Path]]
    ) -> list[RoundResult]:
        victims = self._victims(running.tenants)
        owner = running.running[OWNER]

        async def take_version(number: int) -> None:
            made = await owner.wait_for(
                "round_opened_its_sum",
                deadline_s=_SUM_S,
                where=lambda fields: fields["round"] == number,
            )
            folder = running.site.party(OWNER) / "data" / "models" / str(made.fields["model"])
            versions[number - 1].set_result(folder / "update.safetensors")

        rounds = await running.run_rounds(
            self.settings.rounds, Kill(KILL_ROUND, victims) if victims else None, take_version
        )
        async with asyncio.timeout(_END_S):
            await owner.ended()
        for name in (*running.tenants, COORDINATOR):
            await running.children.stop(running.running[name])
            self.narrator.clear(name)
        return rounds

    async def _plug_in(
        self, running: Federation, mission: Mission, rounds: Sequence[RoundResult]
    ) -> Mission:
        """The owner's last step: the tuned model as a folder, and its lineage."""
        config = running.site.party(OWNER) / "config.toml"
        listed = await run(
            running.children, "owner-versions", "owner", "versions", "list", "--config", config
        )
        mission = dataclasses.replace(mission, versions=tuple(listed))
        if rounds[-1].outcome == "aborted":
            return mission
        made, = await run(
            running.children, "owner-plug-in", "owner", "plug-in", "--config", config,
            "--out", running.site.root / "model",
        )  # fmt: skip
        self.narrator.say(
            "the owner has plugged the last version into its full model: DIR/model",
            f"digest {made['digest'][:16]}...; 'secagg owner plug-in --reverse' takes it "
            "out again, bit for bit",
        )
        return dataclasses.replace(mission, plug_in=made)

    # ------------------------------------------------------------------ for the report

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure a part of the run."""
        began = time.monotonic()
        yield
        self.parts[name] = time.monotonic() - began

    def _listen(self, child: Child, event: Event) -> None:
        if child.name.startswith("arms-"):
            arms_pool.listen(self.narrator, self.journal, child, event)
        else:
            federation.listen(self.narrator, self.journal, child, event)

    def _parameters(self, rounds: Sequence[RoundResult]) -> Mapping[str, Any]:
        recipe = dataclasses.asdict(self.recipe)
        return {
            "tenants": self.settings.tenants,
            "rounds": self.settings.rounds,
            "kill": self.settings.kill,
            "seed": self.settings.seed,
            "scheme": self.settings.scheme,
            **self._scheme_parameters(rounds),
            "suite": next((entry.evidence.suite for entry in rounds), None),
            "lease_seconds": nodes.LEASE["seconds"],
            "recipe": {name: value for name, value in recipe.items() if name != "seed"},
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
        }

    @staticmethod
    def _scheme_parameters(rounds: Sequence[RoundResult]) -> Mapping[str, Any]:
        found = next((e.evidence.parameters for e in rounds if e.evidence.parameters), None)
        return {} if found is None else {"ckks": dict(found)}

    def _timeline(self, names: tuple[str, ...]) -> Timeline:
        lanes = (COORDINATOR, *names, *(f"arms-{number}" for number in range(1, POOL_SIZE + 1)))
        return Timeline(
            lanes,
            tuple(span for span in self.journal.spans if span.lane in lanes),
            tuple(self.journal.marks),
        )


def recipe_for(settings: Settings, recipe: Recipe) -> Recipe:
    """The recipe with what the command line rules."""
    return dataclasses.replace(recipe, rounds=settings.rounds, seed=settings.seed)
