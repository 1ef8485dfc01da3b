"""The Collab API: whole jobs on NVFLARE's apps, proxies and dispatchers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.collab import CollabCallError, collab

from secagg.errors import ConfigError, TooFewSurvivors
from secagg_embed.nvflare import Patience, SecureAveraging, SecureClient
from secagg_embed.nvflare.site import STEPS
from secagg_embed.wire import Deliver, decode_request
from tests.stacks.nvflare.local import LocalCell, local_collab
from tests.stacks.nvflare.tenants import (
    Federation,
    change,
    first_model,
    require_mean,
    steps_of,
    trained,
)

WITHOUT_TWO = Patience(600, 600, min_responses=3, wait_after_s=3)


class Client(SecureClient):
    """A user's class."""

    def train(self, weights: dict[str, Any]) -> Any:
        return trained(collab.site_name, weights), steps_of(collab.site_name)


class DiffClient(SecureClient):
    """The same, with NVFLARE's own model class."""

    def train(self, weights: dict[str, Any]) -> Any:
        drawn = change(collab.site_name)
        meta = {STEPS: steps_of(collab.site_name)}
        return FLModel(params_type=ParamsType.DIFF, params=drawn, meta=meta)


class Server:
    """A user's server."""

    def __init__(self, federation: Federation, patience: Patience, rounds: int = 1) -> None:
        self._federation = federation
        self._patience = patience
        self._rounds = rounds
        self.survivors: list[tuple[str, ...]] = []

    @collab.main
    def run(self) -> Any:
        model: Any = first_model()
        with SecureAveraging(
            self._federation.roster, self._federation.terms, self._patience
        ) as rounds:
            for _ in range(self._rounds):
                averaged = rounds.average(model)
                self.survivors.append(averaged.survivors)
                model = averaged.model
        return model


def job(
    federation: Federation, cell: LocalCell | None = None, **clients: Any
) -> tuple[Any, LocalCell]:
    named = {name: clients.get(name.replace("-", "_"), Client)() for name in federation.names}
    return local_collab(Server(federation, Patience(30, 30)), named, federation.root, cell)


def asks(payload: Any, record: str) -> bool:
    """Whether a call's last request carries this message to tenants."""
    request = decode_request(payload["kwargs"]["requests"][-1])
    return isinstance(request, Deliver) and request.message[5:].startswith(record.encode())


def others(federation: Federation, *gone: str) -> list[str]:
    return [name for name in federation.names if name not in gone]


@pytest.mark.parametrize("scheme", ["masking", "ckks"])
def test_the_model_is_the_weighted_mean(federation: Federation, scheme: Any) -> None:
    federation.terms = dataclasses.replace(federation.terms, scheme=scheme)
    after, _ = job(federation, site_1=DiffClient)
    require_mean(after, first_model(), list(federation.names))


@pytest.mark.parametrize(
    "record", ["KeyDirectory", "ShareDelivery", "AgreedView", "SurvivorSet", "Quorum"]
)
def test_a_site_that_times_out_costs_itself_alone(federation: Federation, record: str) -> None:
    silent: set[str] = set()

    def deaf(site: str, payload: Any) -> bool:
        if site == "site-3" and asks(payload, record):
            silent.add(site)
        return site in silent

    cell = LocalCell(deaf=deaf)
    patience = Patience(600, 600, min_responses=4, wait_after_s=0.1)
    named = {name: Client() for name in federation.names}
    after, _ = local_collab(Server(federation, patience), named, federation.root, cell)
    counted = list(federation.names) if record in ("SurvivorSet", "Quorum") else None
    require_mean(after, first_model(), counted or others(federation, "site-3"))
    assert silent


def test_too_few_sites_fail_the_job(federation: Federation) -> None:
    cell = LocalCell(deaf=lambda site, call: site < "site-3" and asks(call, "AgreedView"))
    server = Server(federation, WITHOUT_TWO)
    with pytest.raises(TooFewSurvivors):
        run_to_its_error(server, federation, cell)
    assert cell.panics


def run_to_its_error(server: Server, federation: Federation, cell: LocalCell) -> None:
    """NVFLARE's lifecycle turns an error into a panic; what raised it is in its log."""
    named = {name: Client() for name in federation.names}
    errors: list[BaseException] = []
    average = SecureAveraging.average

    def remembering(self: SecureAveraging, model: Any) -> Any:
        try:
            return average(self, model)
        except BaseException as error:
            errors.append(error)
            raise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SecureAveraging, "average", remembering)
        local_collab(server, named, federation.root, cell)
    raise errors[0]


def test_nothing_leaves_but_what_is_protected(federation: Federation) -> None:
    _, cell = job(federation)
    for site, replies in cell.sent.items():
        drawn = change(site)["dense.weight"]
        for reply in replies:
            assert set(reply) == {"result"}
            assert set(reply["result"]) == {"head", "upload"}
            raw = reply["result"]["head"] + reply["result"]["upload"].tobytes()
            assert drawn.tobytes()[:8] not in raw
            assert trained(site, first_model())["dense.weight"].tobytes()[:8] not in raw


def test_neither_text_nor_traceback_of_the_training_leaves(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(SecureClient):
        def train(self, weights: dict[str, Any]) -> Any:
            raise ValueError("the patient is called Anna")

    after, cell = job(federation, site_2=Broken)
    require_mean(after, first_model(), others(federation, "site-2"))
    assert "Anna" not in repr(cell.sent)
    assert "ValueError" not in repr(cell.sent)
    assert "Anna" in caplog.text


def test_what_goes_wrong_before_the_training_stays_too(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    (federation.root / "tenants" / "site-2").rename(federation.root / "elsewhere")
    after, cell = job(federation)
    require_mean(after, first_model(), others(federation, "site-2"))
    assert all(reply == {"result": {"error": "ConfigError"}} for reply in cell.sent["site-2"])
    assert "has no tenant's folder at" in caplog.text


def test_the_server_cannot_call_the_training(federation: Federation) -> None:
    class Curious(Server):
        @collab.main
        def run(self) -> Any:
            with pytest.raises(CollabCallError, match="does not have method 'train'"):
                collab.clients[0].train(weights=first_model())
            return "nothing"

    named = {name: Client() for name in federation.names}
    result, cell = local_collab(Curious(federation, Patience(1, 1)), named, federation.root)
    assert result == "nothing"
    assert not cell.sent


def test_a_published_training_is_refused_as_it_is_written() -> None:
    with pytest.raises(ConfigError, match=r"take @collab\.publish off it"):

        class Leaky(SecureClient):
            @collab.publish
            def train(self, weights: dict[str, Any]) -> Any:
                return weights, 1


def test_a_class_without_training_says_so(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    class Empty(SecureClient):
        pass

    after, _ = job(federation, site_2=Empty)
    require_mean(after, first_model(), others(federation, "site-2"))
    assert "Empty has no train(weights)" in caplog.text


def test_another_model_than_the_plans_is_not_trained_on(federation: Federation) -> None:
    def swapped(site: str, payload: Any) -> bool:
        model = payload["kwargs"].get("model")
        if site == "site-2" and model is not None:
            model["dense.bias"] = model["dense.bias"] * np.float32(2)
        return False

    after, _ = job(federation, LocalCell(deaf=swapped))
    require_mean(after, first_model(), others(federation, "site-2"))


def test_every_site_is_told_the_same_settings(federation: Federation) -> None:
    seen: list[tuple[str, float]] = []

    class Told(SecureClient):
        def train(self, weights: dict[str, Any], rate: float) -> Any:
            seen.append((collab.site_name, rate))
            return trained(collab.site_name, weights), steps_of(collab.site_name)

    class Tells(Server):
        @collab.main
        def run(self) -> Any:
            federation, patience = self._federation, self._patience
            with SecureAveraging(federation.roster, federation.terms, patience) as rounds:
                return rounds.average(first_model(), rate=0.1).model

    def otherwise(site: str, payload: Any) -> bool:
        if site == "site-2" and payload["kwargs"]["settings"]:
            payload["kwargs"]["settings"] = b'{"rate": 0.0}'
        return False

    named = {name: Told() for name in federation.names}
    cell = LocalCell(deaf=otherwise)
    after, _ = local_collab(Tells(federation, Patience(30, 30)), named, federation.root, cell)
    require_mean(after, first_model(), others(federation, "site-2"))
    assert sorted(seen) == [(name, 0.1) for name in others(federation, "site-2")]


@pytest.mark.parametrize("requests", [[], ["text"], [b"garbage"], b"bytes", [b""]])
def test_calls_that_are_no_requests_get_an_error_alone(
    federation: Federation, requests: Any
) -> None:
    client = Client()
    assert client.secagg(requests) == {"error": "MalformedMessage"}


def test_every_site_is_told_how_it_ended(federation: Federation) -> None:
    """What a round keeps at a site goes when the site hears that it is over, here by an abort."""
    cell = LocalCell(deaf=lambda site, call: site < "site-3" and asks(call, "AgreedView"))
    with pytest.raises(TooFewSurvivors):
        run_to_its_error(Server(federation, WITHOUT_TWO), federation, cell)
    for name in others(federation):
        rounds = federation.root / "tenants" / name / "rounds"
        assert not [path for path in rounds.iterdir() if path.suffix in (".plan", ".key")]
