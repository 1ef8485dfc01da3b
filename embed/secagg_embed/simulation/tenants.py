"""The tenants of a simulation: their names, their throw-away keys, and what user code is told.

Every key, share and mask of a simulation follows from its seed: whoever knows the seed can open
every upload. That makes runs repeatable, and it is why none of these keys is of use elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np

from secagg.errors import ConfigError
from secagg.identity import Identity, IdentitySeed, Member, Roster, signing_input
from secagg.testing.randomness import SeededRandomness
from secagg_embed.terms import whole

_COMMITTEE = 64


@dataclass(frozen=True, slots=True)
class TenantInfo:
    """What `train` is told about the tenant that it trains for.

    `index` counts from 0 to `of - 1`. `memory` is the tenant's own: what `train` puts there is
    there in the tenant's next round, in whatever process that tenant lives (loaded data, the state
    of an optimiser); it never leaves that process.
    """

    name: str
    index: int
    of: int
    seed: int
    memory: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def rng(self, round_number: int) -> np.random.Generator:
        """The same random numbers for this tenant and round, whatever process asks."""
        return np.random.default_rng((self.seed, self.index, round_number))


@dataclass(frozen=True, slots=True)
class Population:
    """All tenants of a simulation, and the seed that everything about them follows from."""

    names: tuple[str, ...]
    seed: int

    @classmethod
    def of(cls, tenants: int | Sequence[str], seed: int) -> Population:
        """So many tenants t000, t001, ..., or these.

        Raises:
            ConfigError: too few, or two with one name; or neither a number nor names.
        """
        names = _names(tenants)
        if len(names) < 3 or len(set(names)) != len(names):
            raise ConfigError(
                f"simulation: {len(names)} tenants, {len(set(names))} of them distinct; give at "
                "least 3 with names of their own, since a sum over fewer hides nothing"
            )
        if whole("seed", seed) < 0:
            raise ConfigError(f"simulation: a seed is 0 or above, not {seed}")
        return cls(names, int(seed))

    def info(self, name: str) -> TenantInfo:
        """What user code is told about this tenant."""
        return TenantInfo(name, self.names.index(name), len(self.names), self.seed)

    def identity(self, name: str) -> Identity:
        """The tenant's signing key, from the seed: of no use outside the simulation."""
        draw = SeededRandomness(f"simulation {self.seed} identity {name}")
        return Identity(name, IdentitySeed(draw(IdentitySeed.LENGTH or 32)))

    def roster(self, *, committee: bool) -> Roster:
        """Everybody's public line; with a committee for scheme `ckks` if the cohort needs one."""
        members = tuple(Member.create(self.identity(name)) for name in self.names)
        listed = self.names[:_COMMITTEE] if committee and len(members) > _COMMITTEE else ()
        return Roster.create(members, listed)


def remembering(roster: Roster) -> Roster:
    """The roster for many tenants of one process: no signature is verified twice in it.

    Verifying is a function of public bytes, so its outcome is the same for every tenant; each
    still asks for every signature that it has to.
    """
    verified: set[bytes] = set()
    members = tuple(
        _RememberingMember(m.tenant, m.public_key, m.group, m.proof, verified)
        for m in roster.members
    )
    return Roster(members, roster.committee)


@dataclass(frozen=True, slots=True)
class _RememberingMember(Member):
    """A line of the roster that knows which signatures it has found right."""

    verified: set[bytes] = field(default_factory=set, compare=False, repr=False)

    def verify(self, suite: str, label: str, context: bytes, body: bytes, signature: bytes) -> bool:
        """See `Member`."""
        covered = signing_input(suite, label, self.tenant, context, body)
        asked = sha256(self.public_key + covered + signature).digest()
        if asked in self.verified:
            return True
        right = Member.verify(self, suite, label, context, body, signature)
        if right:
            if len(self.verified) >= _MOST_REMEMBERED:
                self.verified.clear()
            self.verified.add(asked)
        return right


_MOST_REMEMBERED = 1 << 17


def _names(tenants: object) -> tuple[str, ...]:
    if isinstance(tenants, int):
        return tuple(_numbered(tenants))
    if isinstance(tenants, str) or not isinstance(tenants, Iterable):
        raise ConfigError(f"simulation: tenants is {tenants!r}; give their number, or their names")
    return tuple(sorted(map(str, tenants)))


def _numbered(count: int) -> list[str]:
    digits = max(3, len(str(max(0, count - 1))))
    return [f"t{number:0{digits}}" for number in range(count)]


def copied(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays or tensors that user code may change in place."""
    return {
        name: array.detach().clone() if hasattr(array, "detach") else np.array(array)
        for name, array in arrays.items()
    }
