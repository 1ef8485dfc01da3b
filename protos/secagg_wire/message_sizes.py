"""Whether a plan's messages fit through the wire, before anybody waits for one that does not.

Vectors go in pieces and have no limit here. A step's message is one message of `limits.py`: with
scheme `ckks` a dealer's shares grow with the committee, and what a holder is dealt with the cohort.
"""

from __future__ import annotations

from secagg.errors import ConfigError, Step
from secagg.plan import RoundPlan
from secagg.scheme import upload_bytes
from secagg.traffic import traffic
from secagg_wire.limits import DOWNLINK_MESSAGE_BYTES, UPLINK_MESSAGE_BYTES


def require_messages_fit(plan: RoundPlan) -> None:
    """Demand that no step's message is longer than a message may be.

    Raises:
        ConfigError: one is; names the step and what would help.
    """
    for step, size in traffic(plan).items():
        streamed = upload_bytes(plan) if step is Step.MASKED_INPUT else 0
        for way, size_in_bytes, limit in (
            ("from", size.up - streamed, UPLINK_MESSAGE_BYTES),
            ("to", size.down, DOWNLINK_MESSAGE_BYTES),
        ):
            if size_in_bytes > limit:
                raise ConfigError(
                    f"in step {step.label} the message {way} each tenant has {size_in_bytes} bytes "
                    f"and the wire carries {limit}; {_cure(plan, way)}"
                )


def _cure(plan: RoundPlan, way: str) -> str:
    if plan.ckks is not None and way == "from":
        return f"name a smaller committee than {plan.share_count} in the roster"
    return f"take a smaller cohort than {plan.n}"
