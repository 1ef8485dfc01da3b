"""Run a coordinator, and look after its rounds.

  secagg coordinator serve --config coordinator.toml
  secagg coordinator round list --config coordinator.toml --format json
  secagg coordinator round show --config coordinator.toml 12
  secagg coordinator round abort --config coordinator.toml 12 --reason "wrong model"
  secagg coordinator tenants --config coordinator.toml

`round list` and `round show` read the database and work while the coordinator is down;
`round abort` and `tenants` ask the running process over its unix socket. Rounds are named by
number, or by the beginning of their context.

Exit codes: 0 done; 1 refused by the running coordinator; 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import grpc
from google.protobuf.json_format import MessageToDict

from secagg.cli import exit_code
from secagg.errors import ConfigError, SecaggError
from secagg_coordinator import log
from secagg_coordinator.config import Config, load
from secagg_coordinator.records import RoundRecord
from secagg_coordinator.server import Coordinator, control_socket
from secagg_coordinator.store import Store
from secagg_coordinator.views import status_of
from secagg_wire.codec import CallError, error_from_call
from secagg_wire.v1 import owner_service_pb2, owner_service_pb2_grpc, round_pb2

_CALL_TIMEOUT_S = 30.0
_SHOWN_CONTEXT = 16


def main(argv: list[str]) -> int:
    """`secagg coordinator ...`; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        return int(options.run(load(options.config), options))
    except SecaggError as error:
        print(f"secagg coordinator: {error}", file=sys.stderr)
        return exit_code(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="secagg coordinator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = _command(commands, "serve", "run until SIGTERM or SIGINT", _serve)
    serve.add_argument(
        "--insecure-loopback", action="store_true", help="for tests: no TLS, 127.0.0.1 alone"
    )
    serve.add_argument(
        "--ready-file", type=Path, help='write {"host": ..., "port": ...} there once listening'
    )
    rounds = commands.add_parser("round", help="list, show or abort rounds", allow_abbrev=False)
    verbs = rounds.add_subparsers(required=True, metavar="VERB")
    _formatted(_command(verbs, "list", "all rounds, newest first", _list))
    _named(_formatted(_command(verbs, "show", "one round", _show)))
    abort = _named(_formatted(_command(verbs, "abort", "end a running round", _abort)))
    abort.add_argument("--reason", default="aborted by the operator", help="told to tenants")
    _formatted(_command(commands, "tenants", "who is connected", _tenants))
    return parser


def _command(commands: Any, name: str, summary: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary, allow_abbrev=False
    )
    parser.add_argument("--config", type=Path, required=True, help="the coordinator's TOML file")
    parser.set_defaults(run=run)
    return parser


def _formatted(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--format", choices=("text", "json"), default="text")
    return parser


def _named(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("round", help="round number, or the beginning of its context in hex")
    return parser


def _serve(config: Config, options: argparse.Namespace) -> int:
    log.configure(config.log.level)
    return asyncio.run(_serve_until_signal(config, options))


async def _serve_until_signal(config: Config, options: argparse.Namespace) -> int:
    coordinator = await Coordinator.start(config, insecure_loopback=options.insecure_loopback)
    if options.ready_file is not None:
        ready = json.dumps({"host": config.listen.host, "port": coordinator.port})
        options.ready_file.write_text(ready + "\n", encoding="utf-8")
    signals: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number.name)
    log.event("stopping", signal=await signals.get())
    await _stop(coordinator, signals)
    return 0


async def _stop(coordinator: Coordinator, signals: asyncio.Queue[str]) -> None:
    """Drain; a second signal ends the wait."""
    draining = asyncio.create_task(coordinator.stop())
    again = asyncio.create_task(signals.get())
    await asyncio.wait((draining, again), return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        await coordinator.rounds.drain(0)
    again.cancel()
    await draining


def _list(config: Config, options: argparse.Namespace) -> int:
    statuses = [status_of(record) for record in _read_rounds(config)]
    if options.format == "json":
        print(json.dumps([_as_json(status) for status in statuses]))
    else:
        for status in statuses:
            print(_line(status))
    return 0


def _show(config: Config, options: argparse.Namespace) -> int:
    _print(status_of(_find(_read_rounds(config), options.round)), options.format)
    return 0


def _abort(config: Config, options: argparse.Namespace) -> int:
    record = _find(_read_rounds(config), options.round)
    request = owner_service_pb2.AbortRoundRequest(context=record.context, reason=options.reason)
    with _control_channel(config) as channel:
        stub = owner_service_pb2_grpc.OwnerServiceStub(channel)
        try:
            reply = stub.AbortRound(request, timeout=_CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise _explained(error, config) from None
    _print(reply.status, options.format)
    return 0


def _tenants(config: Config, options: argparse.Namespace) -> int:
    with _control_channel(config) as channel:
        stub = owner_service_pb2_grpc.OwnerServiceStub(channel)
        try:
            reply = stub.GetRoster(owner_service_pb2.GetRosterRequest(), timeout=_CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise _explained(error, config) from None
    rows = [
        {"tenant": p.tenant, "live": p.live, "last_heard_at_ms": p.last_heard_at_ms}
        for p in reply.presence
    ]
    if options.format == "json":
        print(json.dumps(rows))
    else:
        for row in rows:
            print(f"{row['tenant']:24} {'live' if row['live'] else 'silent'}")
    return 0


def _control_channel(config: Config) -> grpc.Channel:
    path = control_socket(config.data)
    if path is None:
        raise ConfigError(f"the path of {config.data} is too long for a unix socket")
    return grpc.insecure_channel(f"unix:{path}")


def _explained(error: grpc.RpcError, config: Config) -> SecaggError:
    call = cast(CallError, error)  # what a stub raises is both
    if call.code() is grpc.StatusCode.UNAVAILABLE:
        return ConfigError(f"no coordinator runs on {config.data}; start it with 'serve'")
    return error_from_call(call)


def _read_rounds(config: Config) -> tuple[RoundRecord, ...]:
    if not (config.data / "coordinator.sqlite").exists():
        raise ConfigError(f"there is no coordinator's database in {config.data}")
    store = Store.open(config.data)
    try:
        return store.rounds()
    finally:
        store.close()


def _find(records: Sequence[RoundRecord], name: str) -> RoundRecord:
    found = [
        record
        for record in records
        if name == str(record.round_number)
        or (len(name) >= 8 and record.context.hex().startswith(name.lower()))
    ]
    if len(found) != 1:
        raise ConfigError(f"{len(found)} rounds are called {name!r}; 'round list' shows them all")
    return found[0]


def _print(status: round_pb2.RoundStatus, form: str) -> None:
    if form == "json":
        print(json.dumps(_as_json(status)))
        return
    print(_line(status))
    for step in status.steps:
        label = round_pb2.Step.Name(step.step).removeprefix("STEP_").lower()
        print(f"  {label:18} {step.seconds:8.2f} s  {len(step.answered)} answered")
    if status.sum_root:
        print(f"  sum root           {status.sum_root.hex()}")
    for excluded in status.excluded:
        print(f"  without {excluded.tenant}: {excluded.reason}")


def _line(status: round_pb2.RoundStatus) -> str:
    outcome = round_pb2.RoundOutcome.Name(status.outcome).removeprefix("ROUND_OUTCOME_").lower()
    why = f": {status.reason}" if status.reason else ""
    return (
        f"round {status.round_number}  {status.context.hex()[:_SHOWN_CONTEXT]}  "
        f"{len(status.survivors)} of {len(status.cohort)}  {outcome}{why}"
    )


def _as_json(status: round_pb2.RoundStatus) -> dict[str, Any]:
    """The status with steps and outcomes by their plain names and the context in hex."""
    value: dict[str, Any] = MessageToDict(
        status, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for name in ("context", "sum_root", "transcript_sha256"):
        value[name] = getattr(status, name).hex()
    value["outcome"] = str(value["outcome"]).removeprefix("ROUND_OUTCOME_").lower()
    for name in ("round_number", "adapter_version", "opened_at_ms", "ended_at_ms"):
        value[name] = int(value[name])
    value["seconds"] = {_label(step["step"]): step["seconds"] for step in value["steps"]}
    for part in (value, *value["steps"], *value["excluded"]):
        part["step"] = _label(part["step"])
    for part in (*value["steps"], *value["uploads"]):
        for name in ("bytes_received", "bytes_sent", "committed_size", "total_size"):
            if name in part:
                part[name] = int(part[name])
    del value["deadline_in_ms"]
    return value


def _label(name: str) -> str:
    return name.removeprefix("STEP_").lower()
