"""Our records inside Flower's messages: requests on the way down, replies on the way up.

A request is one or more of `secagg_embed.wire`'s, in the ConfigRecord "secagg". A reply has the
heads there too, and the protected vector, which has a model's size, as an array of bytes in the
ArrayRecord "secagg.upload": Flower carries arrays in chunks. Its `stype` is not NumPy's, so that
nobody decodes an array whose header another party wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from secagg.errors import MalformedMessage
from secagg_embed.wire import Reply

RECORD = "secagg"
UPLOAD = "secagg.upload"
_VERSION = 1
_STYPE = "secagg.bytes"

Records = Mapping[str, ArrayRecord | ConfigRecord | MetricRecord]


def with_requests(content: Records, requests: Sequence[bytes]) -> RecordDict:
    """`content` and, beside it, what the tenant is asked."""
    ours = ConfigRecord({"version": _VERSION, "requests": list(requests)})
    return RecordDict({**content, RECORD: ours})


def with_replies(content: Records, replies: Sequence[Reply]) -> RecordDict:
    """`content` and, beside it, the tenant's replies, one for each request."""
    heads = ConfigRecord({"version": _VERSION, "heads": [reply.head for reply in replies]})
    records: dict[str, ArrayRecord | ConfigRecord | MetricRecord] = {**content, RECORD: heads}
    uploads = {str(i): _array(r.upload) for i, r in enumerate(replies) if len(r.upload)}
    if uploads:
        records[UPLOAD] = ArrayRecord(uploads)
    return RecordDict(records)


def read_requests(content: RecordDict) -> tuple[bytes, ...] | None:
    """What this message asks of the tenant; None where nothing of ours is in it.

    Raises:
        MalformedMessage: something of ours is in it, and cannot be read.
    """
    return _read(content, "requests")


def read_replies(content: RecordDict) -> tuple[Reply, ...] | None:
    """What a tenant replied; None where nothing of ours is in it.

    Raises:
        MalformedMessage: something of ours is in it, and cannot be read.
    """
    heads = _read(content, "heads")
    if heads is None:
        return None
    sent: Mapping[str, object] = content.get(UPLOAD, {})
    uploads = {name: value for name, value in sent.items() if isinstance(value, Array)}
    if len(uploads) != len(sent):
        raise MalformedMessage(f"the record {UPLOAD!r} holds something else than arrays")
    return tuple(
        Reply(head, uploads[str(i)].data if str(i) in uploads else b"")
        for i, head in enumerate(heads)
    )


def without_ours(content: RecordDict) -> RecordDict:
    """The records that are not ours."""
    return RecordDict({k: v for k, v in content.items() if k not in (RECORD, UPLOAD)})


def _array(data: bytes | bytearray | memoryview) -> Array:
    return Array(dtype="uint8", shape=(len(data),), stype=_STYPE, data=bytes(data))


def _read(content: RecordDict, field: str) -> tuple[bytes, ...] | None:
    if RECORD not in content:
        return None
    record = content[RECORD]
    values = record.get(field)
    if record.get("version") != _VERSION or not isinstance(values, list) or not values:
        raise MalformedMessage(
            f"the record {RECORD!r} has no {field} of version {_VERSION}; both sides need the same "
            "version of secagg"
        )
    read = tuple(value for value in values if isinstance(value, bytes))
    if len(read) != len(values):
        raise MalformedMessage(f"the {field} in the record {RECORD!r} are no bytes")
    return read
