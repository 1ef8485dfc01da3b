"""NVFLARE in one process: its own controllers, runners, filters and serialisation, no sockets.

`LocalJob` runs a workflow on NVFLARE's task manager against one real `ClientRunner` for each site;
`local_collab` runs a Collab job on NVFLARE's dispatchers and apps. In both, what crosses between
server and sites goes through FOBS, as it does on the network.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.impl.controller import Controller
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.utils.event import fire_event_to_components
from nvflare.apis.utils.fl_context_utils import gen_new_peer_ctx
from nvflare.apis.workspace import Workspace
from nvflare.collab.api.app import App, ClientApp, ServerApp
from nvflare.collab.api.proxy import Proxy
from nvflare.collab.runtime.cell_dispatcher import CellDispatcher
from nvflare.collab.runtime.defs import CallHeaderKey
from nvflare.collab.runtime.dispatch import _call_app_method
from nvflare.collab.runtime.lifecycle import run_server
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.message import Message
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.log_utils import get_module_logger
from nvflare.private.fed.client.client_engine_executor_spec import TaskAssignment
from nvflare.private.fed.client.client_runner import ClientRunner, ClientRunnerConfig, TaskRouter
from nvflare.private.fed.utils.fed_utils import nvflare_fobs_initialize

nvflare_fobs_initialize()

JOB = "job"


def through_fobs(value: Any) -> Any:
    """What arrives of a value that is sent."""
    return fobs.loads(fobs.dumps(value))


def workspace(root: Path, name: str) -> Workspace:
    """An empty workspace, as a startup kit leaves it."""
    for folder in ("startup", "local"):
        (root / name / folder).mkdir(parents=True, exist_ok=True)
    return Workspace(str(root / name), name)


class Engine:
    """What a process of NVFLARE's is to its components, without the network."""

    def __init__(self, name: str, space: Workspace, components: list[Any]) -> None:
        self._manager = FLContextManager(self, name, JOB)
        self._workspace = space
        self.components = components
        self.clients: list[Client] = []
        self.panics: list[str] = []

    def new_context(self) -> FLContext:
        return self._manager.new_context()

    def get_workspace(self) -> Workspace:
        return self._workspace

    def get_clients(self) -> list[Client]:
        return self.clients

    def get_component(self, name: str) -> None:
        return None

    def get_cell(self) -> None:
        return None

    def register_aux_message_handler(self, topic: str, message_handle_func: object) -> None:
        pass

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.FATAL_SYSTEM_ERROR:
            self.panics.append(str(fl_ctx.get_prop(FLContextKey.EVENT_DATA)))
        fire_event_to_components(event_type, self.components, fl_ctx)


class LocalSite:
    """One site's job process: NVFLARE's `ClientRunner` around the job's executor.

    `scope` holds the site's filters, `filters` those of the job; `components` hear events.
    """

    def __init__(
        self,
        name: str,
        executor: Executor,
        space: Workspace,
        *,
        scope: object = None,
        filters: Mapping[str, list[Any]] | None = None,
        components: tuple[Any, ...] = (),
    ) -> None:
        self.client = Client(name, f"token of {name}")
        self.engine = Engine(name, space, [executor, *components])
        self.sent: list[Shareable] = []
        self._scope = scope
        router = TaskRouter()
        router.add_executor(["*"], executor)
        self.runner = ClientRunner(
            {}, ClientRunnerConfig(router, {}, dict(filters or {})), JOB, self.engine
        )

    def do(self, name: str, task_id: str, data: Shareable, peer: FLContext) -> Shareable:
        """Run one task as the runner does; what leaves the site."""
        context = self.engine.new_context()
        context.set_peer_context(peer)
        context.set_prop(FLContextKey.SCOPE_OBJECT, self._scope, private=True, sticky=False)
        task = TaskAssignment(name, task_id, through_fobs(data))
        result: Shareable = through_fobs(self.runner._process_task(task, context))
        self.sent.append(result)
        return result


@dataclass
class LocalJob:
    """A workflow and its sites; `run` returns once the workflow's thread has ended."""

    controller: Controller
    sites: list[LocalSite]
    space: Workspace
    deaf: Callable[[LocalSite, Shareable], bool] = lambda site, task: False
    abort_signal: Signal = field(default_factory=Signal)

    def __post_init__(self) -> None:
        self.engine = Engine("server", self.space, [self.controller])
        self.engine.clients = [site.client for site in self.sites]
        self.communicator = WFCommServer(task_check_period=0.01)
        self.controller.set_communicator(self.communicator)
        self.communicator.task_check_period = self.communicator._task_check_period = 0.01
        self._over = threading.Event()

    @property
    def panics(self) -> list[str]:
        """Why the job failed; empty for one that succeeded."""
        return self.engine.panics

    def run(self) -> None:
        """To the end of the workflow."""
        self.engine.components.append(self.communicator)
        context = self.engine.new_context()
        self.communicator.initialize_run(context)
        self.controller.initialize(context)
        threads = [threading.Thread(target=self._serve, args=(site,)) for site in self.sites]
        for thread in threads:
            thread.start()
        try:
            self.controller.control_flow(self.abort_signal, context)
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
            self.communicator.finalize_run(context)

    def _serve(self, site: LocalSite) -> None:
        while not self._over.wait(0.005):
            context = self._context_of(site)
            name, task_id, data = self.communicator.process_task_request(site.client, context)
            if not name:
                continue
            context.set_prop(FLContextKey.TASK_DATA, data, private=True, sticky=False)
            self.engine.fire_event(EventType.AFTER_TASK_DATA_FILTER, context)  # as ServerRunner
            if self.deaf(site, data):
                continue
            peer = gen_new_peer_ctx(self.engine.new_context())
            result = site.do(name, task_id, data, peer)
            self.communicator.process_submission(
                site.client, name, task_id, result, self._context_of(site)
            )

    def _context_of(self, site: LocalSite) -> FLContext:
        context = self.engine.new_context()
        context.set_peer_context(gen_new_peer_ctx(site.engine.new_context()))
        return context


# ---------------------------------------------------------------------------- Collab


@dataclass
class LocalCell:
    """Carries calls between the apps of one process as the network does; records what leaves."""

    apps: dict[str, App] = field(default_factory=dict)
    sent: dict[str, list[Any]] = field(default_factory=dict)
    deaf: Callable[[str, Any], bool] = lambda site, request: False
    panics: list[str] = field(default_factory=list)

    def get_fqcn(self) -> str:
        return "server"

    def send_request(self, target: str, request: Message, timeout: float, **_: Any) -> Message:
        """The reply of the app at `target`, or a timeout's."""
        payload = through_fobs(request.payload)
        if self.deaf(target, payload):
            return Message({MessageHeaderKey.RETURN_CODE: ReturnCode.TIMEOUT}, None)
        headers = {**request.headers, CallHeaderKey.AUTHENTICATED_CALLER: "server"}
        logger = get_module_logger()
        reply = _call_app_method(Message(headers, payload), self.apps[target], logger)
        reply.payload = through_fobs(reply.payload)
        self.sent.setdefault(target, []).append(reply.payload)
        return reply

    def new_context(self) -> FLContext:
        return FLContext()

    def system_panic(self, reason: str, fl_ctx: FLContext) -> None:
        self.panics.append(reason)


def local_collab(
    server: object, clients: Mapping[str, object], root: Path, cell: LocalCell | None = None
) -> tuple[object, LocalCell]:
    """Run a Collab job: (what its main returned, the cell)."""
    cell = cell or LocalCell()
    server_app = ServerApp(server)
    server_app.name = "server"
    signal = Signal()
    with ThreadPoolExecutor() as threads:

        def dispatcher(target: str) -> CellDispatcher:
            return CellDispatcher(cell, cell, "server", cell, target, signal, threads)

        def proxy(app: App, name: str) -> Proxy:
            interface = app.get_collab_interface()
            return Proxy(server_app, name, name, dispatcher(name), interface[""])

        for name, client in clients.items():
            app = ClientApp(client)
            app.name = name
            cell.apps[name] = app
        proxies = [_with_children(proxy(app, name), app) for name, app in cell.apps.items()]
        server_proxy = proxy(server_app, "server")
        for name, app in cell.apps.items():
            app.setup(workspace(root, name), server_proxy, proxies, signal)
        server_app.setup(workspace(root, "server"), server_proxy, proxies, signal)
        return run_server(server_app, get_module_logger()), cell


def _with_children(proxy: Proxy, app: App) -> Proxy:
    for name, interface in app.get_collab_interface().items():
        if name:
            child = Proxy(proxy.app, f"{proxy.name}.{name}", "", proxy.backend, interface)
            proxy.add_child(name, child)
    return proxy
