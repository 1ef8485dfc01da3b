"""What crosses between the two sides of an exchange: requests down, replies up, in canonical bytes.

A request is one record. A reply is one small record, its head, and beside it the protected vector,
which a stack may carry in whatever way it carries arrays. Nothing here is secret and nothing is
trusted: what a message is worth, the core decides by signatures.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TypeVar, get_args

from secagg.canonical import Reader, Writer
from secagg.errors import MalformedMessage, SecaggError
from secagg.records import U8, Digest, Signature, decode, encode

_LONGEST_REASON = 1000
UNABLE = "its update could not be made; its own log says why"


@dataclass(frozen=True, slots=True)
class Hello:
    """Who are you? `nonce` is fresh for each node that is asked."""

    nonce: Digest


@dataclass(frozen=True, slots=True)
class Offer:
    """A round begins: `plan` is `RoundPlan.encode()`."""

    plan: bytes


@dataclass(frozen=True, slots=True)
class Deliver:
    """A message of the aggregator in the round of `context`."""

    context: Digest
    message: bytes


@dataclass(frozen=True, slots=True)
class RoundEnding:
    """The coordinator's word on how a round ended. It proves nothing, and frees what is kept."""

    context: Digest
    opened: U8
    reason: str
    survivors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Introduction:
    """The answer to `Hello`: signed over its nonce and the digest of the tenant's roster."""

    tenant: str
    signature: Signature


@dataclass(frozen=True, slots=True)
class Said:
    """What the participant sends: `messages`, then the upload beside the head, then `committed`."""

    context: Digest
    messages: tuple[bytes, ...]
    committed: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Declined:
    """This tenant takes no part, or no longer; nobody needs to wait for it."""

    context: Digest
    reason: str


Request = Hello | Offer | Deliver | RoundEnding
Head = Introduction | Said | Declined
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply: its head, and the upload, empty in every exchange but one."""

    head: bytes
    upload: bytes | bytearray | memoryview = b""

    def encode(self) -> bytes:
        """Both in one piece, for links that carry bytes."""
        return b"".join((Writer().tag("reply").blob(self.head).finish(), self.upload))

    @classmethod
    def decode(cls, data: bytes) -> Reply:
        """Inverse of `encode`; the upload is a view of `data`.

        Raises:
            MalformedMessage: these bytes are no reply.
        """
        if not isinstance(data, bytes):
            raise MalformedMessage(f"a reply is bytes, and this is a {type(data).__name__}")
        reader = Reader(data, "reply")
        reader.tag("reply")
        head = reader.blob()
        return cls(head, memoryview(data)[reader.place :])

    def read(self) -> Head:
        """The head's record.

        Raises:
            MalformedMessage: it is none.
        """
        head: Head = _one_of(get_args(Head), self.head, "head of a reply")
        return head


def decode_request(data: bytes) -> Request:
    """The request in `data`.

    Raises:
        MalformedMessage: these bytes are no request.
    """
    request: Request = _one_of(get_args(Request), data, "request")
    return request


def declining(context: bytes, error: SecaggError) -> Reply:
    """The reply of a tenant that refuses what the coordinator sent, with why: ids and numbers."""
    return Reply(encode(Declined(context, printable(str(error)))))


def unable(context: bytes) -> Reply:
    """The reply of a tenant that could not make its update: the same whatever went wrong.

    What goes wrong in training follows from the data, and a coordinator that chooses the model
    chooses for which data. That it went wrong shows; why is for the tenant's own log.
    """
    return Reply(encode(Declined(context, UNABLE)))


def printable(reason: str) -> str:
    """A reason as one line that can be logged: no line breaks, no control sequences, an end."""
    kept = "".join(one if one.isprintable() else "?" for one in reason[:_LONGEST_REASON])
    return unicodedata.normalize("NFC", kept)


def _one_of(kinds: tuple[type[_R], ...], data: bytes, what: str) -> _R:
    if not isinstance(data, bytes):
        raise MalformedMessage(f"a {what} is bytes, and this is a {type(data).__name__}")
    name = data[5 : 5 + int.from_bytes(data[1:5])]
    for kind in kinds:
        if kind.__name__.encode() == name:
            return decode(kind, data)
    raise MalformedMessage(f"these bytes are no {what}")
