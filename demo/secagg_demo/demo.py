"""The whole demonstration: keys, data, the owner's steps, rounds, comparison, report.

The comparison's arms train in two processes of lower priority while the federation runs, so the
federation's waiting costs no time. Every process is a child of this one and ends with it. What the
data are and which model is tuned is the task's part (task.py).
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

from secagg_demo import arms_pool, federation, nodes
from secagg_demo.arms_pool import POOL_SIZE, ArmsPool
from secagg_demo.comparison import Arms, Comparison
from secagg_demo.console import Narrator
from secagg_demo.evidence import write_readme
from secagg_demo.federation import Federation, Kill
from secagg_demo.journal import Journal, Timeline
from secagg_demo.processes import Child, Children, Event, ProcessFailed
from secagg_demo.results import DemoResult, RoundResult
from secagg_demo.settings import KILL_ROUND, Settings
from secagg_demo.site import COORDINATOR, OWNER, Site, enrol
from secagg_demo.task import Task, victims

_SUM_S = 120.0
_END_S = 120.0


@dataclass
class Demonstration:
    """One run; `run` may be called once."""

    settings: Settings
    task: Task
    narrator: Narrator
    journal: Journal = field(default_factory=Journal)
    parts: dict[str, float] = field(default_factory=dict)

    async def run(self) -> DemoResult:
        """Do everything but the report.

        Raises:
            ProcessFailed: a process died or fell silent; the message has the end of its log.
            ConfigError: a package or a folder is missing.
        """
        site, task = Site.prepare(self.settings.out), self.task
        write_readme(site.evidence, self.settings.scheme)
        with self.part(f"keys and {task.name}"):
            holdings, digest = self._prepare(site)
        names = tuple(str(one["tenant"]) for one in holdings)
        async with Children(site.logs, self._listen) as children:
            running = Federation(site, names, children, self.narrator, self.journal)
            with self.part("the owner's preparation"):
                await task.prepare(running)
            async with self._arms(running) as arms:
                with self.part("start"):
                    await task.start(running, digest)
                rounds, comparison = await self._federate_and_compare(running, arms)
            with self.part("the owner's last step"):
                mission = await task.finish(running, rounds)
        return DemoResult(
            task=task.name,
            rounds=tuple(rounds),
            comparison=comparison,
            parameters=self._parameters(rounds),
            holdings=tuple(holdings),
            timeline=self._timeline(names),
            seconds=self.narrator.elapsed,
            seconds_by_part=self.parts,
            mission=mission,
        )

    # ------------------------------------------------------------------ keys, data, arms

    def _prepare(self, site: Site) -> tuple[Sequence[Mapping[str, Any]], str]:
        self.narrator.heading("Keys and private data")
        holdings = self.task.lay_out(site)
        digest = enrol(site, [one["tenant"] for one in holdings])
        self.narrator.say(
            f"fresh keys for {len(holdings)} tenants, coordinator and owner",
            f"everybody pins the roster {digest[:16]}...; the mTLS certificates name their holders",
        )
        return holdings, digest

    @asynccontextmanager
    async def _arms(self, running: Federation) -> AsyncIterator[Arms]:
        task, killed = self.task, victims(self.settings, running.tenants)
        pool = ArmsPool(running.children, task.setting(running), federation.environment())
        await pool.start()
        survivors = tuple(
            tuple(t for t in running.tenants if number != KILL_ROUND or t not in killed)
            for number in range(1, self.settings.rounds + 1)
        )
        yield Arms(
            pool, task.measure, task.wanted, task.recipe, running.tenants, survivors,
            running.site.arms,
        )  # fmt: skip

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
        killed = victims(self.settings, running.tenants)
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
            self.settings.rounds, Kill(KILL_ROUND, killed) if killed else None, take_version
        )
        try:
            async with asyncio.timeout(_END_S):
                await owner.ended()
        except TimeoutError:
            raise ProcessFailed(
                f"the owner did not end within {_END_S:.0f} s of the last round: give fewer "
                f"--tenants, or a machine with less to do; {owner.tail()}"
            ) from None
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

    def _listen(self, child: Child, event: Event) -> None:
        if child.name.startswith("arms-"):
            arms_pool.listen(self.narrator, self.journal, child, event)
        else:
            federation.listen(self.narrator, self.journal, child, event)

    def _parameters(self, rounds: Sequence[RoundResult]) -> Mapping[str, Any]:
        recipe = dataclasses.asdict(self.task.recipe)
        return {
            "task": self.task.name,
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
