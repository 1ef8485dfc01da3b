"""A round of one, in memory and thrown away: what a scheme needs is there and compiled after it.

Scheme `ckks` compiles its inner loops when they are first called, which takes seconds where no
cache is kept, and needs packages that `pip install secagg` does not bring. A node that finds that
out in the middle of a step costs the round a tenant. So it rehearses first, off the event loop,
with the plan's own parameters and with secrets that protect nothing: one leaf is protected, added,
taken out, opened from shares of one key, and compared with what went in.

Scheme `masking` has nothing to rehearse.
"""

from __future__ import annotations

import os

import numpy as np

from secagg.ckks.parameters import Parameters
from secagg.edges import Edges
from secagg.errors import ConfigError
from secagg.messages import ShareKeysBody
from secagg.plan import RoundPlan
from secagg.scheme import (
    LeafPlace,
    Opened,
    Opening,
    RoundSecrets,
    Scheme,
    SharedSecrets,
    leaf_places,
    scheme_of,
)

_ME = 0
_NONE = bytes(32)
_done: set[Parameters] = set()


def rehearse(plan: RoundPlan) -> None:
    """Do what this plan's scheme does in a round, once in a process for the same parameters.

    Raises:
        ConfigError: its packages are not installed, or compute something wrong on this machine.
    """
    if plan.ckks is None or plan.ckks in _done:
        return
    scheme, secrets = scheme_of(plan), RoundSecrets.draw(os.urandom)
    opening = _opening(plan, scheme, secrets)
    for place in {leaf_places(plan)[0], leaf_places(plan)[-1]}:
        for level in (0, plan.quantiser.max_level):
            if not _comes_back(plan, scheme, secrets, opening, place, level):
                raise ConfigError(
                    f"scheme {plan.scheme!r} computes wrongly on this machine; do not take part: "
                    "reinstall the packages of 'secagg[ckks]'"
                )
    _done.add(plan.ckks)


def _comes_back(
    plan: RoundPlan, scheme: Scheme, secrets: RoundSecrets, opening: Opening, place: LeafPlace,
    level: int,
) -> bool:  # fmt: skip
    """Whether a leaf of one level, and a weight of 1, opens to just that."""
    levels = np.full(place.count, level, np.int64)
    levels[place.count - place.weighs :] = 1
    protection = scheme.protection(
        plan, _ME, SharedSecrets(secrets.mask, secrets.self_mask), {}, opening.edges, {}
    )
    leaf = scheme.protector(plan, _ME, protection).leaf(levels.copy(), place)
    sums = scheme.leaf_sums(plan)
    total = sums.zero(place)
    # As a tenant holds it, and as it comes from the wire.
    for received in (leaf, memoryview(leaf), memoryview(bytearray(leaf))):
        sums.add(total, received, place)
        sums.take_out(total, received, place)
    sums.add(total, leaf, place)
    values, marks = scheme.opener(plan, opening).open(total, place)
    return not marks and np.array_equal(values, levels)


def _opening(plan: RoundPlan, scheme: Scheme, secrets: RoundSecrets) -> Opening:
    """One dealer, the plan's holders, and all of their answers."""
    holders = plan.same_holders
    dealt = scheme.deal(plan, _ME, secrets, holders, plan.share_threshold, os.urandom)
    body = ShareKeysBody(tuple(holders), dealt.commitment(_NONE), _NONE)
    sums = {}
    for holder in holders:
        shares = dealt.shares[holder]
        scheme.check_shares(plan, _ME, holder, body, shares)
        held = {_ME: tuple(Opened(share, _NONE) for share in shares)}
        sums[holder] = scheme.answer(plan, _NONE, frozenset({_ME}), held).key_sum
    return Opening(
        keys={}, commitments={_ME: body.secret_commitment}, edges=Edges({}), shares={},
        survivors=frozenset({_ME}), sums=sums, boxes={},
    )  # fmt: skip
