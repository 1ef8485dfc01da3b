"""Open rounds as the model's owner: publish, plan, take the sum, make the next version.

secagg owner run --config owner.toml                 # all rounds of the configuration
secagg owner round --config owner.toml               # one more round
secagg owner publish --config owner.toml             # the version that the next round starts from
secagg owner versions --config owner.toml --format json
secagg owner show --config owner.toml                # results so far
secagg owner show-base shipped                       # the digest that tenants pin
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from secagg.errors import ConfigError
from secagg_owner.config import Config, load_config, required_files
from secagg_owner.rounds import OwnerRun
from secagg_owner.service import OwnerConnection
from secagg_owner.state import OwnerFiles
from secagg_owner.subject import make_subject
from secagg_wire.event_log import EventLog
from secagg_wire.key_files import KeyFiles


def main(argv: list[str]) -> int:
    """Run `secagg owner ...`."""
    options = _parser().parse_args(argv)
    action: Callable[[argparse.Namespace], Any] = options.action
    _show(action(options), options.format)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="secagg owner",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--format", choices=("text", "json"), default="text")
    configured = argparse.ArgumentParser(add_help=False, parents=[common])
    configured.add_argument("--config", required=True, type=Path, metavar="FILE")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", parents=[configured], help="open rounds one after the other")
    run.add_argument("--rounds", type=int, metavar="R", help="instead of round.rounds")
    run.set_defaults(action=_run)
    for name, action, summary in (
        ("round", _one_round, "open one round"),
        ("publish", _publish, "publish the next round's version"),
        ("versions", _versions, "the coordinator's model versions"),
        ("show", _results, "results so far"),
    ):
        commands.add_parser(name, parents=[configured], help=summary).set_defaults(action=action)
    base = commands.add_parser("show-base", parents=[common], help="a base model's digest")
    base.add_argument("base", nargs="?", default="shipped", metavar="BASE")
    base.set_defaults(action=_show_base)
    return parser


def _run(options: argparse.Namespace) -> Any:
    return _connected(options, lambda run, _: run.run(options.rounds))


def _one_round(options: argparse.Namespace) -> Any:
    async def one(run: OwnerRun, _: OwnerConnection) -> list[dict[str, Any]]:
        await run.publish()
        return [await run.one_round()]

    return _connected(options, one)


def _publish(options: argparse.Namespace) -> Any:
    async def publish(run: OwnerRun, _: OwnerConnection) -> list[dict[str, Any]]:
        return [{"version": await run.publish()}]

    return _connected(options, publish)


def _versions(options: argparse.Namespace) -> Any:
    async def versions(_: OwnerRun, connection: OwnerConnection) -> list[dict[str, Any]]:
        return [
            {
                "version": found.version,
                "manifest_sha256": found.manifest_sha256.hex(),
                "bytes": found.total_size,
                "published_at_ms": found.published_at_ms,
            }
            for found in await connection.versions()
        ]

    return _connected(options, versions)


def _results(options: argparse.Namespace) -> Any:
    return OwnerFiles(load_config(options.config).data).results()


def _show_base(options: argparse.Namespace) -> Any:
    from secagg_models.base import load_base

    return [{"base": options.base, "digest": load_base(options.base).digest}]


def _connected(
    options: argparse.Namespace,
    work: Callable[[OwnerRun, OwnerConnection], Awaitable[list[dict[str, Any]]]],
) -> list[dict[str, Any]]:
    config = load_config(options.config)
    keys = KeyFiles(config.keys)
    if keys.party().role != "owner":
        raise ConfigError(f"{config.keys} holds the keys of {keys.party()}, not of an owner")
    for path in required_files(config):
        if not path.exists():
            raise ConfigError(f"{path} does not exist; the configuration names it")
    return asyncio.run(_with_connection(config, keys, work))


async def _with_connection(
    config: Config,
    keys: KeyFiles,
    work: Callable[[OwnerRun, OwnerConnection], Awaitable[list[dict[str, Any]]]],
) -> list[dict[str, Any]]:
    log = EventLog(level=config.log.level, file=config.log.file)
    connection = OwnerConnection(config.coordinator, keys, log)
    try:
        return await work(OwnerRun(config, make_subject(config), connection, log), connection)
    finally:
        await connection.close()


def _show(rows: list[dict[str, Any]], form: str) -> None:
    if form == "json":
        print(json.dumps(rows))
        return
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items() if value not in ("", {})))
