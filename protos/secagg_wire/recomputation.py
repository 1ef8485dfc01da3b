"""A round's sum recomputed from what its coordinator serves; for the owner and for tenants.

    claim -> transcript -> numbers drawn -> leaves

The claim (`manifest.Origin`) is fixed before any leaf is chosen, and the choice before any leaf is
asked for: it stands until those very leaves have come. The transcript must be the one
that the claim names and hold under the caller's own roster. Then leaves of the survivors' uploads
come one by one, each checked against the root that its tenant signed, and give the sum's leaves,
each checked against the claimed root (`secagg.recompute`). The coordinator is believed in nothing;
what it can do is to be silent, and that is no success either.

A coordinator that is away is asked again; one that is silent for `silence_s`, breaks off, or sends
anything else than what was asked for ends the recomputation with an error. Memory is the transcript
(bounded by the plan) and one leaf.

What success does not imply: that the survivors' inputs were honest, or that a model was made from
this sum.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import grpc

from secagg.errors import ProtocolError
from secagg.identity import Roster, sha256
from secagg.plan import RoundPlan
from secagg.recompute import check_sum, random_leaves
from secagg.scheme import leaf_places, scheme_of
from secagg.secret import Randomness
from secagg.transcript import Verified, verify_transcript
from secagg_wire.client import STREAM_SECONDS, Caller, is_unavailable, translated
from secagg_wire.limits import LEAVES_PER_REQUEST
from secagg_wire.manifest import Origin
from secagg_wire.refusals import CallFailed
from secagg_wire.v1 import transcript_service_pb2 as pb

if TYPE_CHECKING:
    from secagg_wire.v1.transcript_service_pb2_grpc import TranscriptServiceAsyncStub

Mode = Literal["all", "random", "off"]
"""Recompute every leaf of a sum, some drawn at random, or none."""
InThread = Callable[..., Awaitable[Any]]
"""`in_thread(work, *arguments)`: the call's result, computed off the event loop."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A transcript that holds, and its bytes."""

    verified: Verified
    transcript: bytes


class Recomputation:
    """See the module's docstring. Everything that it raises means: not recomputed."""

    def __init__(
        self,
        caller: Caller,
        service: TranscriptServiceAsyncStub,
        *,
        silence_s: float,
        in_thread: InThread = asyncio.to_thread,
    ) -> None:
        self._caller = caller
        self._service = service
        self._silence_s = silence_s
        self._in_thread = in_thread

    async def transcript(self, claim: Origin, roster: Roster) -> Fetched:
        """The transcript that the claim names, verified.

        Raises:
            ProtocolError: the coordinator claims something else, or the transcript does not hold.
            Refusal: it cannot be had: no such round, not for this caller, no longer kept.
        """
        data = await _Download(self._service, claim, self._patience()).run()
        verified = await self._in_thread(verify_transcript, data, roster)
        if verified.plan.context != claim.context:
            raise ProtocolError("the transcript is of another round than the claim")
        return Fetched(verified, data)

    async def compare(self, verified: Verified, root: bytes, numbers: Sequence[int]) -> int:
        """Recompute these leaves and compare each with the claimed sum; returns how many.

        Raises:
            ProtocolError: a leaf is not the one that was signed (C40), or the claimed sum is
                another one (C41).
            Refusal: the leaves cannot be had.
        """
        async with aclosing(self._leaves(verified, numbers)) as answers:
            leaves = _RemoteLeaves(answers)
            work = asyncio.ensure_future(
                self._in_thread(check_sum, verified, leaves, root, leaves.path, numbers)
            )
            try:
                return int(await asyncio.shield(work))
            finally:
                await leaves.stop(work)

    async def _leaves(
        self, verified: Verified, numbers: Sequence[int]
    ) -> AsyncGenerator[pb.ReadLeavesResponse, None]:
        """Every answer in order, over as many calls as it takes."""
        per_number, done, patience = len(verified.survivors) + 1, 0, self._patience()
        while done < len(numbers) * per_number:
            first, skip = divmod(done, per_number)
            batch = numbers[first : first + LEAVES_PER_REQUEST]
            request = pb.ReadLeavesRequest(context=verified.plan.context, numbers=batch)
            call = self._service.ReadLeaves(request, timeout=STREAM_SECONDS)
            due = len(batch) * per_number
            try:
                async with aclosing(patience.stream(call)) as answers:
                    async for answer in answers:
                        due -= 1
                        if due < 0:
                            raise ProtocolError("the coordinator sends more leaves than asked for")
                        if skip:
                            skip -= 1
                            continue
                        yield answer
                        done += 1
            except grpc.aio.AioRpcError as error:
                await patience.again(error)
                continue
            if due:
                raise ProtocolError("the coordinator broke off in the middle of the leaves")

    def _patience(self) -> _Patience:
        return _Patience(self._caller, self._silence_s)


class _Patience:
    """Waits for a coordinator that is away, but never longer than `silence_s` for any progress."""

    def __init__(self, caller: Caller, silence_s: float) -> None:
        self._caller = caller
        self._silence_s = silence_s
        self._progress()

    def _progress(self) -> None:
        self._waits = self._caller.back_off.waits()
        self._until = asyncio.get_running_loop().time() + self._silence_s

    async def stream(self, call: Any) -> AsyncGenerator[Any, None]:
        """A call's answers, as they come."""
        try:
            while (answer := await self._read(call)) is not grpc.aio.EOF:
                yield answer
                self._progress()
        finally:
            call.cancel()

    async def _read(self, call: Any) -> Any:
        try:
            return await asyncio.wait_for(call.read(), self._silence_s)
        except TimeoutError:
            raise CallFailed(
                f"the coordinator sent nothing for {self._silence_s:.0f} s within a stream",
                code=grpc.StatusCode.DEADLINE_EXCEEDED.name,
            ) from None

    async def again(self, error: grpc.aio.AioRpcError) -> None:
        """Wait before the next attempt, where one may help."""
        ours = translated(error, self._caller.target)
        if not is_unavailable(ours) or asyncio.get_running_loop().time() > self._until:
            raise ours from None
        await self._caller.pause(ours, next(self._waits))


def chosen_leaves(
    plan: RoundPlan,
    mode: Mode,
    count: int,
    standing: Sequence[int] = (),
    randomness: Randomness = os.urandom,
) -> tuple[int, ...]:
    """The leaves to recompute: all, or `count` drawn at random and the last one, which is the sum
    of the weights: small, and every coordinate of a mean hangs on it.

    `standing` are those drawn for the same claim before; they stay. Whoever draws afresh after each
    failure lets a coordinator be away whenever an invented leaf is asked for.
    """
    total = len(leaf_places(plan))
    match mode:
        case "all":
            return tuple(range(total))
        case "random":
            kept, least = set(standing), min(count, total)
            fresh = random_leaves(plan, least, randomness) if len(kept) < least else ()
            return tuple(sorted({*kept, *fresh, total - 1}))
        case "off":
            return ()


def transcript_bound(plan: RoundPlan) -> int:
    """A length in bytes that no transcript of this plan reaches.

    Each member has keys, signatures and digests, and what it commits to; each pair of a dealer and
    a holder an outline, a share and perhaps a pad's box of 1.2 kB; in scheme `ckks` each holder
    releases one sum, of a share's length.
    """
    scheme = scheme_of(plan)
    own = plan.n * ((1 << 14) + scheme.commitment_bytes(plan))
    return (
        (1 << 16)
        + own
        + plan.n * plan.share_count * (1 << 11)
        + plan.share_count * scheme.share_bytes(plan)
    )


class _Download:
    """One transcript on its way, never longer than the claim's plan allows."""

    def __init__(
        self, service: TranscriptServiceAsyncStub, claim: Origin, patience: _Patience
    ) -> None:
        self._service = service
        self._claim = claim
        self._patience = patience
        self._data = bytearray()
        self._size = 0

    async def run(self) -> bytes:
        """The bytes, which have the claim's digest."""
        while True:
            request = pb.ReadTranscriptRequest(context=self._claim.context, offset=len(self._data))
            try:
                await self._read(self._service.ReadTranscript(request, timeout=STREAM_SECONDS))
                break
            except grpc.aio.AioRpcError as error:
                await self._patience.again(error)
        data = bytes(self._data)
        if sha256(data) != self._claim.transcript_sha256:
            raise ProtocolError("the transcript that came is not the one that the claim names")
        return data

    async def _read(self, call: Any) -> None:
        first = True
        async with aclosing(self._patience.stream(call)) as answers:
            async for answer in answers:
                if first:
                    self._check(answer.header)
                first = False
                self._data += answer.payload
                if len(self._data) > self._size:
                    raise ProtocolError(f"the transcript is longer than its {self._size} bytes")

    def _check(self, header: pb.TranscriptHeader) -> None:
        claim = self._claim
        if sha256(header.plan) != claim.context:
            raise ProtocolError("the coordinator shows another plan than that of the claimed round")
        if header.sum_root != claim.sum_root:
            raise ProtocolError("the coordinator claims another sum of this round than the claim")
        if header.sha256 != claim.transcript_sha256:
            raise ProtocolError("the coordinator has another transcript of this round")
        bound = transcript_bound(RoundPlan.decode(header.plan))
        if header.size > bound:
            raise ProtocolError(
                f"a transcript of {header.size} bytes is announced; this plan's stay below {bound}"
            )
        self._size = header.size


class _RemoteLeaves:
    """`secagg.recompute.Uploads` over a stream; `leaf` and `path` are called in a worker thread.

    The stream has one order, which is the one in which `recompute` asks.
    """

    def __init__(self, answers: AsyncIterator[pb.ReadLeavesResponse]) -> None:
        self._answers = answers
        self._loop = asyncio.get_running_loop()
        self._reading: asyncio.Task[pb.ReadLeavesResponse | None] | None = None
        self._stopped = False

    def leaf(self, participant: str, number: int) -> tuple[bytes, Sequence[bytes]]:
        """See `secagg.recompute.Uploads`."""
        answer = self._next(number, "upload")
        if answer.upload.tenant != participant:
            raise ProtocolError(f"leaf {number} of another upload than {participant!r}'s came")
        return answer.upload.payload, tuple(answer.upload.path.hashes)

    def path(self, number: int) -> Sequence[bytes]:
        """The audit path of the claimed sum's leaf."""
        return tuple(self._next(number, "claimed").claimed.hashes)

    async def stop(self, work: asyncio.Future[Any]) -> None:
        """Let a thread that waits for a leaf end; nothing runs any more when this returns."""
        self._stopped = True
        if self._reading is not None and not self._reading.done():
            self._reading.cancel()
            await asyncio.wait([self._reading])
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # its waiter may have gone

    def _next(self, number: int, part: str) -> pb.ReadLeavesResponse:
        answer = asyncio.run_coroutine_threadsafe(self._read(), self._loop).result()
        if answer is None:
            raise ProtocolError("the coordinator sent fewer leaves than were asked for")
        if answer.number != number or answer.WhichOneof("part") != part:
            raise ProtocolError(f"the coordinator sent something else than leaf {number}")
        return answer

    async def _read(self) -> pb.ReadLeavesResponse | None:
        if self._stopped:
            raise CallFailed("the recomputation was stopped", code="CANCELLED")
        self._reading = asyncio.current_task()
        return await anext(self._answers, None)
