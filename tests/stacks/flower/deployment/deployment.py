"""A Flower deployment on loopback: a SuperLink and a SuperNode for each tenant, real processes.

Enrolment is that of the documentation: `secagg keys` makes the tenants' folders, and the
certificate that the SuperLink shows. Every SuperNode has a session of its own, so that `kill` takes
it away with all that runs in it, as when its machine dies. Nothing leaves 127.0.0.1.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from secagg.cli import main as secagg

HUB = "hub"
_BIN = Path(sys.executable).parent
_POLL_S = 0.2
_GOODBYE_S = 10


class DeploymentError(Exception):
    """A process of the deployment did not do what it was started for; says which, with its log."""


def enrol(root: Path, tenants: Sequence[str]) -> str:
    """Folders `root/NAME` for the hub and every tenant, by `secagg keys`; the roster's digest."""
    keys("init", "--role", "authority", "--name", "example", "--dir", root / "authority")
    for name in (HUB, *tenants):
        role, hosts = ("coordinator", ("--host", "127.0.0.1")) if name == HUB else ("tenant", ())
        keys("init", "--role", role, "--name", name, "--dir", root / name)
        keys("request", "--dir", root / name, *hosts, "--out", root / f"{name}.request.json")
    requests = sorted(root.glob("*.request.json"))
    approved = root / "approved"
    keys("approve", *requests, "--authority", root / "authority", "--out", approved, "--yes")
    digest = str(json.loads((approved / "roster.json").read_bytes())["digest"])
    for name in (HUB, *tenants):
        keys("accept", approved / name, "--dir", root / name, "--roster-digest", digest)
    return digest


def keys(*arguments: object) -> None:
    """`secagg keys ...`, in this process."""
    with redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
        code = secagg(["keys", *map(str, arguments)])
    if code:
        raise DeploymentError(f"secagg keys {arguments[0]} failed: {said.getvalue()}")


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listened on a moment ago."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


@dataclass(slots=True)
class Deployment:
    """`with Deployment(root, tenants) as flower: ...`; logs lie in `root/logs`.

    `root` holds the folders that `enrol` made. `node_config` is what a tenant gives its SuperNode
    beside its own folder.
    """

    root: Path
    tenants: Sequence[str]
    node_config: Mapping[str, Mapping[str, str | int]] = field(default_factory=dict)
    poll_s: float = 0.1
    """How often a SuperNode looks for messages to work on (Flower's default: 1 s)."""
    _ports: list[int] = field(default_factory=list, init=False)
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, init=False)

    def __enter__(self) -> Deployment:
        (self.root / "logs").mkdir(exist_ok=True)
        self._ports = free_ports(1 + len(self.tenants))
        try:
            self._start_superlink()
            self._start_supernodes()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def address(self) -> str:
        """Where the SuperLink listens."""
        return f"127.0.0.1:{self._ports[0]}"

    def log(self, name: str) -> str:
        """All that a process has said so far: a tenant's name, "superlink", or "run-NUMBER"."""
        return (self.root / "logs" / f"{name}.log").read_text(errors="replace")

    def kill(self, tenant: str) -> None:
        """SIGKILL for the SuperNode and everything that it started."""
        os.killpg(self._running[tenant].pid, signal.SIGKILL)
        self._running.pop(tenant).wait()

    def pid(self, name: str) -> int:
        """The process of a tenant's SuperNode, or of the "superlink"."""
        return self._running[name].pid

    def command(self, name: str) -> list[str]:
        """What a process was started with."""
        return list(map(str, self._running[name].args))  # type: ignore[arg-type]

    def run(self, app: Path, *, within_s: float, **config: str | int | float | bool) -> str:
        """`flwr run`, awaited; the run's state at the end, such as finished:completed.

        Raises:
            DeploymentError: it did not start, or did not end in time.
        """
        return self.wait(self.start_run(app, **config), within_s=within_s)

    def start_run(self, app: Path, **config: str | int | float | bool) -> str:
        """`flwr run`; the run's number."""
        overrides = " ".join(
            f"{name.replace('_', '-')}={json.dumps(value)}" for name, value in config.items()
        )
        chosen = ("--run-config", overrides) if overrides else ()
        started = self._flwr("run", str(app), "here", *chosen, "--format", "json")
        return str(started["run-id"])

    def wait(self, run: str, *, within_s: float) -> str:
        """Until a run has finished; how it ended."""
        log = self.root / "logs" / f"run-{run}.log"
        with log.open("wb") as out, suppress(subprocess.TimeoutExpired):
            # It ends with the run, and does not start Flower's command anew for every look.
            subprocess.run(
                [str(_BIN / "flwr"), "log", run, "here", "--stream"],
                stdout=out, stderr=subprocess.STDOUT, env=self._environment("user"),
                timeout=within_s, check=False,
            )  # fmt: skip
        if (status := self.status(run)).startswith("finished"):
            return status
        said = self.said(run)[-4000:]
        raise DeploymentError(f"run {run} is {status} after {within_s} s; it said: {said}")

    def status(self, run: str) -> str:
        """As `flwr ls` shows it."""
        (shown,) = self._flwr("ls", "here", "--run-id", run, "--format", "json")["runs"]
        return str(shown["status"])

    def said(self, run: str) -> str:
        """The log of a run's ServerApp, as far as `wait` has seen it."""
        return self.log(f"run-{run}")

    def _start_superlink(self) -> None:
        hub = self.root / HUB
        self._start(
            "superlink", "flower-superlink", "--host", "127.0.0.1", "--port", str(self._ports[0]),
            "--ssl-certfile", str(hub / "tls.pem"), "--ssl-keyfile", str(hub / "tls.key"),
            "--ssl-ca-certfile", str(hub / "ca.pem"), "--disable-runtime-dependency-installation",
        )  # fmt: skip
        self._home("user").joinpath("config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{self.address}"\n'
            f'root-certificates = "{hub / "ca.pem"}"\n'
        )
        self._until_listening("superlink", self._ports[0])

    def _start_supernodes(self) -> None:
        for port, tenant in zip(self._ports[1:], self.tenants, strict=True):
            folder = self.root / tenant
            own = {"secagg-folder": str(folder), **self.node_config.get(tenant, {})}
            self._start(
                tenant, "flower-supernode", "--superlink", self.address,
                "--root-certificates", str(folder / "ca.pem"), "--port", str(port),
                "--node-config", " ".join(f"{k}={json.dumps(v)}" for k, v in own.items()),
            )  # fmt: skip
        for tenant in self.tenants:
            self.until(lambda tenant=tenant: "SuperNode ID" in self.log(tenant), tenant)

    def _start(self, name: str, command: str, *arguments: str) -> None:
        with (self.root / "logs" / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                [str(_BIN / command), *arguments],
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=self._environment(name), start_new_session=True,
            )  # fmt: skip

    def _environment(self, name: str) -> dict[str, str]:
        """Each party has a Flower home of its own, and nobody calls home."""
        return {
            **os.environ,
            "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(self._home(name)),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(self.poll_s),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }

    def _home(self, name: str) -> Path:
        home = self.root / "homes" / name
        home.mkdir(parents=True, exist_ok=True)
        return home

    def _flwr(self, *arguments: str) -> dict[str, object]:
        said = self._command(*arguments).stdout
        answer = json.loads(said[said.index("{") :])
        if not answer.get("success", True):
            raise DeploymentError(f"flwr {arguments[0]}: {answer.get('error-message', said)}")
        return answer  # type: ignore[no-any-return]

    def _command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(_BIN / "flwr"), *arguments],
            capture_output=True, text=True, env=self._environment("user"), timeout=60, check=False,
        )  # fmt: skip
        if done.returncode:
            raise DeploymentError(f"flwr {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done

    def _until_listening(self, name: str, port: int) -> None:
        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        self.until(listens, name)

    def until(self, happened: Callable[[], bool], name: str, *, within_s: float = 60) -> None:
        """Until that is true; `name` is the process that has to live for it.

        Raises:
            DeploymentError: it died, or it took too long.
        """
        deadline = time.monotonic() + within_s
        while not happened():
            if self._running[name].poll() is not None or time.monotonic() > deadline:
                raise DeploymentError(f"{name} did not get there: {self.log(name)[-4000:]}")
            time.sleep(_POLL_S)

    def _stop(self) -> None:
        """SuperNodes first: they say good-bye to a SuperLink that is there."""
        hub = [self._running.pop(name) for name in ("superlink",) if name in self._running]
        for processes in (list(self._running.values()), hub):
            for process in processes:
                process.terminate()
            for process in processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=_GOODBYE_S)
                _kill_group(process.pid)
                process.wait()
        self._running.clear()


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def write_app(folder: Path, sources: Path, *, client: str, server: str, **config: object) -> Path:
    """A Flower app in `folder`, made of the package `sources`; what `flwr run` takes.

    `client` and `server` are "module:object" in that package; `config` is the run configuration.
    """
    shutil.copytree(sources, folder / sources.name, ignore=shutil.ignore_patterns("__pycache__"))
    lines = [f"{name.replace('_', '-')} = {json.dumps(value)}" for name, value in config.items()]
    (folder / "pyproject.toml").write_text(
        f"""[project]
name = "{sources.name.replace("_", "-")}"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "example"

[tool.flwr.app.components]
clientapp = "{sources.name}.{client}"
serverapp = "{sources.name}.{server}"

[tool.flwr.app.config]
"""
        + "\n".join(lines)
        + "\n"
    )
    return folder
