"""Writes the tables of docs/mutation-testing.md from the verdicts, and reads why mutants survive.

`survivors.toml` explains the mutants that no test can or need notice; every other survivor is
listed as unexplained.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.mutation.citations import LAST_CHECK, checks_at
from tests.mutation.operators import Mutant, mutants

Results = Mapping[str, Mapping[str, Any]]
BEGIN = "<!-- {}: written by `python -m tests.mutation --report` -->"
END = "<!-- end -->"
DEAD = ("red", "slow")
# What leaves a check out, or a part of it, says more than a number moved by one.
_TELLING = (
    "raise", "clause", "statement", "comparison", "element", "condition", "return", "branch",
)  # fmt: skip


def known_mutants(root: Path, results: Results) -> list[tuple[Mutant, Mapping[str, Any]]]:
    """Today's mutants that have a verdict."""
    found = []
    for path in sorted((root / "secagg").rglob("*.py")):
        module = path.relative_to(root).as_posix()
        found += [
            (mutant, results[mutant.key])
            for mutant in mutants(module, path.read_bytes())
            if mutant.key in results
        ]
    return found


def reasons() -> dict[tuple[str, str, str], str]:
    """By module, text before and text after (spaces do not count): why no test notices."""
    entries = tomllib.loads((Path(__file__).parent / "survivors.toml").read_text())["survivor"]
    return {(e["module"], _flat(e["before"]), _flat(after)): e["why"]
            for e in entries for after in e["after"]}  # fmt: skip


def reason_for(mutant: Mutant, why: Mapping[tuple[str, str, str], str]) -> str:
    """Empty for a survivor that nobody has explained."""
    return why.get((mutant.module, _flat(mutant.before), _flat(mutant.after)), "")


def _flat(text: str) -> str:
    return re.sub(r"\s+", "", text)


def by_module(known: Iterable[tuple[Mutant, Mapping[str, Any]]]) -> str:
    """Mutants, and how many were noticed."""
    why = reasons()
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for mutant, verdict in known:
        kind = verdict["kind"]
        if kind not in DEAD:
            kind = "explained" if reason_for(mutant, why) else "open"
        rows[mutant.module][kind] += 1
    lines = [
        "| module | mutants | a test failed | a test never ended | unnoticed, explained | open |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    total: Counter[str] = Counter()
    for module, row in sorted(rows.items()):
        total += row
        lines.append(_row(f"`{module.removeprefix('secagg/')}`", row))
    return "\n".join([*lines, _row("all", total)])


def _row(name: str, row: Counter[str]) -> str:
    cells = [row.total(), row["red"], row["slow"], row["explained"], row["open"]]
    return f"| {name} | {' | '.join(map(str, cells))} |"


def survivors(known: Iterable[tuple[Mutant, Mapping[str, Any]]]) -> str:
    """Every mutant that lives, with its reason."""
    why = reasons()
    lines = ["| where | change | why no test notices |", "|---|---|---|"]
    for mutant, verdict in known:
        if verdict["kind"] not in DEAD:
            reason = reason_for(mutant, why) or "**open**"
            where = f"`{mutant.module.removeprefix('secagg/')}`, `{mutant.function or 'module'}`"
            lines.append(f"| {where} | {_change(mutant)} | {reason} |")
    return "\n".join(lines)


def _change(mutant: Mutant) -> str:
    before, after = (_short(text) for text in (mutant.before, mutant.after))
    return f"{before} to {after}"


def _short(text: str) -> str:
    flat = " ".join(text.split())
    while flat.startswith("(") and flat.endswith(")") and _balanced(flat[1:-1]):
        flat = flat[1:-1].strip()
    flat = flat if len(flat) <= 90 else flat[:60] + " ... " + flat[-25:]
    return f"`{flat}`".replace("|", "\\|")


def _balanced(text: str) -> bool:
    depth = 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if depth < 0:
            return False
    return depth == 0


# Where several lines make a check, the one that is the check: module, start of the text, change.
_THE_CHECK = {
    "C01": ("canonical.py", "raise self.error(f'{len(self._data) - self._place} trailing", "pass"),
    "C02": ("checks.py", "raise MalformedMessage(f'sender", "pass"),
    "C03": ("checks.py", "raise ProtocolError(f'{kind.LABEL} of", "pass"),
    "C09": ("checks.py", "raise MalformedMessage('a leaf does not hang", "pass"),
    "C11": (
        "participant_steps.py",
        "_commitments(me, dealer, me.index, opened) !=",
        "False",
    ),
    "C23": ("checks.py", "raise ProtocolError(f'{len(signatures)} signatures are below", "pass"),
    "C25": ("checks.py", "raise ProtocolError(f'its share of participant", "pass"),
    "C26": ("masking.py", "raise _wrong_dealing(plan, dealer)", "pass"),
    "C27": ("result.py", "raise FaultyParticipantOrCoordinator", "pass"),
    "C28": ("policy.py", "raise PolicyRefused(clause, reason)", "pass"),
    "C29": ("plan.py", "raise ConfigError(f'plan: it is required that", "pass"),
    "C36": ("shamir.py", "raise MalformedMessage('a share is not below", "pass"),
    "C37": ("transcript.py", "raise ProtocolError('the hash chain is broken", "pass"),
}


def _is_the_check(check: str, mutant: Mutant) -> bool:
    module, before, after = _THE_CHECK[check]
    begins = _flat(mutant.before).replace('"', "'").startswith(_flat(before))
    return begins and mutant.module == f"secagg/{module}" and mutant.after == after


def telling(root: Path, known: Iterable[tuple[Mutant, Mapping[str, Any]]]) -> dict[str, Mutant]:
    """For each numbered check the killed mutant that breaks it most plainly."""
    best: dict[str, tuple[tuple[int, ...], Mutant]] = {}
    sources: dict[str, str] = {}
    for mutant, verdict in known:
        source = sources.setdefault(mutant.module, (root / mutant.module).read_text())
        about = checks_at(source, mutant.line)
        if verdict["kind"] != "red" or mutant.module.startswith("secagg/testing"):
            continue
        rank = _TELLING.index(mutant.operator) if mutant.operator in _TELLING else len(_TELLING)
        for check in about:
            order = (len(about), rank, mutant.module != "secagg/checks.py", mutant.line)
            if check not in best or order < best[check][0]:
                best[check] = (order, mutant)
    chosen = {check: best[check][1] for check in best}
    for check, (module, _, _) in _THE_CHECK.items():
        path = root / "secagg" / module
        for mutant in mutants(f"secagg/{module}", path.read_bytes()):
            if _is_the_check(check, mutant):
                chosen[check] = mutant
    return {check: chosen[check] for check in sorted(chosen)}


def by_check(chosen: Mapping[str, Mutant], red: Mapping[str, Iterable[str]]) -> str:
    """One row for each check: how it was broken, and what went red."""
    lines = ["| check | broken in | change | tests that went red |", "|---|---|---|---|"]
    for number in range(1, LAST_CHECK + 1):
        check = f"C{number:02}"
        if check not in chosen:
            lines.append(f"| {check} | | not broken by any mutant that was run | |")
            continue
        mutant = chosen[check]
        names = sorted({name.split("::")[-1].partition("[")[0] for name in red.get(mutant.key, ())})
        shown = ", ".join(f"`{name}`" for name in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        where = f"`{mutant.module.removeprefix('secagg/')}`, `{mutant.function}`"
        lines.append(f"| {check} | {where} | {_change(mutant)} | {shown}{more} |")
    return "\n".join(lines)


def write(page: Path, tables: Mapping[str, str]) -> None:
    """Put each table between its marks."""
    text = page.read_text()
    for name, table in tables.items():
        begin = BEGIN.format(name)
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(END)
        text = f"{head}{begin}\n{table}\n{END}{tail}"
    page.write_text(text)
