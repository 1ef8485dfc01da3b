"""What all services share: who is calling, and how an error becomes a status.

The caller is whoever its certificate names (SAN URI `urn:secagg:ROLE:NAME`); a name inside a
request is only ever compared with that. Every refusal is logged with the call, the peer and the
error's class. An unexpected exception reaches the caller as INTERNAL and nothing more.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from typing import Any, NoReturn, TypeVar, TypeVarTuple

import grpc

from secagg.errors import ConfigError, SecaggError
from secagg.identity import Roster
from secagg_coordinator import log
from secagg_coordinator.leases import Leases
from secagg_wire.codec import error_to_status
from secagg_wire.key_files import Party
from secagg_wire.refusals import (
    ForeignIdentity,
    InternalError,
    NotAuthenticated,
    RoleRefused,
    UnknownTenant,
)
from secagg_wire.tls import peer_of

INSECURE_CALLER = "secagg-caller"
_Context = grpc.aio.ServicerContext[Any, Any]
_Self = TypeVar("_Self")
_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")
_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")


class Gate:
    """Lets callers in by certificate, role and roster.

    With `insecure` (tests on loopback alone) the name comes from the metadata key `secagg-caller`.
    Calls over the unix socket are the operator's: the socket lies in a directory that only the
    coordinator's own user can enter.
    """

    def __init__(self, roster: Roster, leases: Leases, *, insecure: bool = False) -> None:
        self.roster = roster
        self._leases = leases
        self._insecure = insecure

    def tenant(self, context: _Context, claimed: str) -> str:
        """The calling tenant, whose lease this renews.

        Raises:
            NotAuthenticated, RoleRefused, ForeignIdentity, UnknownTenant: it may not call.
        """
        party = self._party(context)
        if party.role != "tenant":
            raise RoleRefused(f"{party} called what is for tenants")
        if claimed != party.name:
            raise ForeignIdentity(
                f"the request names {claimed[:64]!r} and the certificate {party.name!r}"
            )
        return self._enrolled(party)

    def owner(self, context: _Context) -> None:
        """Demand the owner.

        Raises:
            NotAuthenticated, RoleRefused: it is somebody else.
        """
        party = self._party(context)
        if party.role != "owner":
            raise RoleRefused(f"{party} called what is for the owner")

    def operator(self, context: _Context) -> None:
        """Demand the owner, or the operator at the unix socket.

        Raises:
            NotAuthenticated, RoleRefused: it is somebody else.
        """
        if not _is_local(context):
            self.owner(context)

    def reader(self, context: _Context) -> Party:
        """Demand somebody who may read models and records: the owner, or a tenant of the roster.

        Raises:
            NotAuthenticated, RoleRefused, UnknownTenant: it is somebody else.
        """
        party = self._party(context)
        if party.role == "tenant":
            self._enrolled(party)
        elif party.role != "owner":
            raise RoleRefused(f"{party} called what is for tenants and the owner")
        return party

    def _enrolled(self, party: Party) -> str:
        if party.name not in self.roster:
            raise UnknownTenant(f"{party} is not in the roster; enrol it and restart with that one")
        self._leases.renew(party.name)
        return party.name

    def _party(self, context: _Context) -> Party:
        try:
            if self._insecure:
                return Party.parse(_caller_in_metadata(context))
            return peer_of({key: tuple(values) for key, values in context.auth_context().items()})
        except ConfigError as error:
            raise NotAuthenticated(str(error)) from None


def _is_local(context: _Context) -> bool:
    return context.peer().startswith("unix:")


def _caller_in_metadata(context: _Context) -> str:
    metadata = dict(context.invocation_metadata() or ())
    return str(metadata.get(INSECURE_CALLER, ""))


def answering(
    method: Callable[[_Self, _Request, _Context], Awaitable[_Reply]],
) -> Callable[[_Self, _Request, _Context], Awaitable[_Reply]]:
    """Turn the errors of a call with one reply into statuses."""

    @functools.wraps(method)
    async def call(self: _Self, request: _Request, context: _Context) -> _Reply:
        try:
            return await method(self, request, context)
        except Exception as error:  # noqa: BLE001 - the process outlives a failed call
            await _refuse(context, method.__name__, error)

    return call


def streaming(
    method: Callable[[_Self, _Request, _Context], AsyncIterator[_Reply]],
) -> Callable[[_Self, _Request, _Context], AsyncIterator[_Reply]]:
    """Turn the errors of a call with many replies into statuses."""

    @functools.wraps(method)
    async def call(self: _Self, request: _Request, context: _Context) -> AsyncIterator[_Reply]:
        try:
            async for reply in method(self, request, context):
                yield reply
        except Exception as error:  # noqa: BLE001 - the process outlives a failed call
            await _refuse(context, method.__name__, error)

    return call


async def _refuse(context: _Context, call: str, error: Exception) -> NoReturn:
    if not isinstance(error, SecaggError):
        log.failure("call failed", error, call=call)
        error = InternalError("the coordinator failed; its log says how")
    status = error_to_status(error)
    log.event(
        "call refused", level=logging.WARNING, call=call, peer=context.peer(),
        code=status.code.name, error=type(error).__name__, message=status.message,
    )  # fmt: skip
    await context.abort(status.code, status.message, status.trailing)


class Threads:
    """Blocking work off the event loop."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def run(self, work: Callable[[*_Args], _T], *arguments: *_Args) -> _T:
        """`work(*arguments)` in a worker thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, work, *arguments)
