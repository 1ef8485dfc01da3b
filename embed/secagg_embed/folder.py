"""A tenant's own folder: who it is, what it takes part in, and what it has said.

    identity.json, identity.seed, roster.bin     made and brought by `secagg keys`
    policy.toml                                  optional: the fields of `secagg.Policy`
    ledger.sqlite                                what this identity has said, ever
    rounds/                                      plans, seal keys and uploads of running rounds

Everything in it is the tenant's. Nothing of it comes from the side that starts rounds, and none of
it but the roster may be seen by anybody else. The folder has to be durable: a tenant that loses its
ledger can be led to say two different things in one round, and so to give its vector away.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from secagg.canonical import Writer
from secagg.ckks.parameters import PACKINGS, SECURITIES
from secagg.errors import ConfigError, MalformedMessage
from secagg.identity import Identity, IdentitySeed, Member, Roster
from secagg.plan import SCHEMES, SUITES, RoundPlan
from secagg.policy import Policy
from secagg.secret import SealKey
from secagg.sqlite_ledger import RoundKeyFiles, SqliteLedger
from secagg_embed.wire import Reply
from secagg_wire.key_files import KeyFiles, Party, write_new

_OF_A_ROUND = re.compile(r"[0-9a-f]{64}\.(plan|key|upload)")
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "schemes": SCHEMES, "suites": SUITES, "packings": PACKINGS, "securities": SECURITIES,
}  # fmt: skip
_DIGESTS = ("model_digests", "layout_digests")


@dataclass(frozen=True, slots=True)
class TenantFolder:
    """See the module's docstring."""

    path: Path

    @property
    def keys(self) -> KeyFiles:
        """The files of `secagg keys`."""
        return KeyFiles(self.path)

    def identity(self) -> Identity:
        """The signing identity.

        Raises:
            ConfigError: there is none, it is readable by others, or it is not a tenant's.
        """
        if (party := self.keys.party()).role != "tenant":
            raise ConfigError(f"{self.path} holds the keys of {party}, and a tenant's are needed")
        return self.keys.identity()

    def roster(self) -> Roster:
        """The pinned roster.

        Raises:
            ConfigError: missing or malformed.
        """
        return self.keys.read_roster()

    def policy(self) -> Policy:
        """The tenant's policy: `policy.toml`, and the defaults of `secagg.Policy` beside it.

        Raises:
            ConfigError: names the line that cannot be used.
        """
        return read_policy(self.path / "policy.toml", self.roster().digest)

    def ledger(self) -> SqliteLedger:
        """The ledger, for this process alone until it is closed."""
        return SqliteLedger(self.path / "ledger.sqlite")

    def rounds(self) -> FolderRounds:
        """What running rounds need.

        Raises:
            ConfigError: there can be no folder for it here.
        """
        try:
            return FolderRounds(self.path / "rounds")
        except OSError as error:
            raise ConfigError(
                f"cannot use {self.path / 'rounds'}: {error.strerror}; it has to be a folder that "
                "this user may write to"
            ) from None


class FolderRounds:
    """`Rounds` on disk (see `secagg_embed.party`): each message may run in a process of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys = RoundKeyFiles(path)

    def create(self, plan: RoundPlan) -> SealKey:
        """Keep the plan, and make the key that seals the round's states."""
        _write(self._file(plan.context, "plan"), plan.encode())
        return self._keys.create(plan.context)

    def load(self, context: bytes) -> tuple[RoundPlan, SealKey] | None:
        """Both again; None where the round has ended or never began here."""
        key = self._keys.load(context)
        with suppress(FileNotFoundError):
            plan = RoundPlan.decode(self._file(context, "plan").read_bytes())
            return None if key is None else (plan, key)
        return None

    def keep_reply(self, context: bytes, reply: Reply) -> None:
        """The reply that carries the upload (protected, so no secret): it may be asked for again.

        Source: two uploads under one mask must never exist (C34); this is the same one.
        """
        head = Writer().tag("reply").blob(reply.head).finish()
        _write(self._file(context, "upload"), head, reply.upload)

    def reply(self, context: bytes) -> Reply | None:
        """The kept reply."""
        with suppress(FileNotFoundError):
            return Reply.decode(self._file(context, "upload").read_bytes())
        return None

    def forget(self, context: bytes) -> None:
        """Destroy the round's key and delete what was kept."""
        self._keys.destroy(context)
        for kind in ("plan", "upload"):
            for passing in ("", ".new"):
                self._file(context, kind + passing).unlink(missing_ok=True)

    def contexts(self) -> tuple[bytes, ...]:
        """The rounds of which something is kept."""
        stems = {path.stem for path in self._path.iterdir() if _OF_A_ROUND.fullmatch(path.name)}
        return tuple(bytes.fromhex(stem) for stem in sorted(stems))

    def _file(self, context: bytes, kind: str) -> Path:
        return self._path / f"{context.hex()}.{kind}"


def as_roster(given: Roster | Path | str) -> Roster:
    """The roster, or that in a file (`roster.bin`).

    Raises:
        ConfigError: the file cannot be read, or holds no roster.
    """
    if isinstance(given, Roster):
        return given
    try:
        return Roster.decode(Path(given).read_bytes())
    except (OSError, TypeError, MalformedMessage) as error:
        raise ConfigError(
            f"no roster at {given}: {error}; give the roster.bin of `secagg keys`"
        ) from None


def read_policy(path: Path, roster_digest: bytes) -> Policy:
    """The policy in a TOML file whose keys are the fields of `secagg.Policy`, digests in hex.

    A file that is not there means the defaults, over the pinned roster.

    Raises:
        ConfigError: it cannot be read, or names a clause that there is not.
    """
    try:
        given = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return Policy(roster_digest)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}; see docs/embedding.md for its keys") from None
    known = {field.name: field.type for field in fields(Policy) if field.name != "roster_digest"}
    if strangers := sorted(given.keys() - known.keys()):
        raise ConfigError(f"{path}: no clause is named {strangers}; there are {sorted(known)}")
    return Policy(roster_digest, **{name: _clause(path, name, given[name]) for name in given})


def make_tenants(
    root: Path | str, names: Sequence[str], committee: tuple[str, ...] = ()
) -> dict[str, Path]:
    """Folders of new tenants that know one another, for simulations, tests and trying things out.

    Called again with the same names it gives the same folders back. In earnest each tenant makes
    its own keys, by `secagg keys init`, and no other party ever sees them; here one process has.

    Raises:
        ConfigError: no such names can be, and nothing was made; or some have folders there, and
            not all under one roster.
    """
    parties = _parties(names)
    folders = {party.name: Path(root) / party.name for party in parties}
    if any(folder.exists() for folder in folders.values()):
        return _made_before(folders)
    identities = [_make_keys(folders[party.name], party) for party in parties]
    roster = Roster.create(tuple(map(Member.create, identities)), committee)
    for folder in folders.values():
        write_new(KeyFiles(folder).roster, roster.encode())
    return folders


def _parties(names: object) -> list[Party]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ConfigError(f"give a tuple of names; this is {names!r}")
    parties = [Party("tenant", str(name)) for name in names]
    if not parties or len({party.name for party in parties}) < len(parties):
        raise ConfigError(f"{len(parties)} tenants; give some, each with a name of its own")
    return parties


def _made_before(folders: dict[str, Path]) -> dict[str, Path]:
    rosters = [TenantFolder(one).roster() for one in folders.values() if one.exists()]
    known = {frozenset(member.tenant for member in roster.members) for roster in rosters}
    if known != {frozenset(folders)} or len({roster.digest for roster in rosters}) != 1:
        raise ConfigError(
            f"there are folders of other tenants than {sorted(folders)[:5]}... beside one another; "
            "give the same names again, or another place"
        )
    return folders


def _make_keys(folder: Path, party: Party) -> Identity:
    keys, seed = KeyFiles(folder), os.urandom(IdentitySeed.LENGTH or 32)
    identity = Identity(party.name, IdentitySeed(seed))
    folder.mkdir(mode=0o700, parents=True)
    write_new(keys.seed, seed.hex().encode(), secret=True)
    about = {"role": party.role, "name": party.name, "public_key": identity.public_key.hex()}
    write_new(keys.about, json.dumps(about).encode())
    return identity


def _clause(path: Path, name: str, value: Any) -> Any:
    default = _DEFAULTS[name]
    if name in _DIGESTS:
        try:
            digests = frozenset(map(bytes.fromhex, value))
        except (TypeError, ValueError):
            digests = frozenset({b""})
        if any(len(digest) != 32 for digest in digests):
            raise ConfigError(f"{path}: {name} is a list of digests in hexadecimal, 64 digits each")
        return digests
    if name in _CHOICES and isinstance(value, list):
        if not value or any(one not in _CHOICES[name] for one in value):
            raise ConfigError(f"{path}: {name} is {value!r}; choose of {list(_CHOICES[name])}")
        return tuple(value)
    if isinstance(default, float) and isinstance(value, int | float) and value is not True:
        value = float(value)
    if type(value) is type(default) and not value >= 0:
        raise ConfigError(f"{path}: {name} is {value!r}, and cannot be below 0")
    if type(value) is not type(default):
        kind = "list" if isinstance(default, tuple) else type(default).__name__
        raise ConfigError(f"{path}: {name} is {value!r}, and a {kind} is needed")
    return value


_DEFAULTS: Mapping[str, Any] = types.MappingProxyType(
    {field.name: field.default for field in fields(Policy) if field.name != "roster_digest"}
)


def _write(path: Path, *parts: bytes | bytearray | memoryview) -> None:
    """Replace a file in one go, and let nobody else read it."""
    passing = path.with_name(path.name + ".new")
    descriptor = os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    os.replace(passing, path)
