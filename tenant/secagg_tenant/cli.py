"""Run a tenant: train on private text, take part in rounds, keep the plain delta to itself.

secagg tenant join --config tenant.toml
secagg tenant join --config tenant.toml --rounds 3 --log-level debug
secagg tenant status --config tenant.toml --format json
secagg tenant recompute --config tenant.toml 3 --all     # while 'join' does not run
secagg tenant admit emulator --config tenant.toml        # before a tenant trains an emulator
secagg tenant versions --config tenant.toml              # also approve N, reject N, rollback

`join` ends with exit code 4 when it has refused a model version whose sum could not be recomputed,
or the emulator that it was to train; `admit` when it has refused the package.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from secagg.cli import EXIT_PROTOCOL
from secagg.errors import ConfigError
from secagg_tenant import admit_cli, online_cli
from secagg_tenant.config import Config, load_config
from secagg_tenant.connection import Connection
from secagg_tenant.recompute import SumCheck
from secagg_tenant.session import Session
from secagg_tenant.store import read_report
from secagg_tenant.tenant import Tenant
from secagg_wire.event_log import EventLog
from secagg_wire.key_files import KeyFiles
from secagg_wire.manifest import Origin
from secagg_wire.recomputation import Mode


def main(argv: list[str]) -> int:
    """Run `secagg tenant ...`."""
    options = _parser().parse_args(argv)
    action: Callable[[argparse.Namespace], int] = options.action
    return action(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="secagg tenant",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", required=True, type=Path, metavar="FILE")
    common.add_argument("--format", choices=("text", "json"), default="text")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    join = commands.add_parser("join", parents=[common], help="take part in rounds")
    join.add_argument("--rounds", type=int, metavar="R", help="stop after R rounds")
    join.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    join.set_defaults(action=_join)

    status = commands.add_parser("status", parents=[common], help="rounds, versions, audit log")
    status.set_defaults(action=_status)

    check = commands.add_parser(
        "recompute", parents=[common], help="compute a round's announced sum again"
    )
    check.add_argument("round", type=int, metavar="ROUND", help="the round's number")
    check.add_argument("--all", action="store_true", help="every leaf, not some at random")
    check.add_argument("--leaves", type=int, metavar="N", help="instead of policy.recompute_leaves")
    check.set_defaults(action=_recompute)
    admit_cli.add_commands(commands)
    online_cli.add_commands(commands)
    return parser


def _join(options: argparse.Namespace) -> int:
    config = load_config(options.config)
    level = options.log_level or config.log.level
    on_terminal = sys.stderr.isatty() and options.format == "text" and config.log.file is None
    if not on_terminal:
        return _run(config, EventLog(level=level, file=config.log.file), options.rounds)
    from rich.console import Console

    from secagg_tenant.console import ProgressBars

    bars = ProgressBars(Console(stderr=True))
    log = EventLog(level=level, file=config.data / "tenant.log.jsonl")
    log.listen(bars.listen)
    bars.start()
    try:
        return _run(config, log, options.rounds)
    finally:
        bars.stop()


def _run(config: Config, log: EventLog, rounds: int | None) -> int:
    with Tenant.open(config, log) as tenant:
        return asyncio.run(_take_part(tenant, rounds))


async def _take_part(tenant: Tenant, rounds: int | None) -> int:
    """Until the rounds are done or a signal comes; a live round is finished by the next process."""
    connection = _connect(tenant)
    session = Session(tenant, connection)
    work = asyncio.ensure_future(session.run(rounds))
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        tenant.log.event("stopped", tenant=tenant.name)
    finally:
        await connection.close()
    return EXIT_PROTOCOL if session.versions_refused else 0


def _recompute(options: argparse.Namespace) -> int:
    config = load_config(options.config)
    log = EventLog(level="error", file=config.log.file)
    with Tenant.open(config, log) as tenant:
        claim = tenant.store.announced_in(options.round)
        if claim is None:
            raise ConfigError(f"this tenant has heard no sum of a round {options.round}")
        facts = asyncio.run(_recomputed(tenant, claim, options))
    if options.format == "json":
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        print(f"{name:>14}  {value}")
    return 0


async def _recomputed(
    tenant: Tenant, claim: Origin, options: argparse.Namespace
) -> dict[str, object]:
    policy = tenant.config.policy
    connection = _connect(tenant)
    check = SumCheck(tenant, connection)
    try:
        fetched = await check.fetch(claim)
        mode: Mode = "all" if options.all else "random"
        done = await check.recompute(
            claim, fetched, mode, options.leaves or policy.recompute_leaves
        )
    finally:
        await connection.close()
    return {
        "round": done.verified.plan.round_number,
        "context": claim.context.hex(),
        "sum_root": claim.sum_root.hex(),
        "leaves": done.leaves,
        "of": done.of,
        "survivors": list(done.verified.survivors),
        "own_part": done.own_part,
    }


def _connect(tenant: Tenant) -> Connection:
    config = tenant.config
    return Connection(
        config.coordinator, KeyFiles(config.keys), tenant.name, tenant.log,
        config.patience.call_seconds,
    )  # fmt: skip


def _status(options: argparse.Namespace) -> int:
    report = read_report(load_config(options.config).data / "tenant.sqlite")
    if options.format == "json":
        print(json.dumps(report))
        return 0
    for title, rows in report.items():
        print(f"{title}:")
        for row in rows:
            print("  " + "  ".join(f"{k}={v}" for k, v in row.items() if v not in (None, "")))
    return 0
