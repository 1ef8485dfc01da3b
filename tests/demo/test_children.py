"""Children never outlive the demonstration, and what goes wrong is said in one error."""

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from secagg.errors import ConfigError
from secagg_demo import nodes
from secagg_demo.console import Narrator
from secagg_demo.federation import Federation
from secagg_demo.journal import Journal
from secagg_demo.processes import Children, ProcessFailed
from secagg_demo.site import Site, enrol, toml

pytestmark = pytest.mark.processes
WAITS = [
    sys.executable, "-c",
    'import sys; print(\'{"event": "up"}\', flush=True); sys.stdin.read()',
]  # fmt: skip
DRIVER = """
import asyncio, os, pathlib, sys
from secagg_demo.processes import Children, until_signal
async def main():
    async with Children(pathlib.Path(sys.argv[1])) as children:
        child = await children.start("waits", sys.argv[2:], os.environ)
        await child.wait_for("up", deadline_s=60)
        print(child.process.pid, flush=True)
        await asyncio.Event().wait()
try:
    asyncio.run(until_signal(main()))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_child_outlives_the_driver(tmp_path: Path, number: signal.Signals) -> None:
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux ends a process with its parent")
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, tmp_path, *WAITS], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    child = int(driver.stdout.readline())
    driver.send_signal(number)
    status = driver.wait(60)
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    _wait_until_gone(child)


def test_a_block_that_raises_ends_its_children(tmp_path: Path) -> None:
    pids = []

    async def run() -> None:
        async with Children(tmp_path) as children:
            child = await children.start("waits", WAITS, os.environ)
            await child.wait_for("up", deadline_s=60)
            pids.append(child.process.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())
    _wait_until_gone(*pids)


def test_a_silent_child_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    async def run() -> None:
        async with Children(tmp_path) as children:
            child = await children.start("waits", WAITS, os.environ)
            await child.wait_for("up", deadline_s=60)
            await child.wait_for("never", deadline_s=0.01)

    with pytest.raises(ProcessFailed, match=r"waits did not report 'never'.*(?s:.)*\"up\""):
        asyncio.run(run())


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    site = Site.prepare(tmp_path)
    enrol(site, ("ada", "bob", "cyd"))

    async def run(port: int) -> None:
        async with Children(site.logs) as children:
            federation = Federation(
                site, (), children, Narrator(Console(file=io.StringIO())), Journal()
            )
            await federation.start_coordinator(nodes.coordinator(site, port))

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ProcessFailed, match=f"cannot listen on 127.0.0.1:{port}"):
            asyncio.run(run(port))


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="an earlier demonstration did not make it"):
        Site.prepare(tmp_path)
    assert (tmp_path / "logs" / "mine.txt").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--tenants", "2"], "--tenants is 3 or more"),
        (["--rounds", "0"], "--rounds is 1 or more"),
        (["--kill", "9"], "--kill is between 0 and"),
        (["--seed", "-1"], "--seed is between"),
    ],
)
def test_options_that_cannot_work_are_refused(options: list[str], reason: str, tmp_path) -> None:
    from secagg_demo.cli import main

    with pytest.raises(ConfigError, match=reason):
        main([*options, "--out", str(tmp_path)])


def test_configuration_files_are_toml() -> None:
    import tomllib

    values = {"path": Path("a b"), "odd": 'quote " and \\ and \u00e9', "list": ["x", 1], "on": True}
    assert tomllib.loads(toml({**values, "table": {"rate": 0.01}})) == {
        **values, "path": "a b", "table": {"rate": 0.01},
    }  # fmt: skip


def _wait_until_gone(pid: int) -> None:
    """Until the process is no more, or is a zombie that nobody has reaped."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state in ("Z", "X"):
            return
        os.sched_yield()
    raise AssertionError(f"process {pid} still runs")
