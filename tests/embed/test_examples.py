"""The transports of docs/examples: as real processes, as their docstrings say to start them, and
held to the claims that every transport has to keep, over their own sockets.
"""

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from http.server import HTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from secagg.errors import SecaggError
from secagg.identity import Roster
from secagg.testing.cohorts import cohort
from secagg.testing.transport_conformance import TRANSPORT_CLAIMS, TransportClaim
from secagg_embed import CoordinatedRound, run_round, run_round_async
from secagg_embed.testing import AnsweringTenant, ConnectionLost, ExchangeTransport

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
LONG_S = 120
ALL = "anna, bert, cleo, dora, emil"
WITHOUT_DORA = "anna, bert, cleo, emil"


def example(name: str) -> Any:
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed(name: str) -> str:
    own = [sys.executable, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(own, capture_output=True, text=True, timeout=LONG_S)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["tenants_as_http_servers", "tenants_connect_over_tls"])
def test_stopping_an_example_stops_its_tenants(name: str) -> None:
    own = [sys.executable, "-u", str(EXAMPLES / f"{name}.py")]
    with subprocess.Popen(own, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        assert any(line.startswith("sum over") for line in parent.stdout)
        parent.terminate()
        assert parent.wait(LONG_S) == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(parent.pid, 0)


def sums(text: str) -> tuple[list[str], list[float]]:
    found = re.findall(r"^sum over (.*): error ([0-9.]+)$", text, re.MULTILINE)
    return [survivors for survivors, _ in found], [float(error) for _, error in found]


def unprotected(module: Any, rounds: list[str]) -> Iterator[float]:
    """The errors of the same rounds as plain means over the same survivors."""
    model = {"weight": module.np.zeros(4), "bias": module.np.zeros(1)}
    for survivors in rounds:
        after = {name: module.trained(model, name) for name in survivors.split(", ")}
        total = sum(rows for _, rows in after.values())
        model = {k: sum(rows * m[k] for m, rows in after.values()) / total for k in model}
        yield module.error(model)


@pytest.mark.processes
def test_tenants_as_http_servers() -> None:
    text = printed("tenants_as_http_servers")
    rounds, errors = sums(text)
    assert rounds == [ALL, WITHOUT_DORA, WITHOUT_DORA]
    assert errors == pytest.approx(
        list(unprotected(example("tenants_as_http_servers"), rounds)), abs=2e-3
    )
    assert text.count("bert did not answer") == 1


@pytest.mark.processes
def test_tenants_connect_over_tls() -> None:
    text = printed("tenants_connect_over_tls")
    rounds, errors = sums(text)
    assert rounds == [ALL, WITHOUT_DORA, ALL]
    assert errors == pytest.approx(
        list(unprotected(example("tenants_connect_over_tls"), rounds)), abs=2e-3
    )
    assert "bert: the connection broke" in text
    assert "dora: started again" in text


# ---------------------------------------------------------------------------- claims


@pytest.mark.parametrize("claim", TRANSPORT_CLAIMS)
def test_http_keeps_the_claims_of_every_transport(claim: TransportClaim) -> None:
    module = example("tenants_as_http_servers")

    def carry(coordinated: CoordinatedRound, tenants: Mapping[str, AnsweringTenant]) -> None:
        with ExitStack() as servers:
            ports = [servers.enter_context(served(module, one)) for one in tenants.values()]
            asked = module.Tenants(ports, cohort(5).roster)
            with suppress(SecaggError):
                run_round(coordinated, asked.ask)

    claim(ExchangeTransport(carry))


@contextmanager
def served(module: Any, tenant: AnsweringTenant) -> Iterator[int]:
    """The example's server around one of the kit's tenants; the port."""

    class Served(module.Tenant):  # type: ignore[misc]
        def answer(self, before: object, request: bytes) -> bytes:
            return tenant.answer(request).encode()

        def do_POST(self) -> None:
            with suppress(ConnectionLost):
                super().do_POST()

    with HTTPServer(("127.0.0.1", 0), Served) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("claim", TRANSPORT_CLAIMS)
def test_tls_keeps_the_claims_of_every_transport(claim: TransportClaim, tmp_path: Path) -> None:
    module = example("tenants_connect_over_tls")

    def carry(coordinated: CoordinatedRound, tenants: Mapping[str, AnsweringTenant]) -> None:
        with suppress(SecaggError):
            asyncio.run(over_tls(module, tmp_path, coordinated, tenants))

    claim(ExchangeTransport(carry))


async def over_tls(
    module: Any,
    folder: Path,
    coordinated: CoordinatedRound,
    tenants: Mapping[str, AnsweringTenant],
) -> None:
    roster: Roster = cohort(5).roster
    asked = module.Tenants(roster)
    context = module.certified(folder / "coordinator.pem")
    server = await asyncio.start_server(asked.welcome, "localhost", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    trust = module.ssl.create_default_context(cafile=str(folder / "coordinator.pem"))
    connected = [asyncio.create_task(connect(module, port, trust, t)) for t in tenants.values()]

    async def ask(tenant: str, request: bytes) -> bytes:
        return bytes(await asked.ask(tenant, b"", request))

    try:
        assert await asked.here() == coordinated.plan.cohort
        await run_round_async(coordinated, ask, timeout_s=LONG_S)
    finally:
        for task in connected:
            task.cancel()
        server.close()


async def connect(module: Any, port: int, trust: object, tenant: AnsweringTenant) -> None:
    """As the example's tenant: connect, answer, and come back when the connection broke."""

    def answer(before: object, request: bytes) -> bytes:
        return tenant.answer(request).encode()

    while True:
        with suppress(OSError):
            link = module.Link(*await asyncio.open_connection("localhost", port, ssl=trust))
            try:
                await module.answer_all(link, answer, module.Faults(""))
            finally:
                link.close()
