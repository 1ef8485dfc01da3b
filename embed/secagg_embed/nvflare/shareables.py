"""What crosses between server and sites: NVFLARE carries it, and can tell it from anything else.

    to a site     secagg = {"requests": {site: [bytes, ...]}, "settings": bytes}, and in the
                  exchange of the agreed view the model beside it, as a DXO of WEIGHTS
    to the server secagg = {"head": bytes, "upload": (n,) uint8}, and nothing beside it

A task is made for all sites, and `for_one` leaves in it what is for the site that fetches it (each
may see the others': they are signed or sealed; it would only be more to carry). Several requests
for a site are answered in order; the reply is that of the last (the others tell how an earlier
round ended). Large arrays take NVFLARE's streaming, whatever they mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.filter import ContentBlockedException
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey, Shareable

from secagg.errors import ConfigError, MalformedMessage, SecaggError
from secagg_embed.tensors import Tensors
from secagg_embed.wire import Reply, decode_request

KEY = "secagg"
CONTENT = "secagg/1"

_OWN_HEADERS = {ReservedHeaderKey.CONTENT_TYPE: CONTENT, ReservedHeaderKey.RC: ReturnCode.OK}


class Unprotected(SecaggError, ContentBlockedException):
    """What is not ours was about to pass where only protected content may; nothing has left."""


Settings = Mapping[str, Any]
"""What else the server tells sites to train with; values that JSON has."""


@dataclass(frozen=True, slots=True)
class Message:
    """What one site is sent: requests, and where it is to train, the model and the settings."""

    requests: tuple[bytes, ...]
    model: Tensors | None = None
    settings: bytes = b""


# ---------------------------------------------------------------------------- to a site


def task_data(messages: Mapping[str, Message]) -> Shareable:
    """The task of these sites, of whom all are sent the same model and settings, or none."""
    requests = {site: list(message.requests) for site, message in messages.items()}
    trained = next((m for m in messages.values() if m.model is not None), Message(()))
    shareable = Shareable({KEY: {"requests": requests, "settings": trained.settings}})
    if trained.model is not None:
        DXO(DataKind.WEIGHTS, data=dict(trained.model)).update_shareable(shareable)
    return shareable


def for_one(shareable: Shareable, site: str) -> None:
    """Leave in a site's copy of a task the requests for this site alone."""
    match shareable.get(KEY):
        case {"requests": dict(requests), **rest} if site in requests:
            shareable[KEY] = {**rest, "requests": {site: requests[site]}}


def message_of(shareable: Shareable, site: str) -> Message:
    """What a task says to this site.

    Raises:
        Unprotected: this task is not one of ours, so a site that answers it is not protected.
        MalformedMessage: it says that it is, and holds no requests for this site.
    """
    require_ours(shareable)
    model = from_shareable(shareable).data if "DXO" in shareable else None
    match shareable[KEY]:
        case {"requests": dict(requests), "settings": bytes(settings)}:
            return Message(requests_of(requests.get(site)), model, settings)
        case _:
            raise MalformedMessage("a task without requests")


def require_ours(shareable: Shareable) -> None:
    """Demand that a task is one of ours.

    Raises:
        Unprotected: it is not.
    """
    if KEY not in shareable:
        raise Unprotected(
            "a task without secagg's requests: the server asks for an update in the clear; "
            "start the job with SecureFedAvgController, or SecureAveraging in a Collab job"
        )


def settings_bytes(settings: Settings) -> bytes:
    """Settings as the bytes that a plan's model digest covers.

    Raises:
        ConfigError: a value that JSON does not have.
    """
    try:
        return json.dumps(settings, sort_keys=True, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"settings for the sites' training have to be JSON: {error}") from None


def settings_of(data: bytes) -> dict[str, Any]:
    """Inverse of `settings_bytes`.

    Raises:
        MalformedMessage: these bytes hold no settings.
    """
    try:
        settings = json.loads(data)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise MalformedMessage("the settings for the training are no JSON object")
    return settings


def requests_of(given: object) -> tuple[bytes, ...]:
    """The requests for one site.

    Raises:
        MalformedMessage: there are none, or they are no requests.
    """
    if not isinstance(given, list | tuple) or not given:
        raise MalformedMessage("a task without a request for this site")
    for request in given:
        if not isinstance(request, bytes):
            raise MalformedMessage(f"a request is bytes, and this is a {type(request).__name__}")
        decode_request(request)
    return tuple(given)


# ---------------------------------------------------------------------------- to the server


def payload(reply: Reply) -> dict[str, Any]:
    """A reply as values that NVFLARE serialises; the upload as an array, so that it is streamed."""
    return {"head": bytes(reply.head), "upload": np.frombuffer(reply.upload, np.uint8)}


def reply_of(given: object) -> Reply:
    """Inverse of `payload`.

    Raises:
        MalformedMessage: it is anything else, or has anything beside.
    """
    match given:
        case {"head": bytes(head), "upload": np.ndarray() as upload, **beside} if not beside:
            if upload.dtype == np.uint8 and upload.ndim == 1:
                reply = Reply(head, np.ascontiguousarray(upload).data)
                reply.read()
                return reply
            raise MalformedMessage(f"an upload of {upload.dtype} in {upload.ndim} dimensions")
        case _:
            raise MalformedMessage("this is no reply of a protected tenant")


def task_result(reply: Reply) -> Shareable:
    """The result that a site submits."""
    shareable = Shareable({KEY: payload(reply)})
    shareable.set_header(ReservedHeaderKey.CONTENT_TYPE, CONTENT)
    shareable.set_return_code(ReturnCode.OK)
    return shareable


def result_of(shareable: Shareable) -> Reply:
    """Inverse of `task_result`; headers are NVFLARE's business.

    Raises:
        MalformedMessage: an error reply of the site, or something else that is no reply of ours.
    """
    if (code := shareable.get_return_code()) != ReturnCode.OK:
        raise MalformedMessage(f"the site answered {code}")
    return reply_of(shareable.get(KEY))


def only_protected(shareable: object) -> Shareable:
    """A new result with what is protected, and nothing besides; or an empty one with its error.

    Raises:
        Unprotected: there is anything else in it: a model, metrics, a header with a value.
    """
    if not isinstance(shareable, Shareable):
        raise Unprotected(f"a result that is a {type(shareable).__name__}, and no Shareable")
    held = {name for name in shareable if name != ReservedHeaderKey.HEADERS}
    code = _plain_code(shareable.get_return_code())
    if code != ReturnCode.OK and not held:
        return _empty(code)
    if beside := sorted(map(str, held - {KEY})):
        raise Unprotected(f"a result with {beside[:5]} in it, which is not protected")
    if strange := sorted(str(name) for name in _headers(shareable) if not _own(shareable, name)):
        raise Unprotected(f"a result with the headers {strange[:5]}, which may carry anything")
    try:
        return task_result(reply_of(shareable.get(KEY)))
    except MalformedMessage as error:
        raise Unprotected(f"a result that is not protected: {error}") from None


def _headers(shareable: Shareable) -> Mapping[str, Any]:
    headers = shareable.get(ReservedHeaderKey.HEADERS) or {}
    if not isinstance(headers, Mapping):
        raise Unprotected("a result whose headers are none")
    return headers


def _own(shareable: Shareable, name: str) -> bool:
    return name in _OWN_HEADERS and _headers(shareable)[name] == _OWN_HEADERS[name]


def _plain_code(code: object) -> str:
    """One of NVFLARE's return codes: a text of a job's own could carry data."""
    if code not in {value for name, value in vars(ReturnCode).items() if name.isupper()}:
        raise Unprotected("a result with a return code that NVFLARE does not have")
    return str(code)


def _empty(code: str) -> Shareable:
    shareable = Shareable()
    shareable.set_return_code(code)
    return shareable


def require_weights(dxo: object) -> DXO:
    """What training code returned, if it can be averaged.

    Raises:
        ConfigError: it is none of the kinds that have weights in them.
    """
    if isinstance(dxo, DXO) and dxo.data_kind in (DataKind.WEIGHTS, DataKind.WEIGHT_DIFF):
        return dxo
    kind = dxo.data_kind if isinstance(dxo, DXO) else type(dxo).__name__
    raise ConfigError(
        f"the training returned {kind}; return a DXO of WEIGHTS or WEIGHT_DIFF, an FLModel, or "
        "(weights by name, number of examples)"
    )
