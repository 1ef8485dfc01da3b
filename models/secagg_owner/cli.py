"""Open rounds as the model's owner: publish, plan, take the sum, make the next version.

secagg owner emulate my-model --edge 2 --keep 4 --out emulator --keys keys
secagg owner audit emulator --full my-model          # whether it may leave
secagg owner block my-model --block 1 --out block --keys keys    # one block alone
secagg owner run --config owner.toml                 # all rounds of the configuration
secagg owner round --config owner.toml               # one more round
secagg owner publish --config owner.toml             # the version that the next round starts from
secagg owner status --config owner.toml              # rounds, versions, what is next
secagg owner versions --config owner.toml            # this owner's: list, compare, rollback
secagg owner plug-in --config owner.toml --out tuned # the full model with a version in it
secagg owner published --config owner.toml           # the coordinator's versions
secagg owner show --config owner.toml                # results so far
secagg owner show-base shipped                       # the digest that tenants pin
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from secagg.errors import ConfigError
from secagg_owner import audit_cli, block_cli, emulate_cli, plug_in_cli, versions_cli
from secagg_owner.audit_gate import Passage, require_audit
from secagg_owner.config import BlockModel, Config, OffsiteModel, load_config, required_files
from secagg_owner.registry import Entry
from secagg_owner.rounds import OwnerRun
from secagg_owner.service import OwnerConnection
from secagg_owner.state import OwnerFiles
from secagg_owner.subject import make_subject
from secagg_wire.event_log import EventLog
from secagg_wire.key_files import KeyFiles, read_public
from secagg_wire.manifest import Manifest

if TYPE_CHECKING:
    from secagg_models.audit.policy import AuditPolicy

T = TypeVar("T")
Work = Callable[[OwnerRun, OwnerConnection], Awaitable[T]]


def main(argv: list[str]) -> int:
    """Run `secagg owner ...`."""
    options = _parser().parse_args(versions_cli.explicit(argv))
    action: Callable[[argparse.Namespace], Any] = options.action
    found = action(options)
    if isinstance(found, int):  # the command has printed by itself, and this is its exit code
        return found
    _show(found, options.format)
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
        ("published", _published, "the coordinator's model versions"),
        ("show", _results, "results so far"),
    ):
        command = commands.add_parser(name, parents=[configured], help=summary)
        command.set_defaults(action=action)
        if name in ("round", "publish"):
            _add_force(command)
    _add_force(run)
    base = commands.add_parser("show-base", parents=[common], help="a base model's digest")
    base.add_argument("base", nargs="?", default="shipped", metavar="BASE")
    base.set_defaults(action=_show_base)
    versions_cli.add_commands(commands, configured, _roll_back)
    plug_in_cli.add_commands(commands, common)
    emulate_cli.add_commands(commands, common, configured)
    audit_cli.add_commands(commands, common, configured)
    block_cli.add_commands(commands, common)
    return parser


def _add_force(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--force", action="store_true", help="use an emulator that its audit refuses"
    )
    command.add_argument("--reason", metavar="TEXT", help="why; it is kept in the lineage")


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


def _published(options: argparse.Namespace) -> Any:
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


def _roll_back(options: argparse.Namespace) -> Entry:
    async def back(run: OwnerRun, _: OwnerConnection) -> Entry:
        return await run.roll_back(options.number, options.reason)

    return _run_with(_checked(options), back)


def _results(options: argparse.Namespace) -> Any:
    return OwnerFiles(load_config(options.config).data).results()


def _show_base(options: argparse.Namespace) -> Any:
    from secagg_models.base import load_base

    return [{"base": options.base, "digest": load_base(options.base).digest}]


def _connected(options: argparse.Namespace, work: Work[list[dict[str, Any]]]) -> Any:
    """Run `work` with a connection; what needs an emulator passes the audit's gate first."""
    config = _checked(options)
    forced = _pass_gate(config, options) if hasattr(options, "force") else ""
    return _run_with(config, work, forced)


def _checked(options: argparse.Namespace) -> Config:
    config = load_config(options.config)
    party = KeyFiles(config.keys).party()
    if party.role != "owner":
        raise ConfigError(f"{config.keys} holds the keys of {party}, not of an owner")
    for path in required_files(config):
        if not path.exists():
            raise ConfigError(f"{path} does not exist; the configuration names it")
    return config


def _pass_gate(config: Config, options: argparse.Namespace) -> str:
    """Refuse a package that its gate does not let out; the reason where it was forced."""
    if bool(options.force) != bool(options.reason):
        raise ConfigError("--force and --reason TEXT go together")
    passage = _passage(config, options.reason)
    if passage is None or not passage.forced:
        return ""
    return f"{passage.reason} ({', '.join(passage.refused)})"


def _passage(config: Config, reason: str | None) -> Passage | None:
    """How the package passed; None where tenants are sent none."""
    match config.model:
        case OffsiteModel(emulator=folder, audit_policy=policy_file):
            return require_audit(
                folder, _digest_of(folder), _policy(policy_file), reason, data=config.data,
                owner_key=KeyFiles(config.keys).identity().public_key,
            )  # fmt: skip
        case BlockModel(package=Path() as folder, audit_policy=policy_file):
            from secagg_models.block_package import BlockMeta
            from secagg_owner.block_gate import require_block

            meta = BlockMeta.from_json(_manifest_of(folder).meta)
            return require_block(
                folder, _digest_of(folder), meta, _policy(policy_file), reason, data=config.data
            )
        case _:
            return None


def _manifest_of(folder: Path) -> Manifest:
    return Manifest.decode(read_public(folder / "manifest.json"))


def _digest_of(folder: Path) -> bytes:
    return _manifest_of(folder).digest


def _policy(file: Path | None) -> AuditPolicy:
    from secagg_models.audit.policy import AuditPolicy, load_policy

    return AuditPolicy() if file is None else load_policy(file)


def _run_with(config: Config, work: Work[T], forced: str = "") -> T:
    return asyncio.run(_with_connection(config, work, forced))


async def _with_connection(config: Config, work: Work[T], forced: str) -> T:
    log = EventLog(level=config.log.level, file=config.log.file)
    connection = OwnerConnection(config.coordinator, KeyFiles(config.keys), log)
    try:
        run = OwnerRun(config, make_subject(config), connection, log, forced)
        return await work(run, connection)
    finally:
        await connection.close()


def _show(rows: list[dict[str, Any]], form: str) -> None:
    if form == "json":
        print(json.dumps(rows))
        return
    for row in rows:
        told = (f"{key}={value}" for key, value in row.items() if value not in ("", {}, []))
        print("  ".join(told))
