"""What every tenant of a round is asked to do, and the digest that makes it the same for all.

The sum of several updates hides each of them only if all of them are there. Whoever sends one
tenant a learning rate of 0.1, and the others 0, reads that one's update from the sum. So the plan's
`model_digest`, which enters the context that all tenants agree on, is here a digest of the whole
task: the kind of message, every record that comes with it (the model's arrays, the configuration),
and the run's configuration. A tenant that is asked something else than the others does not train.

Not covered: the code of the ClientApp. Where it reaches the tenants through the same server, that
is for Flower's trusted entities to prove (docs/flower.md).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, Message, RecordDict
from numpy.typing import NDArray

from secagg.canonical import Writer
from secagg.errors import ConfigError, ProtocolError
from secagg.plan import RoundPlan

RunConfig = Mapping[str, bool | float | int | str]


@dataclass(frozen=True, slots=True)
class Task:
    """One round of training as the inner strategy asks for it: its `messages` by node, all of one
    `message_type` ("train", or "train.<action>") and with the same `content`. `digest` is the
    plan's `model_digest`."""

    messages: Mapping[int, Message]
    message_type: str
    content: RecordDict
    digest: bytes

    @classmethod
    def of(cls, messages: Sequence[Message], run_config: RunConfig) -> Task:
        """The task in an inner strategy's messages, of which there is one at least.

        Raises:
            ConfigError: it asks different things of different nodes, or two of one node.
        """
        by_node = {message.metadata.dst_node_id: message for message in messages}
        if len(by_node) != len(messages):
            raise ConfigError("the strategy sends two training messages to one node; send one")
        contents = {id(m.content): m for m in messages}.values()  # most strategies share one
        digests = {task_digest(m.metadata.message_type, m.content, run_config) for m in contents}
        if len(digests) > 1 or len({m.metadata.message_type for m in messages}) > 1:
            raise ConfigError(
                "the strategy asks different things of different nodes, and then a sum does not "
                "hide a single update; send all the same, and keep what differs in node_config"
            )
        first = messages[0]
        return cls(by_node, first.metadata.message_type, first.content, digests.pop())


def require_task(
    plan: RoundPlan, message_type: str, content: RecordDict, run_config: RunConfig
) -> None:
    """Demand that what came is what the plan names, before anything is trained.

    Raises:
        ProtocolError: the coordinator asks something else of this tenant than it announced to all.
    """
    if task_digest(message_type, content, run_config) == plan.model_digest:
        return
    if run_config and task_digest(message_type, content, {}) == plan.model_digest:
        raise ProtocolError(
            "the round's plan does not name this run's configuration, so that other tenants may "
            "have another: start with SecureAggregation(..., run_config=context.run_config)"
        )
    raise ProtocolError(
        "the model or the configuration that came is not what the round's plan names: the "
        "coordinator asks something else of this tenant than of the others, or sent another model"
    )


def task_digest(message_type: str, content: RecordDict, run_config: RunConfig) -> bytes:
    """SHA-256 over the kind of message, all records in the order of their names, and `run_config`.

    Arrays count with the bytes that travel: nothing is decoded for it.
    """
    digest = hashlib.sha256(Writer().tag("task").blob(message_type.encode()).finish())
    for name in sorted(content):
        record = content[name]
        _name(digest, type(record).__name__, name, len(record))
        for key in sorted(record):
            _name(digest, "entry", key, 1)
            _value(digest, record[key])
    _name(digest, "run_config", "", len(run_config))
    for key in sorted(run_config):
        _name(digest, "entry", key, 1)
        _value(digest, run_config[key])
    return digest.digest()


def only_arrays(content: RecordDict, whose: str) -> ArrayRecord:
    """The one ArrayRecord in a message.

    Raises:
        ConfigError: there is none, or more than one.
    """
    records = list(content.array_records.values())
    if len(records) != 1:
        raise ConfigError(f"{whose} has {len(records)} ArrayRecords, and exactly one is needed")
    return records[0]


def tensors(arrays: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
    """The arrays decoded, by name."""
    return {name: array.numpy() for name, array in arrays.items()}


def _name(digest: Any, kind: str, name: str, count: int) -> None:
    digest.update(Writer().tag(kind).blob(name.encode()).u32(count).finish())


def _value(digest: Any, value: object) -> None:
    match value:
        case Array():
            head = Writer().tag("array").text(value.dtype).text(value.stype)
            head.u32(len(value.shape))
            for side in value.shape:
                head.u64(side)
            digest.update(head.u64(len(value.data)).finish())
            digest.update(value.data)
        case list():
            _name(digest, "list", "", len(value))
            for one in value:
                _value(digest, one)
        case _:
            kind, data = _scalar(value)
            digest.update(Writer().tag(kind).blob(data).finish())


def _scalar(value: object) -> tuple[str, bytes]:
    """A scalar as it arrives: Flower carries NumPy's float64 as a float."""
    match value:
        case bytes():
            return "bytes", value
        case bool():
            return "bool", bytes([value])
        case int():
            return "int", str(int(value)).encode()
        case float():
            return "float", struct.pack(">d", value)
        case _:
            return "str", str(value).encode()
