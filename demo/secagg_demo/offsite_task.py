"""The demonstration on text: tenants tune an emulator of the owner's model, whose weights stay.

The owner makes, signs and audits the emulator; every tenant admits it before it trains; at the end
the owner plugs the last version into its full model.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from secagg.cli import EXIT_PROTOCOL
from secagg_demo import nodes, texts
from secagg_demo.commands import run
from secagg_demo.comparison import TEXT, TUNES_EMULATOR, Measure, Wanted
from secagg_demo.console import Narrator
from secagg_demo.federation import Federation
from secagg_demo.processes import ProcessFailed
from secagg_demo.results import Mission, RoundResult
from secagg_demo.settings import Settings, TaskName
from secagg_demo.site import OWNER, Site
from secagg_demo.task import slow_upload, tenant_policy, victims
from secagg_models.base import SHIPPED_EMULATOR
from secagg_models.recipe import Recipe
from secagg_wire.key_files import KeyFiles


@dataclass
class OffsiteTask:
    """See `secagg_demo.task.Task`."""

    settings: Settings
    recipe: Recipe
    narrator: Narrator
    name: TaskName = "text"
    measure: Measure = TEXT
    wanted: Wanted = TUNES_EMULATOR
    _emulator: Mapping[str, Any] = field(default_factory=dict)
    _audit: Mapping[str, Any] = field(default_factory=dict)
    _admissions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def lay_out(self, site: Site) -> Sequence[Mapping[str, Any]]:
        """Each tenant gets the source of one installed package."""
        summaries = []
        for text in texts.assign(self.recipe.packages, self.settings.tenants):
            corpus = texts.lay_out(text, site.party(text.tenant) / "text")
            summaries.append(texts.summary(text, corpus))
            files = summaries[-1]["files"]
            self.narrator.say(
                f"{text.tenant} holds the source of {text.source}: {sum(files.values())} files"
            )
        return summaries

    async def prepare(self, running: Federation) -> None:
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
        self._emulator = made

    def setting(self, running: Federation) -> Mapping[str, object]:
        """The full model, the emulator, and everybody's text."""
        site = running.site
        return {
            "task": self.name,
            "recipe": dataclasses.asdict(self.recipe),
            "data": {name: str(site.party(name) / "text") for name in running.tenants},
            "full": "shipped",
            "emulator": str(site.party(OWNER) / "emulator"),
            "update_seed": self.recipe.seed,
        }

    async def start(self, running: Federation, roster_digest: str) -> None:
        """The owner audits what is to leave while coordinator and tenants start."""
        self.narrator.heading("The owner audits the emulator, every tenant admits it")
        auditing = asyncio.create_task(self._audited(running))
        config = nodes.coordinator(running.site, self.settings.port)
        port = await running.start_coordinator(config)
        self.narrator.say(f"the coordinator listens on 127.0.0.1:{port}, mutual TLS only")
        self._audit = await auditing
        for tenant in running.tenants:
            shutil.copytree(
                running.site.party(OWNER) / "emulator", running.site.party(tenant) / "emulator",
                ignore=shutil.ignore_patterns("audit*"),
            )  # fmt: skip
        await running.start_tenants(self._tenants(running, port, roster_digest))
        self._admissions = {name: _admission(running, name) for name in running.tenants}
        self.narrator.say(
            f"{len(running.tenants)} tenants have admitted the emulator and are connected",
            "signature, pins, no code, no layer that would carry their text through an update",
        )
        await running.start_owner(
            nodes.offsite_owner(
                port, self.recipe, running.site.party(OWNER) / "emulator", self.settings.scheme
            )
        )

    async def _audited(self, running: Federation) -> Mapping[str, Any]:
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
        self, running: Federation, port: int, roster_digest: str
    ) -> dict[str, dict[str, Any]]:
        names, emulator = running.tenants, self._emulator
        owner = KeyFiles(running.site.party(OWNER) / "keys").identity().public_key
        return nodes.tenants(
            names,
            port=port,
            policy=tenant_policy(self.recipe, len(names), roster_digest),
            training={name: nodes.text_training("text") for name in names},
            model={
                "emulator": "emulator",
                "emulator_digest": emulator["manifest_sha256"],
                "owner_key": owner.hex(),
            },
            slow=victims(self.settings, names),
            slow_bytes_per_second=slow_upload(int(emulator["values_outside_middle"])),
        )

    async def finish(self, running: Federation, rounds: Sequence[RoundResult]) -> Mission | None:
        """The tuned model as a folder, and its lineage."""
        config = running.site.party(OWNER) / "config.toml"
        listed = await run(
            running.children, "owner-versions", "owner", "versions", "list", "--config", config
        )
        mission = Mission(self._emulator, self._audit, self._admissions, tuple(listed))
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


def _admission(running: Federation, tenant: str) -> Mapping[str, Any]:
    events = running.running[tenant].events
    return next((e.fields for e in events if e.name == "emulator_admitted"), {})
