"""Secure aggregation with asyncio over TLS: the coordinator listens, and tenants connect to it.

    python docs/examples/tenants_connect_over_tls.py

starts a coordinator and five tenants, each a process of its own, over loopback TCP with TLS 1.3
(`asyncio`, `ssl`). They fit one linear model in three rounds. In the first, bert's connection
breaks when he has trained and before his answer is out: he connects again and is asked again. In
the second, dora's process is killed; it is started again, and in the third round she is back. What
secagg needs of a transport is `answer_all` on one side, and `Tenants` on the other.

A frame is a length and that many bytes. Tenants know the coordinator by the one certificate that
they trust; it knows them by what they sign with the keys in the roster (`hello`).
"""

import argparse
import asyncio
import datetime
import io
import os
import signal
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from secagg import Roster
from secagg.errors import ProtocolError
from secagg_embed import (
    CoordinatedRound,
    Party,
    TenantFolder,
    Terms,
    hello,
    make_tenants,
    next_round_number,
    read_hello,
    reply_to,
    run_round_async,
)

NAMES = ("anna", "bert", "cleo", "dora", "emil")
TRUTH = {"weight": np.array([1.0, -2.0, 0.5, 0.0]), "bias": np.array([1.5])}
TERMS = Terms(clip=2.0, max_weight=100)
ROUNDS = 3
LONGEST_FRAME = 1 << 30
ALL_WITHIN_S, BACK_WITHIN_S = 60, 3

Model = dict[str, np.ndarray]
Train = Callable[[Model], tuple[Model, int]]
Answer = Callable[[Model, bytes], bytes]


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


# -------------------------------------------------------------------- frames


class Link:
    """A connection that carries frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, *frames: bytes) -> None:
        """Send each of them.

        Raises:
            ConnectionError: the connection is gone.
        """
        for frame in frames:
            self._writer.write(struct.pack("!Q", len(frame)))
            self._writer.write(frame)
        await self._writer.drain()

    async def receive(self) -> bytes:
        """The next frame.

        Raises:
            ConnectionError: the connection is gone, or what comes is no frame.
        """
        try:
            (length,) = struct.unpack("!Q", await self._reader.readexactly(8))
            if length > LONGEST_FRAME:
                raise ConnectionError(f"a frame of {length} bytes")
            return await self._reader.readexactly(length)
        except asyncio.IncompleteReadError as error:
            raise ConnectionError("the connection was closed") from error

    def close(self) -> None:
        """Close it."""
        self._writer.close()


# -------------------------------------------------------------------- a tenant's process


async def be_tenant(folder: Path, port: int, trust: Path, train: Train, faults: "Faults") -> None:
    """Connect, answer until the connection breaks, and connect again; until the process ends."""
    context = ssl.create_default_context(cafile=str(trust))
    with Party.open(folder) as party:

        def answer(before: Model, request: bytes) -> bytes:
            return reply_to(party, request, lambda plan: train(before), before)

        while True:
            with suppress(OSError):
                link = Link(*await asyncio.open_connection("localhost", port, ssl=context))
                await answer_all(link, answer, faults)
            await asyncio.sleep(0.1)


async def answer_all(link: Link, answer: Answer, faults: "Faults") -> None:
    """Answer what comes. Where a request leads to training, the model comes ahead of it.

    A program that has something else to do meanwhile calls `answer` in a thread.

    Raises:
        ConnectionError: the connection is gone.
    """
    while True:
        model, request = await link.receive(), await link.receive()
        reply = answer(unpacked(model) if model else {}, request)
        if faults.breaks_now(trained=bool(model)):
            link.close()
        await link.send(reply)


class Faults:
    """What goes wrong at one tenant, so that it can be seen to do no harm."""

    def __init__(self, fault: str) -> None:
        self._fault, self._trainings = fault, count(1)

    def breaks_now(self, *, trained: bool) -> bool:
        """Whether the connection is to break, once, after the first training."""
        return self._fault == "breaks" and trained and next(self._trainings) == 1

    def die_if_due(self) -> None:
        """Be killed in the second training."""
        if self._fault == "dies" and next(self._trainings) == 2:
            os.kill(os.getpid(), signal.SIGKILL)


# -------------------------------------------------------------------- the coordinator


class Tenants:
    """The tenants that are connected now, each under the name that it has proven."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._links: dict[str, Link] = {}
        self._came = asyncio.Condition()

    async def welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Whoever connects is asked who it is; a tenant that comes again replaces itself."""
        link, nonce = Link(reader, writer), os.urandom(32)
        try:
            await link.send(b"", hello(nonce))
            name = read_hello(self._roster, nonce, await link.receive())
        except (ConnectionError, ProtocolError):
            link.close()
            return
        async with self._came:
            self._links[name] = link
            self._came.notify_all()

    async def here(self) -> tuple[str, ...]:
        """Who takes part in a round that begins now; for the others it waits a while."""
        everybody = {member.tenant for member in self._roster.members}
        with suppress(TimeoutError):
            async with asyncio.timeout(ALL_WITHIN_S), self._came:
                await self._came.wait_for(lambda: self._links.keys() >= everybody)
        return tuple(sorted(self._links))

    async def ask(self, tenant: str, model: bytes, request: bytes) -> bytes:
        """One request and its reply.

        Raises:
            OSError: the tenant is not there, or its connection broke: it may be asked again.
        """
        link = await self._link(tenant)
        try:
            await link.send(model, request)
            return await link.receive()
        except OSError:
            self._links.pop(tenant, None)
            print(f"  {tenant}: the connection broke")
            raise

    async def _link(self, tenant: str) -> Link:
        async with asyncio.timeout(BACK_WITHIN_S), self._came:
            await self._came.wait_for(lambda: tenant in self._links)
            return self._links[tenant]


async def coordinate(tenants: Tenants, roster: Roster, revive: Callable[[], None]) -> None:
    """Three rounds, each from the model that the last one made."""
    model = {"weight": np.zeros(4), "bias": np.zeros(1)}
    number = 0
    for _ in range(ROUNDS):
        number = next_round_number(number, time.time())
        cohort = await tenants.here()
        coordinated = TERMS.round(roster, model, round_number=number, cohort=cohort)
        model = await one_round(tenants, coordinated, model)
        revive()


async def one_round(tenants: Tenants, coordinated: CoordinatedRound, model: Model) -> Model:
    """The model after the round."""

    async def ask(tenant: str, request: bytes) -> bytes:
        return await tenants.ask(tenant, packed(model) if coordinated.trains else b"", request)

    result = await run_round_async(coordinated, ask, timeout_s=60)
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
    arguments.add_argument("--port", type=int)
    arguments.add_argument("--trust", type=Path, help="the coordinator's certificate")
    arguments.add_argument("--fault", default="")
    given = arguments.parse_args()
    if not given.tenant:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and the tenants are stopped with it
        asyncio.run(everything())
        return
    faults = Faults(given.fault)

    def train(model: Model) -> tuple[Model, int]:
        faults.die_if_due()
        return trained(model, given.tenant)

    asyncio.run(be_tenant(given.folder, given.port, given.trust, train, faults))


async def everything() -> None:
    """The coordinator in this process, and a process for each tenant."""
    with tempfile.TemporaryDirectory() as root:
        folders = make_tenants(Path(root), NAMES)
        roster = TenantFolder(folders["anna"]).roster()
        tenants = Tenants(roster)
        context = certified(Path(root) / "coordinator.pem")
        server = await asyncio.start_server(tenants.welcome, "localhost", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        async with server, processes(Path(root), port) as revive:
            await coordinate(tenants, roster, revive)


@asynccontextmanager
async def processes(root: Path, port: int) -> AsyncIterator[Callable[[], None]]:
    """A process for each tenant, stopped at the end; gives what starts the dead ones again."""
    running: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str, fault: str = "") -> None:
        own = [f"--tenant={name}", f"--folder={root / name}", f"--fault={fault}"]
        reach = [f"--port={port}", f"--trust={root / 'coordinator.pem'}"]
        running[name] = subprocess.Popen([sys.executable, __file__, *own, *reach])

    def revive() -> None:
        for name, process in running.items():
            if process.poll() is not None:
                print(f"  {name}: started again")
                start(name)

    for name in NAMES:
        start(name, {"bert": "breaks", "dora": "dies"}.get(name, ""))
    try:
        yield revive
    finally:
        for process in running.values():
            process.terminate()
            process.wait()


def certified(path: Path) -> ssl.SSLContext:
    """The coordinator's TLS, with a certificate for an hour at `path` that tenants trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "coordinator")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret = path.with_suffix(".key")
    secret.touch(0o600)
    pkcs8, bare = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, bare))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(path, secret)
    return context


if __name__ == "__main__":
    main()
