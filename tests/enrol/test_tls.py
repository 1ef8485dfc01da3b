"""Mutual TLS over loopback: the right certificate gets in and is named, every other one is not."""

import datetime
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import pytest

from secagg.errors import ConfigError
from secagg_wire.enrol import (
    Authority,
    create_authority,
    create_keys,
    issue,
    make_request,
    write_bundle,
)
from secagg_wire.key_files import KeyFiles, Party
from secagg_wire.tls import channel_credentials, peer_of, server_credentials

NOW = datetime.datetime.now(datetime.UTC)
METHOD = "/test/Who"


def enrolled(root: Path, authority: Authority, party: Party, *hosts: str) -> KeyFiles:
    directory = root / party.name
    keys = create_keys(directory, party)
    (bundle,) = issue(authority, [make_request(keys, hosts, NOW)], NOW)
    write_bundle(root, bundle, authority.certificate_file.read_bytes(), None)
    return keys


class _Who(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def who(request: bytes, context: grpc.ServicerContext) -> bytes:
            return str(peer_of(context.auth_context())).encode()

        return grpc.unary_unary_rpc_method_handler(who)


@contextmanager
def serving(keys: KeyFiles) -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=(_Who(),))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(keys))
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def ask(port: int, credentials: grpc.ChannelCredentials) -> bytes:
    with closing(grpc.secure_channel(f"127.0.0.1:{port}", credentials)) as channel:
        call: Callable[..., bytes] = channel.unary_unary(METHOD)
        return call(b"", timeout=5)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Authority, KeyFiles]:
    root = tmp_path_factory.mktemp("federation")
    authority = create_authority(root / "authority", "fed", NOW)
    hub = enrolled(root, authority, Party("coordinator", "hub"), "127.0.0.1", "localhost")
    return root, authority, hub


def test_the_server_learns_the_name_in_the_certificate(
    federation: tuple[Path, Authority, KeyFiles],
) -> None:
    root, authority, hub = federation
    keys = enrolled(root, authority, Party("tenant", "bank-1"))
    with serving(hub) as port:
        assert ask(port, channel_credentials(keys)) == b"tenant 'bank-1'"


def test_a_client_without_or_with_a_foreign_certificate_is_kept_out(
    federation: tuple[Path, Authority, KeyFiles], tmp_path: Path
) -> None:
    _, authority, hub = federation
    foreign = create_authority(tmp_path / "foreign", "other", NOW)
    stranger = enrolled(tmp_path, foreign, Party("tenant", "stranger"))
    ours = authority.certificate_file.read_bytes()
    stranger.authority.write_bytes(ours)
    with serving(hub) as port:
        for credentials in (grpc.ssl_channel_credentials(ours), channel_credentials(stranger)):
            with pytest.raises(grpc.RpcError) as caught:
                ask(port, credentials)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_tenant_cannot_pose_as_the_coordinator(
    federation: tuple[Path, Authority, KeyFiles], tmp_path: Path
) -> None:
    _, authority, _ = federation
    liar = enrolled(tmp_path, authority, Party("tenant", "liar"))
    honest = enrolled(tmp_path, authority, Party("tenant", "honest"))
    with serving(liar) as port, pytest.raises(grpc.RpcError):
        ask(port, channel_credentials(honest))


def test_a_certificate_for_another_key_is_one_clear_error(
    federation: tuple[Path, Authority, KeyFiles], tmp_path: Path
) -> None:
    _, authority, hub = federation
    keys = enrolled(tmp_path, authority, Party("tenant", "swapped"))
    keys.certificate.write_bytes(hub.certificate.read_bytes())
    with pytest.raises(ConfigError, match="another key"):
        channel_credentials(keys)


def test_a_call_without_certificate_names_nobody() -> None:
    with pytest.raises(ConfigError, match="mutual TLS"):
        peer_of({})
