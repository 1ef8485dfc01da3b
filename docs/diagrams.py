"""Fill the generated parts of the docs from the code itself: `python docs/diagrams.py [--check]`.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end generated -->`. It is read
off the code's own tables, signatures and docstrings, so that it cannot say anything else than the
code does. `--check` changes nothing and exits with 1 if a page is out of date; tests/docs does the
same. Nothing here describes: the text around the parts is written by hand.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

from secagg import aggregator, errors, messages, participant, participant_steps
from secagg.errors import SecaggError, Step
from secagg.ledger import Act
from secagg.messages import BODIES, Downlink
from secagg.secret import SecretBytes

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
_PART = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end generated -->)", re.DOTALL)
_STATES = {kind: (acts, step) for kind, acts, step in participant._STATES.values()}


@dataclasses.dataclass(frozen=True, slots=True)
class Transition:
    """One pure step of the participant: `source` is None at the beginning."""

    source: type | None
    trigger: str
    function: str
    target: type


def transitions() -> Iterator[Transition]:
    """Read off the annotations of the step functions: state and message in, state out."""
    for name, function in vars(participant_steps).items():
        if not inspect.isfunction(function) or function.__module__ != participant_steps.__name__:
            continue
        hints = typing.get_type_hints(function)
        returned = typing.get_args(hints["return"])[:1] or (hints["return"],)
        if returned[0] not in _STATES or name.startswith("_"):
            continue
        heard = [hint.__name__ for hint in hints.values() if hint in typing.get_args(Downlink)]
        yield Transition(hints.get("state"), heard[0] if heard else "host", name, returned[0])


def participant_states() -> str:
    """The participant's states as a Mermaid diagram."""
    host = {
        "advertise_keys": "start()",
        "begin_upload": "submit()",
        "commit_upload": "finish_upload()",
    }
    lines = ["```mermaid", "stateDiagram-v2"]
    for move in transitions():
        source = "[*]" if move.source is None else move.source.__name__
        trigger = host[move.function] if move.trigger == "host" else move.trigger
        lines.append(f"    {source} --> {move.target.__name__}: {trigger} / {move.function}")
    return "\n".join([*lines, "    Answered --> [*]", "```"])


def participant_table() -> str:
    """What each state waits in, what the ledger holds by then, which secrets it still has."""
    rows = ["| state | waits in step | newest act in the ledger | secrets it still holds |"]
    rows.append("|---|---|---|---|")
    for state, (acts, step) in _STATES.items():
        kinds = ", ".join(f"`{kind}`" for kind in secrets_in(state)) or "none"
        rows.append(f"| `{state.__name__}` | `{step.label}` | `{Act(acts - 1).name}` | {kinds} |")
    return "\n".join(rows)


def secrets_in(kind: object) -> list[str]:
    """Names of the secret kinds that a record's annotations reach."""
    found: dict[str, None] = {}
    if isinstance(kind, type) and issubclass(kind, SecretBytes):
        found[kind.__name__] = None
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
        for hint in typing.get_type_hints(kind).values():
            found |= dict.fromkeys(secrets_in(hint))
    for argument in typing.get_args(kind):
        found |= dict.fromkeys(secrets_in(argument))
    return list(found)


def aggregator_steps() -> str:
    """Which messages the aggregator takes in each step, and which one ends the step."""
    returned = {step: kind.__name__ for kind, step in messages._ENDS.items()}
    rows = ["| step | the aggregator takes | and ends it with |", "|---|---|---|"]
    for step in Step:
        taken = [label for label in aggregator.Aggregator._handlers if BODIES[label].STEP is step]
        ends = f"`{returned[step]}`" if step in returned else "the sum"
        rows.append(f"| {int(step)} `{step.label}` | {_code(taken)} | {ends} |")
    return "\n".join(rows)


def module_map() -> str:
    """The core's modules with the first sentence of their docstrings."""
    rows = ["| module | what it is |", "|---|---|"]
    sources = [s for s in (ROOT / "secagg").glob("*.py") if not s.stem.startswith("__")]
    for source in sorted([*sources, ROOT / "secagg" / "testing" / "__init__.py"]):
        name = source.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__")
        rows.append(f"| `{name.replace('/', '.')}` | {_first_sentence(source)} |")
    return "\n".join(rows)


def error_tree() -> str:
    """Every error of the core, indented under its base, with the first line of its docstring."""
    lines: list[str] = []

    def visit(kind: type[SecaggError], depth: int) -> None:
        text = (kind.__doc__ or "").strip().splitlines()[0]
        lines.append(f"{'  ' * depth + kind.__name__:34} {text}")
        for child in kind.__subclasses__():
            if child.__module__ == errors.__name__:
                visit(child, depth + 1)

    visit(SecaggError, 0)
    return "\n".join(["```text", *lines, "```"])


def status_table() -> str:
    """Every error that crosses the wire, its gRPC status and what it means."""
    codec = importlib.import_module("secagg_wire.codec")
    rows = ["| error | gRPC status | meaning |", "|---|---|---|"]
    for kind, code in codec.STATUS.items():
        text = (kind.__doc__ or "").strip().splitlines()[0]
        rows.append(f"| `{kind.__name__}` | `{code.name}` | {text} |")
    return "\n".join(rows)


def settings_table(module: str) -> str:
    """Every key of a configuration file, with its type and its default."""
    config = importlib.import_module(module).Config
    rows = ["| key | type | default |", "|---|---|---|"]
    rows += [f"| `{key}` | {kind} | {default} |" for key, kind, default in _keys(config, "")]
    return "\n".join(rows)


def _keys(table: typing.Any, prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in table.model_fields.items():
        tables = [kind for kind in _alternatives(field.annotation) if hasattr(kind, "model_fields")]
        for kind in tables:
            only = f" (where {_choice(kind)})" if len(tables) > 1 else ""
            for key, type_name, default in _keys(kind, f"{prefix}{name}."):
                yield key, type_name + only, default
        if not tables:
            default = "needed" if field.is_required() else f"`{field.default!r}`"
            yield f"{prefix}{name}", _type_name(field.annotation), default


def _choice(table: typing.Any) -> str:
    """The key and value by which one of several tables is chosen."""
    return next(
        f"`{name} = {typing.get_args(field.annotation)[0]!r}`"
        for name, field in table.model_fields.items()
        if typing.get_origin(field.annotation) is typing.Literal and field.is_required()
    )


def _alternatives(annotation: object) -> tuple[typing.Any, ...]:
    """The members of a union or tuple, without `Annotated` and `None`; else the type itself."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _alternatives(arguments[0])
    if origin is typing.Literal or not arguments:
        return (annotation,)
    wanted = [one for one in arguments if one not in (type(None), Ellipsis)]
    return tuple(inner for one in wanted for inner in _alternatives(one))


def _type_name(annotation: object) -> str:
    names: list[str] = []
    for kind in _alternatives(annotation):
        literal = typing.get_origin(kind) is typing.Literal
        names += [repr(value) for value in typing.get_args(kind)] if literal else [kind.__name__]
    text = ", ".join(dict.fromkeys(names))
    return f"list of {text}" if typing.get_origin(annotation) is tuple else text


def _code(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _first_sentence(source: Path) -> str:
    text = (ast.get_docstring(ast.parse(source.read_bytes())) or "").split("\n\n")[0]
    sentence = re.split(r"(?<=[.])\s", " ".join(text.split()), maxsplit=1)[0]
    return sentence.replace("|", r"\|")


PARTS: dict[str, Callable[[], str]] = {
    "participant-states": participant_states,
    "participant-table": participant_table,
    "aggregator-steps": aggregator_steps,
    "module-map": module_map,
    "error-tree": error_tree,
    "status-table": status_table,
    "coordinator-settings": lambda: settings_table("secagg_coordinator.config"),
    "tenant-settings": lambda: settings_table("secagg_tenant.config"),
    "owner-settings": lambda: settings_table("secagg_owner.config"),
}


def fill(text: str) -> str:
    """A page's text with every generated part as it should be."""
    return _PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}\n{part[3]}", text)


def stale(pages: list[Path]) -> dict[Path, str]:
    """The pages whose generated parts are out of date, with what they should say."""
    filled = {page: fill(page.read_text(encoding="utf-8")) for page in pages}
    return {p: text for p, text in filled.items() if text != p.read_text(encoding="utf-8")}


def main(arguments: list[str]) -> int:
    """Fill all pages, or with `--check` name those that would change."""
    old = stale(sorted(DOCS.glob("*.md")))
    for page, text in old.items():
        print(f"out of date: {page.relative_to(ROOT)}")
        if "--check" not in arguments:
            page.write_text(text, encoding="utf-8")
    return 1 if old and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
