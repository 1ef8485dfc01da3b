"""Secure aggregation over plain HTTP: tenants are servers, and the coordinator calls them.

    python docs/examples/tenants_as_http_servers.py

starts a coordinator and five tenants, each a process of its own, with nothing but the standard
library between them (`http.server`, `urllib`). They fit one linear model in three rounds. In the
first, bert's connection breaks while he answers, and he is asked again; in the second, dora is
killed while she trains. What secagg needs of a transport is `Tenant.do_POST` and `Tenants`.

Left out: TLS in front of the tenants, and who may call them. A federation needs both.
"""

import argparse
import http.client
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count
from pathlib import Path

import numpy as np

from secagg import Roster
from secagg_embed import (
    CoordinatedRound,
    Party,
    Requests,
    TenantFolder,
    Terms,
    hello,
    make_tenants,
    next_round_number,
    read_hello,
    reply_to,
    run_round,
)

NAMES = ("anna", "bert", "cleo", "dora", "emil")
TRUTH = {"weight": np.array([1.0, -2.0, 0.5, 0.0]), "bias": np.array([1.5])}
TERMS = Terms(clip=2.0, max_weight=100)
ROUNDS = 3

Model = dict[str, np.ndarray]


# -------------------------------------------------------------------- what is trained


def own_data(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A tenant's rows: inputs from a corner of its own, targets by one rule for all."""
    number = NAMES.index(name)
    noise = np.random.default_rng(number)
    x = noise.normal(0.5 * number - 1, 1, (60 + 10 * number, 4))
    return x, x @ TRUTH["weight"] + TRUTH["bias"] + noise.normal(0, 0.01, len(x))


def trained(model: Model, name: str) -> tuple[Model, int]:
    """The model after some steps on the tenant's rows, and how many rows these are."""
    (x, y), weight, bias = own_data(name), model["weight"], model["bias"]
    for _ in range(30):
        error = x @ weight + bias - y
        weight, bias = weight - 0.05 * x.T @ error / len(x), bias - 0.05 * error.mean()
    return {"weight": weight, "bias": bias}, len(x)


def packed(model: Model) -> bytes:
    """The model as a file's bytes."""
    file = io.BytesIO()
    np.savez(file, **model)
    return file.getvalue()


def unpacked(data: bytes) -> Model:
    """Inverse of `packed`."""
    return dict(np.load(io.BytesIO(data), allow_pickle=False))


# -------------------------------------------------------------------- a tenant's process


class Tenant(BaseHTTPRequestHandler):
    """One request, one answer. Where a request leads to training, the model comes ahead of it."""

    name, folder, fault = "", Path(), ""
    requests, trainings = count(1), count(1)

    def do_POST(self) -> None:
        """Answer one request."""
        model = self.rfile.read(int(self.headers["Model-Length"]))
        request = self.rfile.read(int(self.headers["Content-Length"]) - len(model))
        reply = self.answer(unpacked(model) if model else {}, request)
        if self.fault == "breaks" and next(self.requests) == 4:
            return  # the connection closes, and the answer is lost
        self.send_response(200)
        self.end_headers()
        self.wfile.write(reply)

    def answer(self, before: Model, request: bytes) -> bytes:
        """From the tenant's folder each time, so that a restart in between is no matter."""
        with Party.open(self.folder) as party:
            return reply_to(party, request, lambda plan: self.train(before), before)

    def train(self, before: Model) -> tuple[Model, int]:
        """The training: what it returns never leaves but protected."""
        if self.fault == "dies" and next(self.trainings) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return trained(before, self.name)

    def log_message(self, *_: object) -> None:
        """Not each request."""


def serve(name: str, folder: Path, fault: str) -> None:
    """Be a tenant until the process is stopped."""
    Tenant.name, Tenant.folder, Tenant.fault = name, folder, fault
    with HTTPServer(("127.0.0.1", 0), Tenant) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


# -------------------------------------------------------------------- the coordinator


class Tenants:
    """The tenants behind their addresses, asked all at once."""

    def __init__(self, ports: list[int], roster: Roster) -> None:
        self._ports = {self._who(port, roster): port for port in ports}

    def _who(self, port: int, roster: Roster) -> str:
        nonce = os.urandom(32)
        return read_hello(roster, nonce, post(port, b"", hello(nonce)))

    def ask(self, requests: Requests, model: bytes = b"") -> Iterator[tuple[str, bytes]]:
        """The answers as they come. Who has not answered when this ends may be asked again."""
        with ThreadPoolExecutor(len(self._ports)) as pool:
            calls = {
                pool.submit(post, self._ports[tenant], model, request): tenant
                for tenant, request in requests.items()
            }
            for done in as_completed(calls):
                if isinstance(done.exception(), OSError | http.client.HTTPException):
                    print(f"  {calls[done]} did not answer: {done.exception()!r}")
                else:
                    yield calls[done], done.result()


def post(port: int, model: bytes, request: bytes) -> bytes:
    """One call. A connection that breaks is an OSError or an HTTPException."""
    address, headers = f"http://127.0.0.1:{port}/", {"Model-Length": str(len(model))}
    call = urllib.request.Request(address, model + request, headers)
    with urllib.request.urlopen(call, timeout=60) as answer:  # noqa: S310
        return bytes(answer.read())


def coordinate(tenants: Tenants, roster: Roster) -> None:
    """Three rounds, each from the model that the last one made."""
    model = {"weight": np.zeros(4), "bias": np.zeros(1)}
    number = 0
    for _ in range(ROUNDS):
        number = next_round_number(number, time.time())
        model = one_round(tenants, TERMS.round(roster, model, round_number=number), model)


def one_round(tenants: Tenants, coordinated: CoordinatedRound, model: Model) -> Model:
    """The model after the round."""

    def ask(requests: Requests) -> Iterator[tuple[str, bytes]]:
        return tenants.ask(requests, packed(model) if coordinated.trains else b"")

    result = run_round(coordinated, ask)
    after = coordinated.applied(model)
    print(f"sum over {', '.join(result.survivors)}: error {error(after):.3f}")
    return after


def error(model: Model) -> float:
    """How far the model is from the rule behind the data."""
    return max(float(np.abs(model[name] - TRUTH[name]).max()) for name in TRUTH)


# -------------------------------------------------------------------- all of it


def main() -> None:
    """Start everything, or be one tenant."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--tenant", choices=NAMES, help="be this tenant (used by itself)")
    arguments.add_argument("--folder", type=Path, help="its folder")
    arguments.add_argument("--fault", default="")
    given = arguments.parse_args()
    if given.tenant:
        serve(given.tenant, given.folder, given.fault)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and the tenants are stopped with it
    faults = {"bert": "breaks", "dora": "dies"}
    with tempfile.TemporaryDirectory() as root, ExitStack() as processes:
        folders = make_tenants(Path(root), NAMES)
        ports = [
            processes.enter_context(process(name, folder, faults.get(name, "")))
            for name, folder in folders.items()
        ]
        roster = TenantFolder(folders["anna"]).roster()
        coordinate(Tenants(ports, roster), roster)


@contextmanager
def process(name: str, folder: Path, fault: str) -> Iterator[int]:
    """A tenant's process and its port; stopped at the end."""
    own = [sys.executable, __file__, f"--tenant={name}", f"--folder={folder}", f"--fault={fault}"]
    with subprocess.Popen(own, stdout=subprocess.PIPE, text=True) as tenant:
        try:
            yield int(tenant.stdout.readline())
        finally:
            tenant.terminate()


if __name__ == "__main__":
    main()
