"""The whole demonstration, in order: keys, text, pilots, federation, comparison, report.

The comparison's arms train in two processes of lower priority while the federation runs, so the
federation's waiting costs no time. Every process is a child of this one and ends with it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import platform
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secagg_demo import arms_pool, federation, nodes, texts
from secagg_demo.arms_pool import POOL_SIZE, ArmsPool
from secagg_demo.comparison import Arms, Comparison, Rates
from secagg_demo.console import Narrator
from secagg_demo.evidence import write_readme
from secagg_demo.federation import Federation, Kill
from secagg_demo.journal import Journal, Timeline
from secagg_demo.processes import Child, Children, Event
from secagg_demo.results import DemoResult, RoundResult
from secagg_demo.settings import KILL_ROUND, Settings
from secagg_demo.site import COORDINATOR, OWNER, Site, enrol
from secagg_demo.texts import TenantText
from secagg_models.recipe import Recipe

PILOT_STEPS = 8
_SLOW_BYTES_PER_SECOND = 180_000
_SUM_S = 120.0
_END_S = 120.0


@dataclass
class Demonstration:
    """One run; `run` may be called once."""

    settings: Settings
    recipe: Recipe
    narrator: Narrator
    pilot_steps: int = PILOT_STEPS
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
        async with self._processes(site, names) as (nodes_of, arms):
            rates = await self._start(nodes_of, arms, digest)
            rounds, comparison = await self._federate_and_compare(nodes_of, arms, rates)
        return DemoResult(
            rounds=tuple(rounds),
            comparison=comparison,
            parameters=self._parameters(rounds),
            texts=tuple(summaries),
            timeline=self._timeline(names),
            seconds=self.narrator.elapsed,
            seconds_by_part=self.parts,
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

    @asynccontextmanager
    async def _processes(
        self, site: Site, names: tuple[str, ...]
    ) -> AsyncIterator[tuple[Federation, Arms]]:
        async with Children(site.logs, self._listen) as children:
            setting = {
                "recipe": dataclasses.asdict(self.recipe),
                "texts": {name: str(site.party(name) / "text") for name in names},
                "base": "shipped",
                "adapter_seed": self.recipe.seed,
            }
            pool = ArmsPool(children, setting, federation.environment())
            yield (
                Federation(site, names, children, self.narrator, self.journal),
                Arms(pool, self.recipe, names, site.arms, self.pilot_steps),
            )

    def _listen(self, child: Child, event: Event) -> None:
        if child.name.startswith("arms-"):
            arms_pool.listen(self.narrator, self.journal, child, event)
        else:
            federation.listen(self.narrator, self.journal, child, event)

    # ------------------------------------------------------------------ start

    async def _start(self, running: Federation, arms: Arms, digest: str) -> Rates:
        """Pilots choose the learning rates while coordinator and tenants start."""
        self.narrator.heading("Learning rates, while the nodes start")
        self.narrator.say(
            f"pilots: {self.pilot_steps} steps of each arm at each of "
            f"{', '.join(f'{rate:g}' for rate in self.recipe.rate_grid)}",
            "the rate of each arm is the one with the lowest loss on validation text",
        )
        with self.part("pilots"):
            base_digest = await arms.pool.start()
            choosing = asyncio.create_task(arms.choose_rates())
            port = await running.start_coordinator(
                nodes.coordinator(running.site, self.settings.port)
            )
            self.narrator.say(f"the coordinator listens on 127.0.0.1:{port}, mutual TLS only")
            await running.start_tenants(self._tenants(running, port, digest, base_digest))
            self.narrator.say(f"{len(running.tenants)} tenants are connected")
            rates = await choosing
        shown = ", ".join(f"{arm} {rate:g}" for arm, rate in rates.chosen.items())
        self.narrator.say(f"learning rates: {shown}")
        await running.start_owner(
            nodes.lora_owner(port, self.recipe, rates.chosen["federated"], self.settings.scheme)
        )
        return rates

    def _tenants(
        self, running: Federation, port: int, digest: str, base_digest: str
    ) -> dict[str, dict[str, Any]]:
        names = running.tenants
        return nodes.tenants(
            names,
            port=port,
            policy={
                "roster_digest": digest,
                "max_colluders": (len(names) - 1) // 3,
                "max_training_steps": self.recipe.steps_per_round,
            },
            training={name: nodes.lora_training("text") for name in names},
            model={"base": "shipped", "base_digest": base_digest},
            slow=self._victims(names),
            slow_bytes_per_second=_SLOW_BYTES_PER_SECOND,
        )

    def _victims(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return names[len(names) - self.settings.victims :]

    # ------------------------------------------------------------------ federation, comparison

    async def _federate_and_compare(
        self, running: Federation, arms: Arms, rates: Rates
    ) -> tuple[list[RoundResult], Comparison | None]:
        self.narrator.heading("The federation, and beside it the comparison")
        loop = asyncio.get_running_loop()
        adapters: list[asyncio.Future[Path]] = [
            loop.create_future() for _ in range(self.settings.rounds)
        ]
        comparing = asyncio.create_task(arms.train_and_measure(rates, adapters))
        try:
            with self.part("federation"):
                rounds = await self._federate(running, adapters)
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
        self, running: Federation, adapters: list[asyncio.Future[Path]]
    ) -> list[RoundResult]:
        victims = self._victims(running.tenants)
        owner = running.running[OWNER]

        async def take_adapter(number: int) -> None:
            await owner.wait_for(
                "round_opened_its_sum",
                deadline_s=_SUM_S,
                where=lambda fields: fields["round"] == number,
            )
            states = running.site.party(OWNER) / "data" / "models"  # the first is the start
            adapters[number - 1].set_result(states / str(number + 1) / "update.safetensors")

        rounds = await running.run_rounds(
            self.settings.rounds, Kill(KILL_ROUND, victims) if victims else None, take_adapter
        )
        async with asyncio.timeout(_END_S):
            await owner.ended()
        for name in (*running.tenants, COORDINATOR):
            await running.children.stop(running.running[name])
            self.narrator.clear(name)
        return rounds

    # ------------------------------------------------------------------ for the report

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure a part of the run."""
        began = time.monotonic()
        yield
        self.parts[name] = time.monotonic() - began

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
            "pilot_steps": self.pilot_steps,
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
