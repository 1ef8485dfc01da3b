"""The federation as processes: coordinator, owner and tenants, one kill, one return.

The driver starts the public commands, reads their logs, and interferes once: in the round that is
chosen for it, it sends SIGKILL to some tenants in the middle of their uploads. Their shares are
dealt by then. Under scheme `masking` their masks are in the others' uploads, so the survivors'
answers must rebuild their mask seeds; under `ckks` the sums of shares must leave them out. When
that round is over they are started again, with the same folders.

What happened is read off the coordinator's log and the evidence; nothing is assumed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rich.markup import escape

from secagg.cli import EXIT_ABORTED
from secagg.errors import ProtocolError
from secagg.transcript import verify_transcript
from secagg_demo.console import Narrator
from secagg_demo.evidence import collect_encoded, examine, round_folder
from secagg_demo.journal import Journal
from secagg_demo.processes import Child, Children, Event, Fields, ProcessFailed
from secagg_demo.results import Exclusion, Outcome, RoundResult
from secagg_demo.site import COORDINATOR, OWNER, Site
from secagg_wire.key_files import KeyFiles

_T = TypeVar("_T")
SECAGG = (sys.executable, "-m", "secagg")
_START_S = 300.0
_ROUND_S = 1200.0
_FROM, _TO = 0.3, 0.9


@dataclass(frozen=True, slots=True)
class Kill:
    """These tenants are killed in the middle of their uploads of this round."""

    round_number: int
    victims: tuple[str, ...]


@dataclass(eq=False)
class Federation:
    """The processes of one federation and what they have reported so far."""

    site: Site
    tenants: tuple[str, ...]
    children: Children
    narrator: Narrator
    journal: Journal
    running: dict[str, Child] = field(default_factory=dict)
    killed: dict[int, tuple[str, ...]] = field(default_factory=dict)

    async def start_coordinator(self, config: Mapping[str, Any]) -> int:
        """Start the coordinator; the port it listens on."""
        path = self.site.write_config(COORDINATOR, config)
        child = await self._start(COORDINATOR, "coordinator", "serve", "--config", str(path))
        event = await child.wait_for("listening", deadline_s=_START_S)
        return int(event.fields["port"])

    async def start_tenants(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        """Start all tenants; returns when each has opened its session."""
        for tenant, config in configs.items():
            self.site.write_config(tenant, config)
        await asyncio.gather(*(self.start_tenant(tenant) for tenant in configs))

    async def start_tenant(self, tenant: str) -> None:
        """Start one tenant from its folder, for the first time or again."""
        path = self.site.party(tenant) / "config.toml"
        child = await self._start(tenant, "tenant", "join", "--config", str(path))
        await child.wait_for("joining", deadline_s=_START_S)

    async def start_owner(self, config: Mapping[str, Any]) -> Child:
        """Start the owner, who opens all rounds, one after the other."""
        path = self.site.write_config(OWNER, config)
        child = await self._start(OWNER, "owner", "run", "--config", str(path))
        child.expected = frozenset({0, EXIT_ABORTED})
        return child

    async def run_rounds(
        self,
        rounds: int,
        kill: Kill | None,
        on_round: Callable[[int], Awaitable[None]] | None = None,
    ) -> list[RoundResult]:
        """Follow the rounds to their end, and interfere where `kill` says so.

        Ends early when a round is aborted: the owner does not go on then.
        """
        results = []
        for number in range(1, rounds + 1):
            results.append(await self._round(number, kill))
            if results[-1].outcome == "aborted":
                break
            if on_round is not None:
                await on_round(number)
        return results

    async def _round(self, number: int, kill: Kill | None) -> RoundResult:
        coordinator = self.running[COORDINATOR]
        opened = await self._hear("round opened", lambda f: f["round"] == number)
        context, place = opened.fields["context"], coordinator.events.index(opened)
        self.narrator.say(
            f"round {number}: the plan is offered to {opened.fields['n']} tenants",
            "each checks it against its own policy, trains on its own data, then joins",
        )
        victims = kill.victims if kill is not None and kill.round_number == number else ()
        killing = [asyncio.create_task(self._kill(victim, context)) for victim in victims]
        try:
            ended = await self._hear("round ended", lambda f: f["context"] == context)
        finally:
            for task in killing:
                task.cancel()
        await asyncio.gather(*killing, return_exceptions=True)
        self.killed[number] = tuple(v for v in victims if self.running[v].killed)
        # The last step's own line follows the line that ends the round.
        last = coordinator.events.index(ended)
        await self._hear("step ended", lambda f: f["context"] == context, after=last)
        log = coordinator.events[place:]
        result = self._result(number, context, ended, log)
        self._tell(result)
        for victim in self.killed[number] if result.outcome == "opened" else ():
            await self._bring_back(victim)
        return result

    async def _kill(self, victim: str, context: str) -> None:
        """SIGKILL in the middle of the upload."""
        child = self.running[victim]
        event = await child.wait_for(
            "upload_progress",
            deadline_s=_ROUND_S,
            where=lambda f: f["context"] == context and _FROM < f["sent"] / f["bytes"] < _TO,
        )
        child.kill()
        await child.ended()
        self.journal.end_all(victim)
        self.journal.mark(victim, "killed")
        self.narrator.clear(victim)
        share = event.fields["sent"] / event.fields["bytes"]
        self.narrator.say(
            f"[red]SIGKILL for {victim}[/red], {share:.0%} of its upload had left",
            "its masks are in the others' uploads: they must rebuild its mask seed from shares",
        )

    async def _bring_back(self, victim: str) -> None:
        self.narrator.say(
            f"{victim} is started again, with the same folder",
            "its ledger knows what it has said; it takes part in the next round",
        )
        self.journal.mark(victim, "back")
        await self.start_tenant(victim)

    async def _start(self, name: str, *arguments: str) -> Child:
        child = await self.children.start(name, [*SECAGG, *arguments], environment())
        self.running[name] = child
        return child

    async def _hear(self, name: str, where: Callable[[Fields], bool], after: int = 0) -> Event:
        """Wait for the coordinator, unless a child dies of itself in the meantime."""
        coordinator = self.running[COORDINATOR]
        hearing = coordinator.wait_for(name, deadline_s=_ROUND_S, where=where, after=after)
        return await self.unless_a_child_dies(asyncio.ensure_future(hearing))

    async def unless_a_child_dies(self, work: asyncio.Future[_T]) -> _T:
        """The work's result.

        Raises:
            ProcessFailed: a child ended unasked before the work was done.
        """
        dying = asyncio.create_task(self.children.first_death())
        try:
            await asyncio.wait((work, dying), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ProcessFailed(dying.result())
            return work.result()
        finally:
            work.cancel()
            dying.cancel()

    def _result(self, number: int, context: str, ended: Event, log: Sequence[Event]) -> RoundResult:
        mine = [event for event in log if event.fields.get("context") == context]
        outcome: Outcome = "opened" if ended.fields["outcome"] == "opened" else "aborted"
        survivors = tuple(ended.fields["survivors"]) if outcome == "opened" else ()
        for tenant in self.tenants:
            written = self.site.party(tenant) / "encoded"
            collect_encoded(self.site.evidence, number, tenant, written)
        return RoundResult(
            evidence=examine(self.site.evidence, number, survivors),
            outcome=outcome,
            reason=str(ended.fields["reason"]),
            survivors=survivors,
            killed=self.killed[number],
            excluded=tuple(
                Exclusion(e.fields["tenant"], e.fields["step"], e.fields["reason"])
                for e in mine
                if e.name == "tenant excluded"
            ),
            seconds={
                e.fields["step"]: float(e.fields["seconds"]) for e in mine if e.name == "step ended"
            },
            transcript_holds=self._transcript_holds(number) if outcome == "opened" else None,
        )

    def _transcript_holds(self, number: int) -> bool:
        data = (round_folder(self.site.evidence, number) / "transcript").read_bytes()
        roster = KeyFiles(self.site.party(COORDINATOR) / "keys").read_roster()
        try:
            verify_transcript(data, roster)
        except ProtocolError:
            return False
        return True

    def _tell(self, result: RoundResult) -> None:
        number = result.evidence.round_number
        if result.outcome == "aborted":
            self.narrator.say(
                f"[red]round {number} aborted, nothing opened[/red]: {escape(result.reason)}"
            )
            return
        exact = "equals" if result.evidence.exact_sum else "[red]DIFFERS FROM[/red]"
        self.narrator.say(
            f"[green]round {number} opened[/green] over {len(result.survivors)} of "
            f"{len(result.evidence.cohort)} tenants; the sum {exact} the sum of what they encoded",
            f"{result.evidence.scheme}: {result.evidence.length:,} values, "
            f"{result.evidence.bits_per_value:.2f} bits up for each; without: "
            f"{', '.join(e.tenant for e in result.excluded) or 'nobody'}",
        )


def listen(narrator: Narrator, journal: Journal, child: Child, event: Event) -> None:
    """Turn the nodes' events into bars and into the timeline."""
    fields, lane = event.fields, child.name
    match event.name:
        case "training":
            journal.begin(lane, "training", event.at)
            narrator.show(lane, "training", fields["done"], fields.get("of"))
        case "joined":
            journal.end(lane, "training", event.at)
            narrator.clear(lane)
        case "upload_started":
            journal.begin(lane, "upload", event.at)
        case "upload_progress":
            narrator.show(lane, "uploading", fields["sent"], fields["bytes"])
        case "upload_finished":
            journal.end(lane, "upload", event.at)
            narrator.clear(lane)
        case "step ended":
            journal.span(lane, fields["step"], event.at - fields["seconds"], event.at)
        case _:
            pass


def environment() -> dict[str, str]:
    """For children: one thread each, since the tenants share the cores already."""
    quiet = {
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore::FutureWarning",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "GRPC_VERBOSITY": "ERROR",
    }
    return os.environ | quiet
