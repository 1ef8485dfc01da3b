"""The `secagg` command: finds a sub-command, loads only that one, turns errors into exit codes.

Sub-commands are entry points of the group `secagg.commands`, so the core knows no node, and other
distributions can add commands. The contract is `main(argv: list[str]) -> int`, where `argv` holds
what follows the command's name. The value `module:function [extra]` names the extra that carries
its dependencies.

`secagg --help` imports no command: a summary is the first line of the module's docstring, read
from its source. This module does not configure logging, parse a command's own arguments, or catch
what is not an error of ours: an unexpected exception is a bug and keeps its traceback.

Exit codes: 0 done; 2 wrong usage or configuration; 3 an extra is not installed; 4 a peer broke the
protocol; 5 the round was aborted; 130 interrupted; 141 the reader of our output went away.
"""

import argparse
import ast
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points, version
from itertools import takewhile
from pathlib import Path

COMMAND_GROUP = "secagg.commands"

EXIT_USAGE = 2
EXIT_MISSING_EXTRA = 3
EXIT_PROTOCOL = 4
EXIT_ABORTED = 5
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

Command = Callable[[list[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `secagg COMMAND ...` and return the exit code.

    Raises: SystemExit from argparse, on `--help`, `--version` and wrong options.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = list(takewhile(lambda argument: argument.startswith("-"), arguments))
    commands = {point.name: point for point in entry_points(group=COMMAND_GROUP)}
    parser = _parser(commands, with_summaries=not {"-h", "--help"}.isdisjoint(options))
    parser.parse_args(options)
    if len(options) == len(arguments):
        return _fail(f"{parser.format_usage()} (secagg --help lists the commands)", EXIT_USAGE)
    name, *rest = arguments[len(options) :]
    if name not in commands:
        return _fail(f"secagg: {_unknown(name, list(commands))}", EXIT_USAGE)
    return _run(commands[name], rest)


def _parser(commands: dict[str, EntryPoint], *, with_summaries: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="secagg",
        usage="secagg [--help] [--version] COMMAND ...",
        description="Secure aggregation for federated LoRA fine-tuning.",
        epilog=_command_list(commands) if with_summaries else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"secagg {version('secagg')}")
    return parser


def _command_list(commands: dict[str, EntryPoint]) -> str:
    width = max(map(len, commands), default=0)
    lines = (f"  {name:{width}}  {summary_of(point)}" for name, point in commands.items())
    return "\n".join(["commands:", *lines, "", "secagg COMMAND --help says more."])


def summary_of(point: EntryPoint) -> str:
    """Return the first docstring line of a command's module without importing any package."""
    source = _source_of(point.module)
    if source is None:
        return "(no summary)"
    docstring = ast.get_docstring(ast.parse(source.read_bytes()))
    return docstring.splitlines()[0] if docstring else "(no summary)"


def _source_of(module: str) -> Path | None:
    # importlib.util.find_spec would import the parents; PathFinder takes their paths instead.
    path: Sequence[str] | None = None
    origin: str | None = None
    parents: list[str] = []
    for part in module.split("."):
        spec = PathFinder.find_spec(".".join([*parents, part]), path)
        if spec is None:
            return None
        parents.append(part)
        path, origin = spec.submodule_search_locations, spec.origin
    return Path(origin) if origin and origin.endswith(".py") else None


def _run(point: EntryPoint, arguments: list[str]) -> int:
    from secagg.errors import SecaggError

    try:
        command: Command = point.load()
        return command(arguments)
    except ModuleNotFoundError as error:
        if _is_ours(error.name, point):
            raise
        return _fail(_missing(error.name, point), EXIT_MISSING_EXTRA)
    except SecaggError as error:
        return _fail(f"secagg {point.name}: {error}", exit_code(error))
    except KeyboardInterrupt:
        return _fail(f"secagg {point.name}: interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The interpreter flushes stdout at exit and would complain about the same pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def exit_code(error: Exception) -> int:
    """Return the documented exit code for an error of secagg's hierarchy."""
    from secagg.errors import ConfigError, ProtocolError, RoundAborted, UsageError

    match error:
        case ConfigError() | UsageError():
            return EXIT_USAGE
        case ProtocolError():
            return EXIT_PROTOCOL
        case RoundAborted():
            return EXIT_ABORTED
        case _:
            return 1


def _is_ours(module: str | None, point: EntryPoint) -> bool:
    """A missing module of the command's own distribution is a bug, not a missing extra."""
    own = {"secagg", point.module.partition(".")[0]}
    top_level = (module or "").partition(".")[0]
    return top_level in own or top_level.startswith("secagg_")


def _missing(module: str | None, point: EntryPoint) -> str:
    extra = ",".join(point.extras) or "all"
    package = point.dist.name if point.dist else "secagg"
    return (
        f"secagg {point.name}: the Python module '{module}' is not installed; "
        f"install it with: pip install '{package}[{extra}]'"
    )


def _unknown(name: str, known: list[str]) -> str:
    from difflib import get_close_matches

    match get_close_matches(name, known, n=1):
        case [close]:
            return f"there is no command '{name}'; did you mean '{close}'?"
        case _:
            return f"there is no command '{name}'; there are: {', '.join(known)}"


def _fail(message: str, code: int) -> int:
    print(" ".join(message.split()), file=sys.stderr)
    return code
