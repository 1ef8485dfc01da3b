"""A round as the owner and the operator see it: the store's record, and more while it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from secagg.errors import Step
from secagg.plan import RoundPlan
from secagg.scheme import upload_bytes
from secagg_coordinator.records import Outcome, RoundRecord, StepRecord, UploadRecord
from secagg_wire.codec import step_to_wire
from secagg_wire.v1 import round_pb2

_OUTCOMES: dict[Outcome, round_pb2.RoundOutcome.ValueType] = {
    "running": round_pb2.ROUND_OUTCOME_RUNNING,
    "opened": round_pb2.ROUND_OUTCOME_OPENED,
    "aborted": round_pb2.ROUND_OUTCOME_ABORTED,
}


@dataclass(frozen=True, slots=True)
class Live:
    """What a running round's driver knows beyond the store."""

    step: StepRecord
    deadline_in_s: float
    """Infinite when nothing is waited for: before the first step, and once the round is over."""
    uploads: tuple[UploadRecord, ...]


def outcome_to_wire(outcome: Outcome) -> round_pb2.RoundOutcome.ValueType:
    """The enum value of an outcome."""
    return _OUTCOMES[outcome]


def status_of(record: RoundRecord, live: Live | None = None) -> round_pb2.RoundStatus:
    """The whole status; `live` only while the round runs."""
    plan = RoundPlan.decode(record.plan)
    running = () if live is None else (live.step,)
    return round_pb2.RoundStatus(
        context=record.context,
        round_number=record.round_number,
        adapter_version=record.adapter_version,
        outcome=outcome_to_wire(record.outcome),
        reason=record.reason,
        step=step_to_wire(record.step if live is None else live.step.step),
        deadline_in_ms=0 if live is None else _whole_ms(live.deadline_in_s),
        cohort=plan.cohort,
        survivors=record.opened.survivors,
        excluded=[
            round_pb2.Exclusion(tenant=e.tenant, step=step_to_wire(e.step), reason=e.reason)
            for e in record.exclusions
        ],
        steps=[_step(step, record.answered) for step in (*record.steps, *running)],
        uploads=_uploads(plan, record.uploads if live is None else live.uploads),
        opened_at_ms=record.opened_at_ms,
        ended_at_ms=record.ended_at_ms,
        sum_root=record.opened.sum_root,
        transcript_sha256=record.transcript_sha256,
    )


def _whole_ms(seconds: float) -> int:
    return max(0, int(seconds * 1000)) if math.isfinite(seconds) else 0


def _step(record: StepRecord, answered: dict[Step, tuple[str, ...]]) -> round_pb2.StepStatus:
    return round_pb2.StepStatus(
        step=step_to_wire(record.step),
        answered=answered.get(record.step, ()),
        seconds=record.seconds,
        bytes_received=record.bytes_received,
        bytes_sent=record.bytes_sent,
    )


def _uploads(plan: RoundPlan, uploads: tuple[UploadRecord, ...]) -> list[round_pb2.UploadStatus]:
    total = upload_bytes(plan)
    return [
        round_pb2.UploadStatus(
            tenant=upload.tenant, committed_size=upload.committed_size, total_size=total
        )
        for upload in uploads
    ]
