"""docs/tutorial-own-model.md, followed from top to bottom: its code, its files, its commands.

Everything runs in the page's order in one folder. What runs until it is stopped is a process of
its own, and so is the owner's `run`; other commands run in this process, which saves their imports.
What the page shows below a command must be what it prints. Only the port and three placeholders
(the roster's digest, the package's, the owner's key) are changed.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from secagg.cli import main
from secagg_models.base import load_base

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial-own-model.md"
_FENCE = re.compile(r"^```(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_STAYS = (("coordinator", "serve"), ("tenant", "join"))
_LONG_S = 600
ROSTER, PACKAGE, OWNER = "1" * 64, "2" * 64, "3" * 64


@dataclass
class Walk:
    """The page, as far as it has been followed."""

    folder: Path
    replaced: dict[str, str]
    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    staying: list[subprocess.Popen[str]] = field(default_factory=list)
    printed: str = ""
    code: int = 0

    def follow(self, language: str, text: str) -> None:
        for placeholder, value in self.replaced.items():
            text = text.replace(placeholder, value)
        match language:
            case "python":
                exec(compile(text, str(PAGE), "exec"), self.namespace)
            case "toml":
                path = self.folder / text.splitlines()[0].removeprefix("# ")
                path.write_text(text, encoding="utf-8")
            case "console":
                for command, shown in commands(text):
                    self.say(command, shown)
            case _:
                raise AssertionError(f"nobody follows a block of {language}")

    def say(self, command: str, shown: list[str]) -> None:
        if command == "echo $?":
            assert str(self.code) == shown[0]
            self.code = 0
            return
        assert self.code == 0, f"the page does not say that this fails:\n{self.printed}"
        self.printed, self.code = self.output_of(shlex.split(command))
        assert in_order(shown, self.printed), f"{command}\nshown {shown}\nprinted {self.printed}"
        self.learn(command)

    def output_of(self, words: list[str]) -> tuple[str, int]:
        program, *arguments = words
        if program != "secagg":
            done = subprocess.run(words, capture_output=True, text=True, timeout=_LONG_S)
            return done.stdout + done.stderr, done.returncode
        if tuple(arguments[:2]) in _STAYS:
            self.stay(arguments)
            return "", 0
        if arguments[:2] == ["owner", "run"]:
            done = subprocess.run(
                secagg(arguments), capture_output=True, text=True, timeout=_LONG_S
            )
            return done.stdout + done.stderr, done.returncode
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main(arguments)
        return out.getvalue(), code

    def stay(self, arguments: list[str]) -> None:
        """Tenants may find the coordinator late, and the owner waits for tenants."""
        serves = arguments[0] == "coordinator"
        log = subprocess.PIPE if serves else subprocess.DEVNULL
        child = subprocess.Popen(secagg(arguments), stderr=log, text=True)
        self.staying.append(child)
        if serves:
            assert child.stderr is not None
            assert any(json.loads(line)["event"] == "listening" for line in child.stderr)

    def learn(self, command: str) -> None:
        """What people would tell one another by phone."""
        if command.startswith("secagg keys approve"):
            (digest,) = set(re.findall(r"\b[0-9a-f]{64}\b", self.roster()))
            self.replaced[ROSTER] = digest
        if command.startswith("secagg owner emulate"):
            self.replaced[PACKAGE] = named(self.printed, "manifest_sha256")
            self.replaced[OWNER] = named(self.printed, "owner_key")

    def roster(self) -> str:
        return str(json.loads((self.folder / "approved/roster.json").read_bytes())["digest"])


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a block with the lines that are shown below it."""
    joined = text.replace("\\\n", " ")
    for part in re.split(r"^\$ ", joined, flags=re.MULTILINE)[1:]:
        command, *shown = part.rstrip("\n").split("\n")
        yield " ".join(command.split()), shown


def in_order(shown: list[str], printed: str) -> bool:
    """Whether the lines appear one after the other; `...` stands for anything, and for lines."""
    lines = iter(printed.splitlines())
    wanted = [re.escape(line.strip()).replace(r"\.\.\.", ".*") for line in shown if line != "..."]
    return all(any(re.fullmatch(one, line.strip()) for line in lines) for one in wanted)


def named(printed: str, name: str) -> str:
    return str(re.findall(rf"\b{name}=(\w+)", printed)[-1])


def secagg(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "secagg", *arguments]


@contextlib.contextmanager
def ending(staying: list[subprocess.Popen[str]]) -> Iterator[None]:
    try:
        yield
    finally:
        for child in staying:
            child.terminate()
        for child in staying:
            child.communicate(timeout=_LONG_S)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.processes
def test_the_tutorial_leads_from_a_models_folder_to_a_tuned_version_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    walk = Walk(tmp_path, {"8470": str(free_port())})
    with ending(walk.staying):
        for language, text in _FENCE.findall(PAGE.read_text(encoding="utf-8")):
            walk.follow(language, text)
    assert [child.returncode for child in walk.staying] == [0] * 4
    assert_what_the_page_says(tmp_path, walk.namespace["losses"])


def assert_what_the_page_says(folder: Path, losses: Mapping[str, float]) -> None:
    """Beyond what it prints."""
    digests = {name: load_base(str(folder / name)).digest for name in ("my-model", "tuned")}
    assert load_base(str(folder / "my-model-again")).digest == digests["my-model"]
    assert digests["tuned"] != digests["my-model"]
    assert losses["tuned"] != losses["my-model"]
    lineages = [
        json.loads((folder / f"owner/data/models/{n}/lineage.json").read_bytes())
        for n in range(1, 6)
    ]
    assert [entry["kind"] for entry in lineages] == ["start", "round", "round", "rollback", "round"]
    assert lineages[4]["plugged_digest"] == digests["tuned"]
    assert all("a trial" in entry["forced"][0] for entry in lineages)
    forced = (folder / "owner/data/forced.jsonl").read_text().splitlines()
    assert {json.loads(line)["reason"] for line in forced} == {
        "a toy model: a trial of the tutorial"
    }
