"""Long-term identities, signatures with labels, and the roster that everybody pins.

Every signature covers

    "secagg/1" || suite || label || sender || context || SHA-256(body)

in canonical bytes, so that a signature made for one step, sender, round, model or layout
verifies for no other (protocol.md, "Before a round"). Ed25519 is RFC 8032. The transport's own
authentication (mTLS) does not replace these signatures: they alone stop a coordinator that swaps
keys. They are verified by libsodium, twice as fast as OpenSSL and stricter: public keys and R of
small order are refused (ADR 0010).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from secagg.canonical import Reader, Writer, blob
from secagg.errors import ConfigError, MalformedMessage
from secagg.secret import Randomness, Seed

PROTOCOL = "secagg/1"
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
NO_CONTEXT = bytes(32)
_MAX_MEMBERS = 1 << 14


def sha256(*parts: bytes) -> bytes:
    """SHA-256 over the concatenation of `parts` (32 bytes)."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def labelled_hash(label: str, context: bytes, *fields: bytes) -> bytes:
    """A hash for one purpose in one round: fields are length-prefixed, so they cannot run over."""
    return sha256(_hash_head(label, context), *map(blob, fields))


@lru_cache(maxsize=64)
def _hash_head(label: str, context: bytes) -> bytes:
    return Writer().tag("secagg/1 hash").tag(label).fixed(context, 32).finish()


def signing_input(suite: str, label: str, sender: str, context: bytes, body: bytes) -> bytes:
    """The bytes that a signature covers."""
    return (
        Writer().tag(PROTOCOL).tag(suite).tag(label).text(sender).fixed(context, 32)
        .fixed(sha256(body), 32).finish()
    )  # fmt: skip


class IdentitySeed(Seed):
    """Private half of a long-term Ed25519 identity (RFC 8032 seed, 32 bytes)."""

    __slots__ = ()


class Identity:
    """A tenant's name together with its private signing key."""

    __slots__ = ("_key", "public_key", "tenant")

    def __init__(self, tenant: str, seed: IdentitySeed) -> None:
        self.tenant = tenant
        self._key = Ed25519PrivateKey.from_private_bytes(seed.expose())
        self.public_key = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, tenant: str, randomness: Randomness) -> Identity:
        """A fresh identity; keep the seed yourself if it must outlive the process."""
        return cls(tenant, IdentitySeed.draw(randomness))

    def sign(self, suite: str, label: str, context: bytes, body: bytes) -> bytes:
        """Ed25519 signature over `signing_input` (64 bytes)."""
        return self._key.sign(signing_input(suite, label, self.tenant, context, body))

    def __repr__(self) -> str:
        return f"Identity({self.tenant!r}, public_key={self.public_key.hex()[:16]}...)"


@dataclass(frozen=True, slots=True)
class Member:
    """One line of the roster. `proof` is the member's own signature over its line (C38)."""

    tenant: str
    public_key: bytes
    group: str = ""
    proof: bytes = bytes(SIGNATURE_BYTES)

    LABEL: ClassVar[str] = "roster entry"

    @classmethod
    def create(cls, identity: Identity, group: str = "") -> Member:
        """A line signed by the member itself: whoever enrols a key must hold it."""
        unsigned = cls(identity.tenant, identity.public_key, group)
        proof = identity.sign("", cls.LABEL, NO_CONTEXT, unsigned.signed_body())
        return cls(identity.tenant, identity.public_key, group, proof)

    def signed_body(self) -> bytes:
        """What `proof` covers."""
        return (
            Writer().tag("member").text(self.tenant).fixed(self.public_key, PUBLIC_KEY_BYTES)
            .text(self.group).finish()
        )  # fmt: skip

    def verify(self, suite: str, label: str, context: bytes, body: bytes, signature: bytes) -> bool:
        """Whether `signature` is this member's over `signing_input`."""
        if len(signature) != SIGNATURE_BYTES:
            return False
        signed = signature + signing_input(suite, label, self.tenant, context, body)
        try:
            crypto_sign_open(signed, self.public_key)
        except (BadSignatureError, ValueError):
            return False
        return True


@dataclass(frozen=True)
class Roster:
    """Who may take part. Sorted by tenant id; pinned by hash at every tenant.

    A change is a new roster with a new hash, accepted by each tenant. `committee` names the
    holders of CKKS key shares; empty means the whole cohort.
    """

    members: tuple[Member, ...]
    committee: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [member.tenant for member in self.members]
        if not 0 < len(names) <= _MAX_MEMBERS:
            raise ConfigError(f"roster: {len(names)} members; 1 to {_MAX_MEMBERS} are possible")
        if names != sorted(set(names)) or "" in names:
            raise ConfigError("roster: tenant ids must be unique, sorted and not empty")
        if len({member.public_key for member in self.members}) != len(names):
            raise ConfigError("roster: two tenants share one public key; each needs its own")
        if not set(self.committee) <= set(names):
            raise ConfigError("roster: the committee names tenants that are not members")
        for member in self.members:
            body = member.signed_body()
            if not member.verify("", Member.LABEL, NO_CONTEXT, body, member.proof):
                raise ConfigError(
                    f"roster: the line of {member.tenant!r} is not signed by its own key; "
                    "ask that tenant for a new enrolment request"
                )

    @classmethod
    def create(cls, members: tuple[Member, ...], committee: tuple[str, ...] = ()) -> Roster:
        """A roster of `members` in any order."""
        return cls(tuple(sorted(members, key=lambda member: member.tenant)), committee)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes: the value that tenants pin (32 bytes)."""
        return sha256(self.encode())

    @cached_property
    def _by_name(self) -> dict[str, Member]:
        return {member.tenant: member for member in self.members}

    def __contains__(self, tenant: object) -> bool:
        return tenant in self._by_name

    def __getitem__(self, tenant: str) -> Member:
        return self._by_name[tenant]

    def encode(self) -> bytes:
        """Canonical bytes."""
        writer = Writer().tag("roster").u32(len(self.members))
        for member in self.members:
            writer.text(member.tenant).fixed(member.public_key, PUBLIC_KEY_BYTES)
            writer.text(member.group).fixed(member.proof, SIGNATURE_BYTES)
        writer.u32(len(self.committee))
        for tenant in self.committee:
            writer.text(tenant)
        return writer.finish()

    @classmethod
    def decode(cls, data: bytes) -> Roster:
        """Inverse of `encode`.

        Raises:
            MalformedMessage: not a roster's canonical bytes.
        """
        reader = Reader(data, "roster")
        reader.tag("roster")
        members = tuple(
            Member(
                reader.text(),
                reader.fixed(PUBLIC_KEY_BYTES),
                reader.text(),
                reader.fixed(SIGNATURE_BYTES),
            )
            for _ in range(reader.count(_MAX_MEMBERS))
        )
        committee = tuple(reader.text() for _ in range(reader.count(_MAX_MEMBERS)))
        reader.end()
        try:
            return cls(members, committee)
        except ConfigError as error:
            raise MalformedMessage(f"malformed roster: {error}") from None
