"""The tenant's line to the coordinator: one channel, its services, and what is said about failures.

Calls that fail because the coordinator is away are repeated. The first failure in a row is logged
as a warning with what to look at, since a wrong certificate looks just the same; the others only at
level debug, until a call got through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from secagg.errors import SecaggError
from secagg_wire.client import (
    BackOff,
    Caller,
    model_service,
    open_channel,
    round_service,
    transcript_service,
    upload_input,
)
from secagg_wire.codec import submit_request
from secagg_wire.event_log import EventLog, Level
from secagg_wire.key_files import KeyFiles
from secagg_wire.v1 import round_service_pb2 as pb

if TYPE_CHECKING:
    from secagg_wire.v1.model_service_pb2_grpc import ModelServiceAsyncStub
    from secagg_wire.v1.round_service_pb2_grpc import RoundServiceAsyncStub
    from secagg_wire.v1.transcript_service_pb2_grpc import TranscriptServiceAsyncStub


class Connection:
    """See the module's docstring."""

    def __init__(
        self, target: str, keys: KeyFiles, tenant: str, log: EventLog, call_seconds: float,
        back_off: BackOff | None = None,
    ) -> None:  # fmt: skip
        self._channel: grpc.aio.Channel = open_channel(target, keys)
        self._log = log
        self._tenant = tenant
        self._call_seconds = call_seconds
        self._away = False
        self.caller = Caller(target, back_off=back_off, on_retry=self._retrying)
        self.rounds: RoundServiceAsyncStub = round_service(self._channel)
        self.upload_input = upload_input(self._channel)
        self.models: ModelServiceAsyncStub = model_service(self._channel)
        self.transcripts: TranscriptServiceAsyncStub = transcript_service(self._channel)

    async def submit(self, context: bytes, message: bytes, give_up_s: float) -> None:
        """Send one message of a step; the same again is harmless.

        Raises:
            SecaggError: the coordinator refused it, or stayed away for `give_up_s` seconds.
        """
        request = submit_request(self._tenant, context, message)
        await self.caller.call(
            self.rounds.SubmitMessage, request, seconds=self._call_seconds, give_up_s=give_up_s
        )

    async def decline(self, context: bytes, reason: str, clause: str = "") -> None:
        """Say that this tenant takes no further part, so that nobody waits for it."""
        request = pb.DeclineRoundRequest(
            context=context, tenant=self._tenant, reason=reason, clause=clause
        )
        try:
            await self.caller.call(
                self.rounds.DeclineRound, request, seconds=self._call_seconds, give_up_s=0
            )
        except SecaggError as error:
            # Silence says the same, only later.
            self._log.event("decline_not_delivered", context=context, reason=str(error))

    async def close(self) -> None:
        """End all calls."""
        await self._channel.close()

    def reached(self) -> None:
        """A call got through: say so if none had before."""
        if self._away:
            self._away = False
            self._log.event("coordinator_reached", coordinator=self.caller.target)

    def _retrying(self, error: SecaggError, wait_s: float) -> None:
        level: Level = "debug" if self._away else "warning"
        self._away = True
        self._log.event(
            "coordinator_unavailable", level=level, reason=str(error), next_try_s=round(wait_s, 2)
        )
