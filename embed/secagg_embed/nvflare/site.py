"""A site's part, whichever of NVFLARE's APIs called it: its folder, its party, its training.

**The folder is the site's.** It is named by `SECAGG_FOLDER` in the environment of the site's
processes, in which `{site}` stands for the site's name; without it, it is `local/secagg` in the
site's workspace. No job, and so no server, can name another.

**What is trained, all tenants agree on.** Model and settings of a round are in its plan by their
digest: the server cannot tell one tenant to train and the others to stand still.

**What that cannot do.** Code of a job runs in the site's own process, and a job's configuration may
differ from site to site: a job that may bring code can read the folder, and one that configures the
training can make it stand still. Sites that do not trust the server's jobs forbid code of jobs (the
right `byoc` in `local/authorization.json`), install and configure the training themselves, and set
`ProtectedOnly`.
"""

from __future__ import annotations

import copy
import logging
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.fl_exception import UnsafeJobError
from nvflare.apis.shareable import Shareable
from nvflare.apis.utils.format_check import name_check
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from secagg.errors import ConfigError, SecaggError
from secagg.plan import RoundPlan
from secagg_embed.nvflare.shareables import Message, require_weights, settings_of
from secagg_embed.party import Contribution, Party, weight_in
from secagg_embed.plain import refusing
from secagg_embed.tensors import Tensors, difference, flatten, require_model
from secagg_embed.wire import Reply

log = logging.getLogger("secagg_embed")

FOLDER = "SECAGG_FOLDER"
STEPS = MetaKey.NUM_STEPS_CURRENT_ROUND

Train = Callable[[dict[str, Any], dict[str, Any]], object]
"""The training: the round's model and settings in; a DXO, an FLModel or (weights, steps) out."""

_TURNS: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)


def tenant_folder(site: str, workspace: object) -> Path:
    """Where this site keeps its keys, its policy and its ledger; see the module's docstring.

    Raises:
        ConfigError: there is no such folder; says where it was looked for.
    """
    if name_check(site, "site")[0]:
        raise ConfigError(f"{site!r} is no name of a site")
    local = Path(str(getattr(workspace, "root_dir", "."))) / "local" / "secagg"
    named = os.environ.get(FOLDER)
    folder = Path(named.replace("{site}", site)) if named else local
    if not folder.is_dir():
        raise ConfigError(
            f"site {site!r} has no tenant's folder at {folder}; make one with `secagg keys`, and "
            f"name it in {FOLDER} where the site is started"
        )
    return folder


@contextmanager
def party_of(folder: Path) -> Iterator[Party]:
    """The tenant of this folder, for one message of this process at a time."""
    with _TURNS[folder.resolve()], Party.open(folder) as party:
        yield party


def answer(party: Party, message: Message, train: Train, *, weight_key: str = STEPS) -> Reply:
    """The site's reply to the last of the requests; `train` is called where a round wants it.

    What goes wrong in the training leaves the round: it is logged here with its text, and the reply
    tells the server no more than that.
    """

    def contribute(plan: RoundPlan) -> Contribution:
        if message.model is None:
            raise ConfigError("the server asks for an update, and sent no model with it")
        require_model(plan, message.model, message.settings)
        trained = _trained(train, message.model, settings_of(message.settings))
        return contribution(as_dxo(trained, weight_key), message.model, plan, weight_key)

    *earlier, request = message.requests
    for told in earlier:
        party.answer(told)
    if not party.expects_training(request):
        return party.answer(request)
    try:
        return party.answer(request, contribute)
    except SecaggError as error:
        # A warning: NVFLARE's kits stream what is logged as an error to the server.
        log.warning("this site left the round, its update could not be made: %s", error)
    except _TrainingFailed as error:
        log.warning(
            "this site left the round: its training raised an error", exc_info=error.__cause__
        )
    return Reply.decode(refusing(request))


class _TrainingFailed(Exception):
    """The site's own training raised its cause."""


def _trained(train: Train, model: Tensors, settings: dict[str, Any]) -> object:
    try:
        return train(copy.deepcopy(dict(model)), settings)  # training code may work in place
    except UnsafeJobError:  # its word to NVFLARE: end this job at this site
        raise
    except Exception as error:
        raise _TrainingFailed from error


def contribution(dxo: DXO, before: Tensors, plan: RoundPlan, weight_key: str) -> Contribution:
    """What training returned as what a round takes: the change of the weights, and its weight.

    Raises:
        ConfigError: other tensors than the model has, or no weight where the plan has weights.
    """
    if require_weights(dxo).data_kind == DataKind.WEIGHTS:
        delta = difference(dxo.data, before, plan.layout)
    else:
        delta = flatten(dxo.data, plan.layout)
    return Contribution(delta, _weight(dxo, plan, weight_key))


def as_dxo(trained: object, weight_key: str = STEPS) -> DXO:
    """A DXO of what training code returns.

    Raises:
        ConfigError: it is nothing that has weights in it.
    """
    match trained:
        case FLModel():
            return from_shareable(FLModelUtils.to_shareable(trained))
        case Shareable():
            return _dxo_in(trained)
        case (dict() as weights, Real() as steps):
            return DXO(DataKind.WEIGHTS, data=weights, meta={weight_key: steps})
        case _:
            return require_weights(trained)


def _dxo_in(result: Shareable) -> DXO:
    try:
        return from_shareable(result)
    except ValueError as error:
        code = result.get_return_code()
        raise ConfigError(f"the training returned no DXO, and the code {code}") from error


def _weight(dxo: DXO, plan: RoundPlan, key: str) -> int:
    if plan.max_weight == 1:
        return 1
    weight = weight_in(dxo.get_meta_prop(key), plan.max_weight)
    if weight is None:
        raise ConfigError(
            f"this run weighs tenants, and the training reported no {key!r} of 1 or more in its "
            "meta; report it, or start the run with max_weight = 1"
        )
    return weight
