"""Mutual TLS from a key directory, and who is at the other end.

Both sides always show a certificate of the one authority of their federation. A certificate
names its holder in a SAN URI, `urn:secagg:ROLE:NAME`; the coordinator compares that with the
tenant that a message claims. TLS says who is connected and nothing more: what a participant says
in a round is signed with its Ed25519 identity (secagg/identity.py), which no authority can forge.

gRPC reports a missing or foreign client certificate as a bare UNAVAILABLE; `explain_unavailable`
adds what to look at.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping, Sequence

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from secagg.errors import ConfigError
from secagg_wire.key_files import KeyFiles, Party, read_public, read_secret

_X509_PROPERTY = "x509_pem_cert"


def server_credentials(keys: KeyFiles) -> grpc.ServerCredentials:
    """Credentials of a server that demands a client certificate of the same authority.

    Raises:
        ConfigError: a file is missing, or certificate and key do not belong together.
    """
    key, chain, authority = _read(keys)
    return grpc.ssl_server_credentials(
        [(key, chain)], root_certificates=authority, require_client_auth=True
    )


def channel_credentials(keys: KeyFiles) -> grpc.ChannelCredentials:
    """Credentials of a client that shows its certificate and demands the server's.

    Raises:
        ConfigError: a file is missing, or certificate and key do not belong together.
    """
    key, chain, authority = _read(keys)
    return grpc.ssl_channel_credentials(authority, key, chain)


def peer_of(auth_context: Mapping[str, Sequence[bytes]]) -> Party:
    """The party at the other end of a call: pass `context.auth_context()`.

    Raises:
        ConfigError: the call carries no certificate, or one that names no party or several.
    """
    certificates = auth_context.get(_X509_PROPERTY, ())
    if len(certificates) != 1:
        raise ConfigError("the peer showed no certificate; this service speaks mutual TLS only")
    return _party_in_pem(bytes(certificates[0]))


def party_of(certificate: x509.Certificate) -> Party:
    """The one party that a certificate names in its SAN URI.

    Raises:
        ConfigError: it names none, or more than one.
    """
    uris = subject_names(certificate).get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise ConfigError(f"the certificate names {len(uris)} parties in its SAN; it must name one")
    return Party.parse(uris[0])


def subject_names(
    holder: x509.Certificate | x509.CertificateSigningRequest,
) -> x509.SubjectAlternativeName:
    """The SAN extension; an empty one where there is none."""
    try:
        return holder.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return x509.SubjectAlternativeName([])


def read_certificate(data: bytes, where: str) -> x509.Certificate:
    """A PEM certificate.

    Raises:
        ConfigError: it is none.
    """
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError:
        raise ConfigError(f"{where} holds no certificate in PEM form") from None


def check_validity(certificate: x509.Certificate, now: datetime.datetime, where: str) -> None:
    """Demand that `now` lies in the certificate's validity.

    Raises:
        ConfigError: expired, or not valid yet.
    """
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now >= ends:
        raise ConfigError(
            f"{where} expired on {ends:%Y-%m-%d}; send a new request ('secagg keys request')"
        )
    if now < begins:
        raise ConfigError(
            f"{where} is valid from {begins:%Y-%m-%d %H:%M} UTC and the clock says "
            f"{now:%Y-%m-%d %H:%M}; set the clock"
        )


def explain_unavailable(details: str | None, target: str) -> str:
    """What UNAVAILABLE may mean, for a log line: gRPC itself does not say."""
    return (
        f"cannot reach {target} ({(details or 'no details')[:200]}): is it running, is the port "
        "right, and are both certificates of the same authority, for the right host and in date? "
        "'secagg config check FILE' looks at this side's files"
    )


@functools.lru_cache(maxsize=1024)
def _party_in_pem(data: bytes) -> Party:
    return party_of(read_certificate(data, "the peer's certificate"))


def _read(keys: KeyFiles) -> tuple[bytes, bytes, bytes]:
    key, chain = read_secret(keys.tls_key), read_public(keys.certificate)
    check_pair(chain, key, keys)
    return key, chain, read_public(keys.authority)


def check_pair(chain: bytes, key: bytes, keys: KeyFiles) -> None:
    """Demand that certificate and key belong together.

    Raises:
        ConfigError: they do not, or the key cannot be read.
    """
    certificate = read_certificate(chain, str(keys.certificate))
    try:
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError):
        raise ConfigError(f"{keys.tls_key} holds no unencrypted PEM key") from None
    if private.public_key() != certificate.public_key():
        raise ConfigError(
            f"{keys.certificate} was issued for another key than {keys.tls_key}; "
            "copy the certificate that answers this directory's request"
        )
