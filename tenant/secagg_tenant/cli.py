"""Run a tenant: train on private text, take part in rounds, keep the plain delta to itself.

secagg tenant join --config tenant.toml
secagg tenant join --config tenant.toml --rounds 3 --log-level debug
secagg tenant status --config tenant.toml --format json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from secagg_tenant.config import Config, load_config
from secagg_tenant.connection import Connection
from secagg_tenant.session import Session
from secagg_tenant.store import read_report
from secagg_tenant.tenant import Tenant
from secagg_wire.event_log import EventLog
from secagg_wire.key_files import KeyFiles


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
    config = tenant.config
    connection = Connection(
        config.coordinator, KeyFiles(config.keys), tenant.name, tenant.log,
        config.patience.call_seconds,
    )  # fmt: skip
    work = asyncio.ensure_future(Session(tenant, connection).run(rounds))
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        tenant.log.event("stopped", tenant=tenant.name)
    finally:
        await connection.close()
    return 0


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
