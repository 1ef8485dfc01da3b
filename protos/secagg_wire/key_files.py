"""A party's key directory: which file is what, and reading it with one clear error each.

Every party (tenant, coordinator, owner) keeps its private keys in a directory of its own and
nobody else ever sees them. What enrolment brings back (certificate, authority, roster) lies beside
them. Nothing here makes keys (`enrol.py`) or opens connections (`tls.py`).
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from secagg.errors import ConfigError, MalformedMessage
from secagg.identity import Identity, IdentitySeed, Roster

Role = Literal["tenant", "coordinator", "owner"]
ROLES: tuple[Role, ...] = get_args(Role)
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_URN = "urn:secagg:"


@dataclass(frozen=True, slots=True)
class Party:
    """Who somebody is: role and name, as the certificate's SAN URI states them."""

    role: Role
    name: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ConfigError(f"role {self.role!r} is none of {', '.join(ROLES)}")
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"name {self.name[:70]!r} cannot be used; take 1 to 63 of a-z, 0-9, '.', '_', '-', "
                "beginning and ending with a letter or digit"
            )

    @property
    def urn(self) -> str:
        """`urn:secagg:ROLE:NAME`."""
        return f"{_URN}{self.role}:{self.name}"

    @classmethod
    def parse(cls, urn: str) -> Party:
        """Inverse of `urn`.

        Raises:
            ConfigError: it is not such a URN.
        """
        role, colon, name = urn.removeprefix(_URN).partition(":")
        for known in ROLES:
            if urn.startswith(_URN) and colon and role == known:
                return cls(known, name)
        raise ConfigError(f"{urn[:100]!r} is no urn:secagg:ROLE:NAME")

    def __str__(self) -> str:
        return f"{self.role} {self.name!r}"


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """The files of one key directory."""

    directory: Path

    @property
    def about(self) -> Path:
        """Role, name, group and public key, as JSON; public."""
        return self.directory / "identity.json"

    @property
    def seed(self) -> Path:
        """The Ed25519 seed (RFC 8032), 64 hexadecimal digits; secret."""
        return self.directory / "identity.seed"

    @property
    def tls_key(self) -> Path:
        """The TLS key (ECDSA P-256, PKCS 8 in PEM); secret."""
        return self.directory / "tls.key"

    @property
    def certificate(self) -> Path:
        """The TLS certificate that the authority issued."""
        return self.directory / "tls.pem"

    @property
    def authority(self) -> Path:
        """The authority's own certificate."""
        return self.directory / "ca.pem"

    @property
    def roster(self) -> Path:
        """The roster's canonical bytes."""
        return self.directory / "roster.bin"

    @property
    def request(self) -> Path:
        """The enrolment request."""
        return self.directory / "request.json"

    def party(self) -> Party:
        """Whose directory this is.

        Raises:
            ConfigError: there are no keys here.
        """
        about = self._about()
        return Party.parse(f"{_URN}{about.get('role')}:{about.get('name')}")

    def group(self) -> str:
        """The group that the roster line names (may be empty)."""
        return self._about().get("group", "")

    def identity(self) -> Identity:
        """The signing identity.

        Raises:
            ConfigError: missing, readable by others, malformed, or not the public key on record.
        """
        party, text = self.party(), read_secret(self.seed).decode("ascii", "replace").strip()
        try:
            identity = Identity(party.name, IdentitySeed(bytes.fromhex(text)))
        except ValueError:
            raise ConfigError(
                f"{self.seed} holds no identity seed (64 hexadecimal digits); restore it from its "
                "backup, or make new keys and enrol again"
            ) from None
        if identity.public_key.hex() != self._about().get("public_key"):
            raise ConfigError(
                f"{self.seed} and {self.about} are of two different identities; restore both from "
                "one backup"
            )
        return identity

    def read_roster(self) -> Roster:
        """The roster.

        Raises:
            ConfigError: missing or malformed.
        """
        try:
            return Roster.decode(read_public(self.roster))
        except MalformedMessage as error:
            raise ConfigError(f"{self.roster}: {error}; ask for it again") from None

    def _about(self) -> dict[str, str]:
        data = read_public(self.about)  # outside the try: a ConfigError is a ValueError
        try:
            about = json.loads(data)
        except (ValueError, RecursionError):
            about = None
        if not isinstance(about, dict) or not all(isinstance(v, str) for v in about.values()):
            raise ConfigError(f"{self.about} is not the JSON that 'secagg keys init' writes")
        return about


def read_public(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        ConfigError: it cannot be read; says what makes it.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; {_cure(path)}") from None


def read_secret(path: Path) -> bytes:
    """A secret file's bytes; it must be closed to group and others.

    Raises:
        ConfigError: it cannot be read, or others can read it too.
    """
    data = read_public(path)
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigError(f"{path} is open to other users of this machine; run: chmod 600 {path}")
    return data


def write_new(path: Path, data: bytes, *, secret: bool = False, replace: bool = False) -> None:
    """Write a file durably; without `replace` an existing one is never touched.

    Raises:
        ConfigError: it exists, or cannot be written.
    """
    if not replace and path.exists():
        raise ConfigError(f"{path} exists already; --force replaces it (the old one is then lost)")
    passing = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(
            passing, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(passing, path)
    except OSError as error:
        with suppress(OSError):
            passing.unlink()
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def fingerprint(data: bytes) -> str:
    """A SHA-256 digest for people: its first 16 bytes in groups of four digits."""
    digits = data[:16].hex()
    return " ".join(_groups(digits))


def _groups(digits: str) -> Iterator[str]:
    return (digits[i : i + 4] for i in range(0, len(digits), 4))


def _cure(path: Path) -> str:
    match path.name:
        case "identity.json" | "identity.seed" | "tls.key":
            return "'secagg keys init' makes it"
        case "tls.pem" | "ca.pem" | "roster.bin":
            return "it comes back from 'secagg keys approve'; copy it here"
        case _:
            return "check the path and the permissions"
