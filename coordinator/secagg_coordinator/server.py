"""A running coordinator: configuration in, gRPC server out.

Mutual TLS always, except with `insecure_loopback`, which exists for tests and listens on 127.0.0.1
alone. Besides the network port there is a unix socket in the data directory for the operator's own
commands on the same machine; who may enter that directory may use it, nobody else.

`grpc.health.v1` answers per service. Server reflection is off.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from secagg.errors import ConfigError
from secagg.identity import Roster
from secagg_coordinator import log
from secagg_coordinator.config import Config
from secagg_coordinator.leases import Clock, Leases
from secagg_coordinator.model_servicer import ModelServicer
from secagg_coordinator.notices import Notices
from secagg_coordinator.owner_servicer import OwnerServicer
from secagg_coordinator.registry import Registry
from secagg_coordinator.round_driver import Host
from secagg_coordinator.round_servicer import RoundServicer
from secagg_coordinator.rounds import Rounds, Terms
from secagg_coordinator.servicer import Gate, Threads
from secagg_coordinator.store import Store, exclusive
from secagg_coordinator.transcript_servicer import TranscriptServicer
from secagg_wire.key_files import KeyFiles, Party, read_public
from secagg_wire.limits import SERVER_OPTIONS
from secagg_wire.tls import check_validity, read_certificate, server_credentials
from secagg_wire.v1 import (
    model_service_pb2_grpc,
    owner_service_pb2_grpc,
    transcript_service_pb2_grpc,
)

SERVICES = tuple(f"secagg.v1.{name}Service" for name in ("Round", "Model", "Transcript", "Owner"))
CONTROL_SOCKET = "control.sock"
_LONGEST_SOCKET_PATH = 100
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_STOP_GRACE_S = 2.0
_PURGE_EVERY_S = 3600.0


class Coordinator:
    """Made by `start`; `stop` ends it."""

    def __init__(
        self, config: Config, roster: Roster, resources: ExitStack, *, insecure: bool, clock: Clock
    ) -> None:
        self.port = 0
        self._config = config
        self._resources = resources
        self._executor = ThreadPoolExecutor(thread_name_prefix="secagg-worker")
        resources.callback(self._executor.shutdown)
        self._store = Store.open(config.data)
        resources.callback(self._store.close)
        self._notices = Notices()
        self._leases = Leases(config.lease.seconds, clock)
        self._gate = Gate(roster, self._leases, insecure=insecure)
        host = Host(
            store=self._store, leases=self._leases, notices=self._notices,
            executor=self._executor, clock=clock, lease=config.lease, data=config.data,
            evidence=config.evidence,
        )  # fmt: skip
        self.rounds = Rounds(host, Terms(roster, config.limits, config.retention))
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        self._purging: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, config: Config, *, insecure_loopback: bool = False, clock: Clock = time.monotonic
    ) -> Coordinator:
        """Listen.

        Raises:
            ConfigError: keys, data, evidence or port cannot be used; says which and why.
        """
        if insecure_loopback and config.listen.host not in _LOOPBACK:
            raise ConfigError(
                f"--insecure-loopback listens on 127.0.0.1 alone, not on {config.listen.host}"
            )
        keys = KeyFiles(config.keys)
        credentials = None if insecure_loopback else _credentials(keys)
        roster = read_roster(keys)
        with ExitStack() as resources:
            resources.enter_context(exclusive(config.data))
            _prepare(config)
            coordinator = cls(config, roster, resources, insecure=insecure_loopback, clock=clock)
            await coordinator._listen(credentials)
            coordinator._resources = resources.pop_all()
        return coordinator

    async def stop(self, drain_seconds: float | None = None) -> None:
        """Let running rounds end or abort them, then end all streams and calls."""
        for service in ("", *SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)
        seconds = self._config.drain_seconds if drain_seconds is None else drain_seconds
        try:
            await self.rounds.drain(seconds)
        finally:
            self._notices.close()
            if self._purging is not None:
                self._purging.cancel()
            await self._server.stop(_STOP_GRACE_S)
            self._resources.close()
            log.event("stopped")

    async def _listen(self, credentials: grpc.ServerCredentials | None) -> None:
        self.rounds.close_leftovers()
        self.rounds.purge_uploads()
        self._add_services()
        self.port = self._bind(credentials)
        self._bind_control_socket()
        await self._server.start()
        for service in ("", *SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        self._purging = asyncio.create_task(self._purge_from_time_to_time())
        log.event(
            "listening", host=self._config.listen.host, port=self.port,
            tls=credentials is not None, tenants=len(self._gate.roster.members),
            roster=self._gate.roster.digest,
        )  # fmt: skip

    def _add_services(self) -> None:
        config, store, threads = self._config, self._store, Threads(self._executor)
        registry = Registry(config.data / "models", store, config.limits.model_bytes)
        RoundServicer(
            self._gate, self.rounds, store, self._notices, self._leases, threads,
            config.limits.concurrent_uploads,
        ).add_to(self._server)  # fmt: skip
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelServicer(self._gate, registry, store, threads), self._server
        )
        transcript_service_pb2_grpc.add_TranscriptServiceServicer_to_server(
            TranscriptServicer(self._gate, store, threads, config.data), self._server
        )
        owner_service_pb2_grpc.add_OwnerServiceServicer_to_server(
            OwnerServicer(
                self._gate, self.rounds, registry, store, self._notices, self._leases, threads,
                config.data,
            ),
            self._server,
        )  # fmt: skip
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def _bind(self, credentials: grpc.ServerCredentials | None) -> int:
        listen = self._config.listen
        _require_free(listen.host, listen.port)
        address = f"[{listen.host}]" if ":" in listen.host else listen.host
        try:
            if credentials is None:
                return self._server.add_insecure_port(f"{address}:{listen.port}")
            return self._server.add_secure_port(f"{address}:{listen.port}", credentials)
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {address}:{listen.port}: {error}") from None

    def _bind_control_socket(self) -> None:
        path = control_socket(self._config.data)
        if path is None:
            log.event("no control socket: the data directory's path is too long for one")
            return
        with suppress(FileNotFoundError):
            path.unlink()
        self._server.add_insecure_port(f"unix:{path}")

    async def _purge_from_time_to_time(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_PURGE_EVERY_S)
            await loop.run_in_executor(self._executor, self.rounds.purge_uploads)


def control_socket(data: Path) -> Path | None:
    """The operator's socket; None where the path is longer than the system allows."""
    path = data / CONTROL_SOCKET
    return path if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH else None


def read_roster(keys: KeyFiles) -> Roster:
    """The roster, whose names must also work as file and certificate names.

    Raises:
        ConfigError: missing, malformed, or with a name that no certificate can carry.
    """
    roster = keys.read_roster()
    for member in roster.members:
        Party("tenant", member.tenant)
    return roster


def _credentials(keys: KeyFiles) -> grpc.ServerCredentials:
    party = keys.party()
    if party.role != "coordinator":
        raise ConfigError(f"{keys.directory} holds the keys of {party}, not of a coordinator")
    certificate = read_certificate(read_public(keys.certificate), str(keys.certificate))
    check_validity(certificate, datetime.datetime.now(datetime.UTC), str(keys.certificate))
    return server_credentials(keys)


def _prepare(config: Config) -> None:
    for directory in filter(None, (config.data, config.data / "spool", config.evidence)):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            probe = directory / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(f"cannot write {directory}: {error.strerror}") from None
    config.data.chmod(0o700)


def _require_free(host: str, port: int) -> None:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; stop what uses the port, or set "
            "listen.port"
        ) from None
