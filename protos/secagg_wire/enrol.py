"""Enrolment: keys made where they stay, requests that prove possession, approval into a roster.

The flow is NVFLARE's, with signatures of our own. Each party makes its keys and sends a *request*:
its roster line (signed by its Ed25519 identity), a certificate request (signed by its TLS key), and
one Ed25519 signature over both together. Whoever runs enrolment holds the *authority* key, compares
the requests' fingerprints over the phone, and hands back a *bundle*: certificate, authority
certificate, roster. Private keys never travel.

The authority vouches for connections only. A roster line is signed by its own member, so an
authority cannot put another key under a tenant's name without that tenant noticing: every tenant
pins the roster's hash.

Time comes in as an argument. Revocation is not here: certificates are short-lived instead, and a
tenant leaves by a new roster.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from secagg.canonical import Writer
from secagg.errors import ConfigError
from secagg.identity import NO_CONTEXT, Identity, IdentitySeed, Member, Roster, sha256
from secagg_wire.key_files import KeyFiles, Party, Role, read_public, read_secret, write_new
from secagg_wire.tls import check_validity, read_certificate, subject_names

REQUEST_FORMAT = "secagg enrolment request 1"
REQUEST_DAYS = 30
CERTIFICATE_DAYS = 397
AUTHORITY_DAYS = 3650
_LABEL = "enrolment request"
_SKEW = datetime.timedelta(minutes=10)
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Request:
    """What a party sends to the authority; everything in it is public."""

    role: Role
    name: str
    group: str
    created: int
    """Seconds since 1970, by the requester's clock."""
    public_key: str
    """Ed25519 public key, hexadecimal."""
    member_proof: str
    """The roster line's own signature, hexadecimal."""
    csr: str
    """Certificate request, PEM."""
    signature: str
    """Ed25519 over all the rest, hexadecimal."""

    @property
    def party(self) -> Party:
        """Who asks."""
        return Party(self.role, self.name)

    @property
    def member(self) -> Member:
        """The roster line."""
        key, proof = bytes.fromhex(self.public_key), bytes.fromhex(self.member_proof)
        return Member(self.name, key, self.group, proof)

    def body(self) -> bytes:
        """Canonical bytes that `signature` covers."""
        return _request_body(self.party, self.group, self.created, self.public_key, self.csr)

    @property
    def digest(self) -> bytes:
        """SHA-256 of `body`: what both sides read to each other (32 bytes)."""
        return sha256(self.body())

    def encode(self) -> bytes:
        """The request file."""
        return _json({"format": REQUEST_FORMAT, **asdict(self)})

    @classmethod
    def read(cls, path: Path) -> Request:
        """Parse a request file; `verify` is a step of its own.

        Raises:
            ConfigError: it is not such a file.
        """
        try:
            fields = json.loads(read_public(path))
            if fields.pop("format") != REQUEST_FORMAT:
                raise ValueError
            request = cls(**fields)
            request.member.signed_body(), request.body(), bytes.fromhex(request.signature)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ConfigError(
                f"{path} is no enrolment request of this version; "
                "it is made by 'secagg keys request'"
            ) from None
        return request

    def verify(self, now: datetime.datetime) -> x509.CertificateSigningRequest:
        """Check possession of both keys, the names, and the request's age.

        Raises:
            ConfigError: altered on the way, names that differ, or too old.
        """
        member, csr = self.member, _load_csr(self)
        line = member.signed_body()
        if not (
            member.verify("", _LABEL, NO_CONTEXT, self.body(), bytes.fromhex(self.signature))
            and member.verify("", Member.LABEL, NO_CONTEXT, line, member.proof)
            and csr.is_signature_valid
        ):
            raise ConfigError(
                f"the request of {self.party} was altered after it was signed; ask for a new one"
            )
        _check_names(self.party, csr)
        age_s = now.timestamp() - self.created  # which may be no date at all
        if not -_SKEW.total_seconds() <= age_s <= REQUEST_DAYS * _DAY_S:
            raise ConfigError(
                f"the request of {self.party} was made {age_s // _DAY_S:.0f} days ago by its clock "
                f"and is valid for {REQUEST_DAYS}; ask for a new one ('secagg keys request')"
            )
        return csr


@dataclass(frozen=True, slots=True)
class Authority:
    """The enrolment authority's directory: its key, its certificate, the roster as it grows."""

    directory: Path

    @property
    def key_file(self) -> Path:
        """ECDSA P-256, PKCS 8 in PEM; secret."""
        return self.directory / "ca.key"

    @property
    def certificate_file(self) -> Path:
        """Self-signed certificate."""
        return self.directory / "ca.pem"

    @property
    def roster_file(self) -> Path:
        """The roster's canonical bytes, once there is a tenant."""
        return self.directory / "roster.bin"

    def roster(self) -> Roster | None:
        """The roster so far."""
        return KeyFiles(self.directory).read_roster() if self.roster_file.exists() else None


@dataclass(frozen=True, slots=True)
class Bundle:
    """What goes back to one party."""

    party: Party
    certificate: bytes
    request_digest: bytes


def create_keys(directory: Path, party: Party, group: str = "", *, force: bool = False) -> KeyFiles:
    """Make a party's Ed25519 identity and its TLS key.

    Raises:
        ConfigError: keys are there already (and not `force`), or the directory is not writable.
    """
    keys = KeyFiles(directory)
    _own_directory(directory)
    _refuse_overwrite((keys.seed, keys.tls_key, keys.about), force)
    raw = os.urandom(IdentitySeed.LENGTH or 32)
    identity = Identity(party.name, IdentitySeed(raw))
    about = {"role": party.role, "name": party.name, "group": group}
    about["public_key"] = identity.public_key.hex()
    write_new(keys.seed, raw.hex().encode() + b"\n", secret=True, replace=force)
    write_new(
        keys.tls_key, _pem(ec.generate_private_key(ec.SECP256R1())), secret=True, replace=True
    )
    write_new(keys.about, _json(about), replace=True)
    return keys


def create_authority(
    directory: Path, name: str, now: datetime.datetime, *, force: bool = False
) -> Authority:
    """Make the key and the certificate that sign everybody's certificates.

    Raises:
        ConfigError: there is one already (and not `force`), or the directory is not writable.
    """
    authority = Authority(directory)
    _own_directory(directory)
    _refuse_overwrite((authority.key_file, authority.certificate_file), force)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"secagg authority {name}")])
    builder = (
        _certificate(subject, subject, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    certificate = builder.sign(key, hashes.SHA256())
    write_new(authority.key_file, _pem(key), secret=True, replace=force)
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    write_new(authority.certificate_file, pem, replace=True)
    return authority


def make_request(keys: KeyFiles, hosts: Sequence[str], now: datetime.datetime) -> Request:
    """A request for the keys in a directory; `hosts` are a server's DNS names and addresses.

    Raises:
        ConfigError: keys missing, or hosts given for a party that serves nobody.
    """
    party, group, identity = keys.party(), keys.group(), keys.identity()
    if hosts and party.role != "coordinator":
        raise ConfigError(f"{party} serves nobody: host names belong to the coordinator alone")
    if not hosts and party.role == "coordinator":
        raise ConfigError("a coordinator's request names its hosts: --host NAME_OR_ADDRESS ...")
    csr, created = _make_csr(keys, party, hosts), int(now.timestamp())
    member = Member.create(identity, group)
    body = _request_body(party, group, created, member.public_key.hex(), csr)
    return Request(
        role=party.role, name=party.name, group=group, created=created,
        public_key=member.public_key.hex(), member_proof=member.proof.hex(), csr=csr,
        signature=identity.sign("", _LABEL, NO_CONTEXT, body).hex(),
    )  # fmt: skip


def extend_roster(
    roster: Roster | None,
    requests: Sequence[Request],
    *,
    replace: frozenset[str] = frozenset(),
    committee: frozenset[str] | None = None,
) -> Roster | None:
    """The roster with the requests' tenants in it; None while there is no tenant at all.

    `committee` takes the place of the roster's list; None leaves it as it is.

    Raises:
        ConfigError: a tenant is in it with another key and not named in `replace`, or a member of
            the committee is in it under no key.
    """
    lines = {member.tenant: member for member in roster.members} if roster else {}
    for request in requests:
        old = lines.get(request.name)
        if request.role != "tenant" or old == request.member:
            continue
        if old is not None and request.name not in replace:
            raise ConfigError(
                f"{request.party} is in the roster with another key "
                f"({old.public_key.hex()[:16]}...); if it really made new keys, approve with "
                f"--replace {request.name}"
            )
        lines[request.name] = request.member
    standing = roster.committee if roster else ()
    named = standing if committee is None else tuple(sorted(committee))
    if strangers := [name for name in named if name not in lines]:
        raise ConfigError(
            f"the committee names {', '.join(strangers[:5])}, and the roster has no such tenant; "
            "approve their requests first, or name others"
        )
    return Roster.create(tuple(lines.values()), named) if lines else None


def issue(
    authority: Authority, requests: Sequence[Request], now: datetime.datetime,
    days: int = CERTIFICATE_DAYS,
) -> list[Bundle]:  # fmt: skip
    """Certificates for verified requests.

    Raises:
        ConfigError: a request does not verify, or the authority's key or certificate is unusable.
    """
    signer, issuer = _load_authority(authority, now)
    _refuse_repeats(requests)
    return [
        Bundle(request.party, _issue_one(signer, issuer, request, now, days), request.digest)
        for request in requests
    ]


def write_bundle(out: Path, bundle: Bundle, authority: bytes, roster: Roster | None) -> Path:
    """Write a party's answer into `out/NAME`, ready to be copied into its key directory."""
    directory = out / bundle.party.name
    directory.mkdir(parents=True, exist_ok=True)
    keys = KeyFiles(directory)
    write_new(keys.certificate, bundle.certificate, replace=True)
    write_new(keys.authority, authority, replace=True)
    if roster is not None:
        write_roster(directory, roster)
    return directory


def write_roster(directory: Path, roster: Roster) -> None:
    """`roster.bin` (canonical) and `roster.json` (for people)."""
    write_new(directory / "roster.bin", roster.encode(), replace=True)
    write_new(directory / "roster.json", _json(roster_view(roster)), replace=True)


def roster_view(roster: Roster) -> dict[str, object]:
    """A roster as JSON values."""
    return {
        "digest": roster.digest.hex(),
        "members": [
            {"tenant": m.tenant, "group": m.group, "public_key": m.public_key.hex(),
             "proof": m.proof.hex()}
            for m in roster.members
        ],
        "committee": list(roster.committee),
    }  # fmt: skip


def _request_body(party: Party, group: str, created: int, public_key: str, csr: str) -> bytes:
    return (
        Writer().tag(_LABEL).text(party.role).text(party.name).text(group).u64(created)
        .fixed(bytes.fromhex(public_key), 32).blob(csr.encode()).finish()
    )  # fmt: skip


def _make_csr(keys: KeyFiles, party: Party, hosts: Sequence[str]) -> str:
    key = serialization.load_pem_private_key(read_secret(keys.tls_key), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{keys.tls_key} is no ECDSA key; make new keys")
    names = [x509.UniformResourceIdentifier(party.urn), *map(_host_name, hosts)]
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, party.name)]))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    csr = builder.sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _load_csr(request: Request) -> x509.CertificateSigningRequest:
    """The certificate request. Its key and names are read too: some are refused only then."""
    try:
        csr = x509.load_pem_x509_csr(request.csr.encode())
        csr.public_key(), csr.is_signature_valid, subject_names(csr)
    except (
        ValueError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
    ):
        raise ConfigError(f"the request of {request.party} holds no certificate request") from None
    return csr


def _check_names(party: Party, csr: x509.CertificateSigningRequest) -> None:
    """The certificate request may ask for the party's own name, and hosts if it serves."""
    names = subject_names(csr)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if uris != [party.urn]:
        raise ConfigError(
            f"the request of {party} asks for a certificate of {', '.join(uris) or 'nobody'}; "
            "the names must be the same"
        )
    allowed: tuple[type[x509.GeneralName], ...] = (x509.UniformResourceIdentifier,)
    if party.role == "coordinator":
        allowed += (x509.DNSName, x509.IPAddress)
    if not all(isinstance(name, allowed) for name in names):
        raise ConfigError(f"the request of {party} asks for names that its role does not get")
    if not isinstance(csr.public_key(), ec.EllipticCurvePublicKey):
        raise ConfigError(f"the request of {party} has no ECDSA key; make new keys")


def _refuse_repeats(requests: Sequence[Request]) -> None:
    names = [request.name for request in requests]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"more than one request is of {', '.join(twice)}; give one for each name")


def _load_authority(
    authority: Authority, now: datetime.datetime
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = serialization.load_pem_private_key(read_secret(authority.key_file), None)
    where = str(authority.certificate_file)
    certificate = read_certificate(read_public(authority.certificate_file), where)
    check_validity(certificate, now, where)
    if (
        not isinstance(key, ec.EllipticCurvePrivateKey)
        or key.public_key() != certificate.public_key()
    ):
        raise ConfigError(f"{authority.directory}: key and certificate do not belong together")
    return key, certificate


def _issue_one(
    signer: ec.EllipticCurvePrivateKey, issuer: x509.Certificate, request: Request,
    now: datetime.datetime, days: int,
) -> bytes:  # fmt: skip
    csr = request.verify(now)
    serves = request.role == "coordinator"
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if serves else ExtendedKeyUsageOID.CLIENT_AUTH
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, request.name)])
    key = csr.public_key()
    certificate = (
        _certificate(subject, issuer.subject, key, now, days)  # type: ignore[arg-type]
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(subject_names(csr), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey,
    now: datetime.datetime, days: int,
) -> x509.CertificateBuilder:  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=ca, crl_sign=ca,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _own_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"cannot use {directory} for keys: {error.strerror}") from None


def _refuse_overwrite(files: Sequence[Path], force: bool) -> None:
    for path in files:
        if path.exists() and not force:
            raise ConfigError(
                f"{path} exists already; --force replaces it, and the old key is then lost"
            )


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
