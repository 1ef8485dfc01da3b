"""The README and the pages under docs hold what they say: code runs, links lead, commands exist,
configurations are valid, and what is generated from the code is what the code says now.
"""

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Its code needs its commands in between: test_own_model.py follows it whole.
WALKED = {ROOT / "docs" / "tutorial-own-model.md"}
_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block, and the line on which its text begins."""

    page: Path
    text: str
    line: int

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for fence in _FENCE.finditer(text):
        if fence[1] in languages:
            yield Block(page, fence[2], text.count("\n", 0, fence.start(2)) + 1)


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


@cache
def script(name: str) -> ModuleType:
    """One of the scripts that lie beside the pages; they are no package."""
    spec = spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def helps() -> dict[str, str]:
    return script("cli_reference").helps()


def named(pages: list[Path]) -> list[object]:
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in pages]


@pytest.mark.parametrize(
    "page", named([p for p in PAGES if p not in WALKED and any(blocks(p, "python"))])
)
def test_python_blocks_of_a_page_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        code = "\n" * (block.line - 1) + block.text
        exec(compile(code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", named(PAGES))
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    broken = [link for link in links(page) if not leads_somewhere(page, link)]
    assert broken == []


def links(page: Path) -> Iterator[str]:
    for match in _LINK.finditer(prose(page)):
        target = match[1] or match[2]
        if not target.startswith(("https://", "http://", "mailto:")):
            yield target


def leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = page if not path else (page.parent / path)
    if not target.exists():
        return False
    return not anchor or anchor in {slug(heading) for heading in _HEADING.findall(prose(target))}


def slug(heading: str) -> str:
    """As GitHub makes an anchor of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@pytest.mark.parametrize("page", named([p for p in PAGES if any(blocks(p, "console", "sh"))]))
def test_commands_shown_exist_with_the_options_shown(page: Path) -> None:
    wrong = [
        f"{block}: {command}"
        for block in blocks(page, "console", "sh")
        for command in commands(block)
        if not exists(shlex.split(command, comments=True))
    ]
    assert wrong == []


def commands(block: Block) -> Iterator[str]:
    """Lines that call secagg, with continued lines joined and prompts taken off."""
    for line in block.text.replace("\\\n", " ").splitlines():
        bare = line.removeprefix("$ ").strip()
        if bare.startswith("secagg "):
            yield bare


def exists(words: list[str]) -> bool:
    known = helps()
    length = max((n for n in range(1, len(words) + 1) if " ".join(words[:n]) in known), default=0)
    if length < 2:
        return words[1].startswith("-") and words[1] in known["secagg"]
    shown = known[" ".join(words[:length])]
    takes_another = "COMMAND" in shown.split("\n\n")[0] and length < len(words)
    options = [word.partition("=")[0] for word in words[length:] if word.startswith("--")]
    return all(option in shown for option in options) and not takes_another


@pytest.mark.parametrize("page", named([p for p in PAGES if any(blocks(p, "toml"))]))
def test_configurations_shown_are_valid(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "toml"):
        title = block.text.splitlines()[0].removeprefix("#").strip()
        path = tmp_path / Path(title).name
        path.write_text(block.text, encoding="utf-8")
        loader_for(path.name)(path, {})


def loader_for(name: str):  # type: ignore[no-untyped-def]
    """By the file's name, which the first line of an example says."""
    if name == "policy.toml":
        from secagg_embed.folder import read_policy

        return lambda path, _: read_policy(path, bytes(32))
    if name.startswith("coordinator"):
        from secagg_coordinator.config import load

        return load
    if name.startswith("tenant"):
        from secagg_tenant.config import load_config as load_tenant

        return load_tenant
    from secagg_owner.config import load_config as load_owner

    return load_owner


def test_parts_generated_from_the_code_are_up_to_date() -> None:
    old = script("diagrams").stale(sorted((ROOT / "docs").glob("*.md")))
    assert [page.name for page in old] == [], "run: python docs/diagrams.py"


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse words help differently")
def test_command_line_page_is_up_to_date() -> None:
    reference = script("cli_reference")
    written = reference.PAGE.read_text(encoding="utf-8")
    assert written == reference.page(), "run: python docs/cli_reference.py"


def test_every_page_is_linked_from_the_index() -> None:
    linked = {(ROOT / "docs" / link).resolve() for link in links(ROOT / "docs" / "index.md")}
    pages = {page for page in PAGES if page.parent == ROOT / "docs" and page.name != "index.md"}
    assert pages - linked == set()


def test_every_event_that_nodes_log_is_explained() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    logged = {name for source in NODE_SOURCES for name in events_logged(source)}
    assert sorted(name for name in logged if f"`{name}`" not in page) == []


NODE_SOURCES = [
    source
    for folder in ("coordinator/secagg_coordinator", "tenant/secagg_tenant", "models/secagg_owner")
    for source in sorted((ROOT / folder).glob("*.py"))
]


def events_logged(source: Path) -> Iterator[str]:
    """First arguments of `log.event`, `log.warning` and `log.failure`."""
    for node in ast.walk(ast.parse(source.read_bytes())):
        match node:
            case ast.Call(
                func=ast.Attribute(value=target, attr="event" | "warning" | "failure"),
                args=[ast.Constant(value=str(name)), *_],
            ) if ast.unparse(target).endswith("log"):
                yield name


_CHECK = re.compile(r"^\| (C\d\d) \|.*\| ([^|]*) \|$", re.MULTILINE)
_CITED = re.compile(r"\bC(\d\d)\b(?:\s+to\s+C(\d\d)\b)?")


def checks() -> dict[str, list[str]]:
    """The protocol's checks, with the names of what makes them."""
    page = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    return {number: re.findall(r"`([^`]+)`", places) for number, places in _CHECK.findall(page)}


def test_every_check_names_code_that_exists() -> None:
    defined = {name for source in CORE_SOURCES for name in definitions(source)}
    assert checks()
    missing = [(n, place) for n, places in checks().items() for place in places
               if place not in defined]  # fmt: skip
    assert missing == []


CORE_SOURCES = sorted(
    path
    for path in (*(ROOT / "secagg").rglob("*.py"), *(ROOT / "embed" / "secagg_embed").glob("*.py"))
    if "testing" not in path.parts and path.stem != "testing"
)


def definitions(source: Path) -> Iterator[str]:
    """`module.name`, and `Class.method` for classes: what the table of checks may call a place."""
    for node in ast.parse(source.read_bytes()).body:
        match node:
            case ast.FunctionDef(name=name):
                yield f"{source.stem}.{name}"
            case ast.ClassDef(name=name, body=body):
                yield f"{source.stem}.{name}"
                yield from (f"{name}.{m.name}" for m in body if isinstance(m, ast.FunctionDef))


def test_every_check_is_cited_in_the_core() -> None:
    cited = {number for source in CORE_SOURCES for number in citations(source)}
    assert set(checks()) - cited == set()


def citations(source: Path) -> Iterator[str]:
    for first, last in _CITED.findall(source.read_text(encoding="utf-8")):
        yield from (f"C{number:02}" for number in range(int(first), int(last or first) + 1))


def test_tests_named_in_the_threat_model_exist() -> None:
    page = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    sources = [source.read_text(encoding="utf-8") for source in (ROOT / "tests").rglob("test_*.py")]
    named_there = set(re.findall(r"`(test_\w+)`", page))
    assert named_there
    assert {name for name in named_there if not any(f"def {name}(" in s for s in sources)} == set()
