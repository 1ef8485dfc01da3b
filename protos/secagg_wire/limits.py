"""Sizes and channel options that both ends of secagg.v1 keep to.

Nothing of model size is ever one message: vectors, sums and files go in pieces of at most 1 MiB.
What the aggregator returns to everybody grows with the cohort (its acknowledgements with the square
of it), so a client accepts larger messages than the server does.
"""

from __future__ import annotations

from typing import Final

PIECE_BYTES: Final = 1 << 20
LEAVES_PER_REQUEST: Final = 1024
CONTEXT_BYTES: Final = 32
DIGEST_BYTES: Final = 32
UPLINK_MESSAGE_BYTES: Final = 1 << 24
DOWNLINK_MESSAGE_BYTES: Final = 1 << 27
_ENVELOPE_BYTES: Final = 1 << 16

ChannelOptions = tuple[tuple[str, int], ...]

# A ping after 60 s of silence, 20 s for its answer: a dead peer ends a stream in 80 s at most. The
# lease (RenewLease) is what notices a dead tenant in seconds.
_KEEPALIVE: Final[ChannelOptions] = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
CLIENT_OPTIONS: Final[ChannelOptions] = (
    *_KEEPALIVE,
    ("grpc.max_receive_message_length", DOWNLINK_MESSAGE_BYTES + _ENVELOPE_BYTES),
    ("grpc.max_send_message_length", UPLINK_MESSAGE_BYTES + _ENVELOPE_BYTES),
    # Reconnect within seconds: a coordinator that restarts must not wait for two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)
SERVER_OPTIONS: Final[ChannelOptions] = (
    *_KEEPALIVE,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),
    ("grpc.max_receive_message_length", UPLINK_MESSAGE_BYTES + _ENVELOPE_BYTES),
    ("grpc.max_send_message_length", DOWNLINK_MESSAGE_BYTES + _ENVELOPE_BYTES),
    # Without this a second server on the same port would share it, silently.
    ("grpc.so_reuseport", 0),
)
