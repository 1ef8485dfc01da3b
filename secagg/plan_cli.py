"""Print what a cohort of N can withstand, and what a round costs on the wire.

Nothing here talks to anybody: it makes a plan with protocol.md's defaults and reads it out. Byte
counts are those of the messages' own encoders, for one tenant and a round without dropouts.

  secagg plan --tenants 5
  secagg plan --tenants 100 --colluders 10 --value-bits 16 --length 1000000 --format json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from secagg.checks import bundle_bytes
from secagg.encoding import Quantiser, ring_bits_needed
from secagg.errors import Step
from secagg.layout import Layout
from secagg.messages import (
    Acknowledge,
    AdvertiseKeys,
    AgreedView,
    Answer,
    DeliveredLeaf,
    KeyDirectory,
    Leaf,
    Quorum,
    ShareDelivery,
    ShareKeys,
    ShareKeysBody,
    Signed,
    Survivors,
    SurvivorSet,
    Unmask,
    UploadCommitment,
    UploadHeader,
)
from secagg.plan import MIN_SURVIVORS, RoundPlan, quorum
from secagg.records import encode
from secagg.scheme import upload_bytes
from secagg.suite import KEM_KEY_BYTES, TAG_BYTES, encapsulation_bytes, pad_box_bytes

_DIGEST, _SIGNATURE = bytes(32), bytes(64)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one tenant in one step."""

    up: int
    down: int


def main(argv: list[str]) -> int:
    """Run `secagg plan ...`."""
    options = _parser().parse_args(argv)
    plan = plan_for(
        options.tenants, options.colluders, options.value_bits, options.length, options.max_weight
    )
    facts = describe(plan)
    print(json.dumps(facts) if options.format == "json" else _in_words(facts))
    return 0


def plan_for(
    tenants: int, colluders: int | None, value_bits: int, length: int, max_weight: int
) -> RoundPlan:
    """The default plan of a cohort of this size, for members that do not exist.

    Raises:
        ConfigError: no such round is possible; names the clause.
    """
    f = max(0, tenants - 1) // 3 if colluders is None else colluders
    q = quorum(tenants, f)
    return RoundPlan(
        roster_digest=_DIGEST,
        round_number=1,
        cohort=tuple(f"tenant-{i:05d}" for i in range(min(tenants, 1 << 20))),
        model_digest=_DIGEST,
        layout=Layout.flat(length),
        quantiser=Quantiser(1.0, value_bits),
        max_colluders=f,
        share_count=tenants,
        share_threshold=q,
        min_survivors=max(q, f + 2, MIN_SURVIVORS),
        ring_bits=max(8, ring_bits_needed(value_bits, max(tenants, 1), 4)),
        max_weight=max_weight,
        weight_ring_bits=max(8, ring_bits_needed(max_weight.bit_length() + 1, max(tenants, 1), 4)),
    )


def describe(plan: RoundPlan) -> dict[str, Any]:
    """Everything that is printed, as JSON values."""
    traffic = {step.label: _TRAFFIC[step](plan) for step in Step}
    return {
        "tenants": plan.n,
        "colluders": plan.max_colluders,
        "quorum": plan.quorum,
        "share_threshold": plan.share_threshold,
        "min_survivors": plan.min_survivors,
        "may_be_silent_from": {step.label: lost for step, lost in dropouts(plan).items()},
        "value_bits": plan.quantiser.value_bits,
        "ring_bits": plan.ring_bits,
        "length": plan.layout.size,
        "upload_bytes_per_value": upload_bytes(plan) / plan.layout.size,
        "bytes": {label: {"up": t.up, "down": t.down} for label, t in traffic.items()},
        "bytes_up": sum(t.up for t in traffic.values()),
        "bytes_down": sum(t.down for t in traffic.values()),
        "coordinator_bytes_in": plan.n * sum(t.up for t in traffic.values()),
    }


def dropouts(plan: RoundPlan) -> dict[Step, int]:
    """How many tenants may say nothing from this step on, and the round still opens.

    Until U3 stands, who is left must meet the quorum, `min_survivors` and the threshold; then
    `quorum` signatures and at last `share_threshold` answers are needed.
    """
    before = plan.n - max(plan.least, plan.share_threshold)
    signing = plan.n - max(plan.quorum, plan.share_threshold)
    early = dict.fromkeys(list(Step)[: Step.CONSISTENCY_CHECK], before)
    return early | {
        Step.CONSISTENCY_CHECK: signing,
        Step.UNMASK: plan.n - plan.share_threshold,
    }


def _advertise_keys(plan: RoundPlan) -> Traffic:
    kem = b"" if plan.suite == "x25519" else bytes(KEM_KEY_BYTES)
    one = _signed(plan, AdvertiseKeys(_DIGEST, _DIGEST, kem, kem))
    return Traffic(_size(one), _many(plan.n, lambda count: KeyDirectory((one,) * count)))


def _share_keys(plan: RoundPlan) -> Traffic:
    body = _signed(plan, ShareKeysBody(tuple(range(plan.share_count)), _DIGEST, _DIGEST))
    sealed = (bytes(encapsulation_bytes(plan.suite)), bytes(bundle_bytes() + TAG_BYTES))
    pad_box = bytes(pad_box_bytes(plan.suite))
    leaf = Leaf(0, *sealed, (_DIGEST,) * 2, pad_box, _DIGEST if pad_box else b"")
    bare = Leaf(0, *sealed, (_DIGEST,) * 2)
    path = (_DIGEST,) * (plan.share_count - 1).bit_length()
    # On the complete graph one of each pair seals a pad; the own leaf is a hash's worth of bytes.
    others = plan.share_count - plan.complete
    pads = others // 2 if plan.complete else others
    leaves = (leaf,) * pads + (bare,) * (others - pads)
    delivered = tuple(DeliveredLeaf(0, one, path) for one in leaves)
    own = (Leaf(0, b"", b"", (_DIGEST,) * 2),) * plan.complete
    return Traffic(
        _size(ShareKeys(body, own + leaves)),
        _many(plan.n, lambda count: ShareDelivery((body,) * count, ()))
        + _size(ShareDelivery((), delivered))
        - _size(ShareDelivery((), ())),
    )


def _acknowledge(plan: RoundPlan) -> Traffic:
    one = _signed(plan, Acknowledge(_DIGEST, _DIGEST, ()))
    return Traffic(_size(one), _many(plan.n, lambda count: AgreedView((one,) * count)))


def _masked_input(plan: RoundPlan) -> Traffic:
    header = _signed(plan, UploadHeader(_DIGEST, 0))
    commitment = _signed(plan, UploadCommitment(_DIGEST, _DIGEST, 0))
    return Traffic(
        _size(header) + upload_bytes(plan) + _size(commitment),
        _many(plan.n, lambda count: SurvivorSet((commitment,) * count)),
    )


def _consistency_check(plan: RoundPlan) -> Traffic:
    one = _signed(plan, Survivors(_DIGEST, _DIGEST))
    return Traffic(_size(one), _many(plan.quorum, lambda count: Quorum((one,) * count)))


def _unmask(plan: RoundPlan) -> Traffic:
    answers = (Answer(0, 0, bytes(33), _DIGEST),) * plan.share_count
    return Traffic(_size(_signed(plan, Unmask(_DIGEST, answers))), 0)


_TRAFFIC: dict[Step, Callable[[RoundPlan], Traffic]] = {
    Step.ADVERTISE_KEYS: _advertise_keys,
    Step.SHARE_KEYS: _share_keys,
    Step.ACKNOWLEDGE: _acknowledge,
    Step.MASKED_INPUT: _masked_input,
    Step.CONSISTENCY_CHECK: _consistency_check,
    Step.UNMASK: _unmask,
}


def _signed(plan: RoundPlan, body: Any) -> Signed:
    return Signed(body.LABEL, 0, encode(body), _SIGNATURE)


def _size(record: object) -> int:
    return len(encode(record))


def _many(count: int, record: Callable[[int], object]) -> int:
    """The size of a record of `count` equal items: records grow by the same bytes with each."""
    none, one = _size(record(0)), _size(record(1))
    return none + count * (one - none)


def _in_words(facts: dict[str, Any]) -> str:
    lost = facts["may_be_silent_from"]
    lines = [
        f"cohort             n = {facts['tenants']}",
        f"colluders          f = {facts['colluders']}  (may side with a cheating coordinator)",
        f"quorum             q = {facts['quorum']}  (signatures over one survivor set)",
        f"threshold          t = {facts['share_threshold']}  (shares that open)",
        f"least survivors        {facts['min_survivors']}",
        f"ring                   {facts['ring_bits']} bits for {facts['value_bits']}-bit values",
        f"a value up             {facts['upload_bytes_per_value']:.3f} bytes",
        "",
        f"{'step':20}{'may be silent from':>20}{'bytes up':>16}{'bytes down':>16}",
    ]
    for step, traffic in facts["bytes"].items():
        lines.append(f"{step:20}{lost[step]:>20}{traffic['up']:>16,}{traffic['down']:>16,}")
    lines.append(f"{'in all':40}{facts['bytes_up']:>16,}{facts['bytes_down']:>16,}")
    lines.append(f"{'coordinator receives':40}{facts['coordinator_bytes_in']:>16,}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="secagg plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tenants", type=int, required=True, metavar="N")
    parser.add_argument("--colluders", type=int, metavar="F", help="default: floor((N - 1) / 3)")
    parser.add_argument("--value-bits", type=int, default=16, metavar="B")
    parser.add_argument("--length", type=int, default=1_000_000, metavar="D")
    parser.add_argument("--max-weight", type=int, default=1, metavar="W")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    return parser
