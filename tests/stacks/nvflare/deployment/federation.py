"""A real NVFLARE federation on this machine: provisioned, one process a site, mTLS on loopback.

`nvflare provision` makes the startup kits, as an administrator would; the server and every site run
from their own kit in a process group of their own, and jobs are submitted by NVFLARE's admin API.
Each job then runs in further processes, one at the server and one at each site. Site-local files
(`local/privacy.json`, `local/resources.json`, `local/authorization.json`) are the site's own.

Nothing here leaves the machine, and nothing outside `root` is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil  # NVFLARE needs it

ADMIN = "admin@example.com"
_PROJECT = "example"
_READY_S = 120.0
_POLL_S = 0.25
_LEAVE_S = 3.0
# After a job's end the server waits so long for word from sites that are gone: 900 s by default.
_IMPATIENCE = {"NVFLARE_CLIENT_OUTCOME_WAIT_TIMEOUT": "2"}
_TEMPLATES = ("master_template.yml", "aws_template.yml", "azure_template.yml")


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class FederationFailed(AssertionError):
    """A process or a job did not do what was asked; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How a job ended: NVFLARE's status, what the server kept of the run, and the seconds it took.

    `deployed` is what each party said to the job before it ran.
    """

    job_id: str
    status: str
    run: Path
    seconds: float
    deployed: tuple[str, ...]

    @property
    def log(self) -> str:
        """What the job's server process logged."""
        return (self.run / "log.txt").read_text(encoding="utf-8", errors="replace")


@dataclass
class Federation:
    """`with Federation(root, sites) as federation: federation.run(job)`.

    `environment`: what a party's operator sets for its process. `allowed`: classes, or packages
    with a dot at the end, that a job may name at any party without bringing code of its own
    (`class_allow_list`). `he`: kits with a TenSEAL context, for NVFLARE's own encryption.
    """

    root: Path
    sites: tuple[str, ...]
    environment: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    allowed: tuple[str, ...] = ()
    he: bool = False
    port: int = field(default_factory=free_port)
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _session: Any = None

    # ------------------------------------------------------------------ before it runs

    def provision(self) -> None:
        """Startup kits for server, sites and one administrator."""
        self.root.mkdir(parents=True, exist_ok=True)
        project = self.root / "project.yml"
        project.write_text(json.dumps(_project(self)), encoding="utf-8")
        done = subprocess.run(
            [_beside("nvflare"), "provision", "-p", str(project), "-w", str(self.root), "--force"],
            capture_output=True,
            text=True,
            env=_environment(self.root),
        )
        if not self.kit("server").is_dir():
            raise FederationFailed(f"nvflare provision made no kits: {done.stdout}{done.stderr}")
        for name in ("server", *self.sites):
            self._configure(name)

    def kit(self, name: str) -> Path:
        """The folder in which a party runs."""
        return self.root / _PROJECT / "prod_00" / name

    def local(self, site: str, name: str, content: object) -> None:
        """Write a file of the site's own, `local/<name>`."""
        (self.kit(site) / "local" / name).write_text(json.dumps(content), encoding="utf-8")

    # ------------------------------------------------------------------ while it runs

    def __enter__(self) -> Federation:
        if not self.kit("server").is_dir():
            self.provision()
        try:
            for name in ("server", *self.sites):
                self.start(name)
            self._connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self, name: str) -> None:
        """Start the server or a site from its kit."""
        environment = _environment(self.root) | dict(self.environment.get(name, {}))
        with (self.root / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                ["bash", str(self.kit(name) / "startup" / "sub_start.sh"), "--once"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def kill(self, site: str) -> None:
        """SIGKILL to a site: its own process and that of its job, as when a machine is lost."""
        for process in self.processes(site):
            _signal(process, signal.SIGKILL)
        self._processes.pop(site).wait()

    def processes(self, name: str) -> list[psutil.Process]:
        """What runs for the server or a site: its own process, and a child for each job."""
        try:
            own = psutil.Process(self._processes[name].pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def submit(self, job: Path) -> str:
        """Submit a job's folder; its id."""
        return str(self._session.submit_job(str(job)))

    def wait(self, job_id: str, limit_s: float) -> JobEnd:
        """Wait until a job has ended, at most `limit_s`."""
        began = time.monotonic()
        while True:
            meta = self._session.get_job_meta(job_id)
            status = str(meta.get("status", ""))
            seconds = time.monotonic() - began
            if status.startswith("FINISHED") or status in ("FAILED_TO_RUN", "ABANDONED"):
                folder = Path(self._session.download_job_result(job_id, str(self.root / "results")))
                said = tuple(map(str, meta.get("job_deploy_detail") or ()))
                return JobEnd(job_id, status, folder / "workspace", seconds, said)
            if seconds > limit_s:
                raise FederationFailed(
                    f"job {job_id} is {status!r} after {seconds:.0f} s\n{self.tail('server')}"
                )
            time.sleep(_POLL_S)

    def run(self, job: Path, limit_s: float = 120.0) -> JobEnd:
        """Submit a job and wait for its end."""
        return self.wait(self.submit(job), limit_s)

    def site_log(self, site: str, job_id: str) -> str:
        """What the job's process at a site logged, which no other party reads."""
        path = self.kit(site) / job_id / "log.txt"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def tail(self, name: str, lines: int = 40) -> str:
        """The end of a party's log."""
        text = (self.root / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return "\n".join([f"--- {name}", *text.splitlines()[-lines:]])

    def close(self) -> None:
        """End every process that this federation started."""
        if self._session is not None:
            self._session.close()
            self._session = None
        running = [process for name in self._processes for process in self.processes(name)]
        for process in running:
            _signal(process, signal.SIGTERM)
        _, deaf = psutil.wait_procs(running, _LEAVE_S)
        for process in deaf:
            _signal(process, signal.SIGKILL)
        for child in self._processes.values():
            child.wait()
        self._processes.clear()

    # ------------------------------------------------------------------ inside

    def _configure(self, name: str) -> None:
        """A party's `local/resources.json`: its default, with what is stored kept under `root`."""
        default = self.kit(name) / "local" / "resources.json.default"
        text = default.read_text(encoding="utf-8")
        for storage in ("snapshot-storage", "jobs-storage"):
            text = text.replace(f"/tmp/nvflare/{storage}", str(self.root / storage))
        resources = json.loads(text)
        resources["class_allow_list"] += self.allowed
        self.local(name, "resources.json", resources)

    def _connect(self) -> None:
        """Log in as administrator, and wait until every site is registered."""
        from nvflare.fuel.flare_api.flare_api import new_secure_session

        until = time.monotonic() + _READY_S
        self._session = _retry(
            lambda: new_secure_session(ADMIN, str(self.kit(ADMIN)), timeout=10.0), until, self
        )

        def registered() -> None:
            found = {client.name for client in self._session.get_system_info().client_info}
            if missing := set(self.sites) - found:
                raise FederationFailed(f"not registered yet: {sorted(missing)}")

        _retry(registered, until, self)


def _retry(step: Callable[[], Any], until: float, federation: Federation) -> Any:
    while True:
        try:
            return step()
        except Exception as error:
            if time.monotonic() > until:
                raise FederationFailed(f"{error}\n{federation.tail('server')}") from error
            time.sleep(_POLL_S)


def wait_for(path: Path, limit_s: float) -> None:
    """Wait until a file that another process writes is there."""
    until = time.monotonic() + limit_s
    while not path.exists():
        if time.monotonic() > until:
            raise FederationFailed(f"{path} was not written within {limit_s:.0f} s")
        time.sleep(0.05)


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _beside(command: str) -> str:
    """A command of this environment, whether or not it is activated."""
    return str(Path(sys.executable).parent / command)


def _environment(root: Path) -> dict[str, str]:
    home = root / "home"
    home.mkdir(exist_ok=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
    return kept | {"PATH": path, "HOME": str(home)} | _IMPATIENCE


def _project(federation: Federation) -> dict[str, object]:
    """What an administrator writes into project.yml (JSON is YAML)."""
    impl = "nvflare.lighter.impl"
    port = federation.port
    server = {"name": "server", "type": "server", "org": "example"}
    encryption = [{"path": f"{impl}.he.HEBuilder"}] if federation.he else []
    return {
        "api_version": 3,
        "name": _PROJECT,
        "description": "a federation on one machine",
        "participants": [
            server | {"fed_learn_port": port, "admin_port": port, "default_host": "localhost"},
            {"name": ADMIN, "type": "admin", "org": "example", "role": "project_admin"},
            *({"name": site, "type": "client", "org": "example"} for site in federation.sites),
        ],
        "builders": [
            {
                "path": f"{impl}.workspace.WorkspaceBuilder",
                "args": {"template_file": _TEMPLATES},
            },
            {"path": f"{impl}.static_file.StaticFileBuilder", "args": {"config_folder": "config"}},
            {"path": f"{impl}.cert.CertBuilder"},
            *encryption,
            {"path": f"{impl}.signature.SignatureBuilder"},
        ],
    }
