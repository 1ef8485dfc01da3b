"""The report of a run, as Markdown: beside the peers, cost against n, d and dropout, by step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.cases import Case, Programme, Sweep
from benchmarks.measure import Results
from benchmarks.systems import NAMES, OURS, Figures

STEPS = (
    "advertise_keys",
    "share_keys",
    "acknowledge",
    "masked_input",
    "consistency_check",
    "unmask",
)
_AXES = {"n": "tenants", "d": "values", "dropout": "silent"}
_LIMITS = (
    ("keystream_gb_s", "aes256_ctr_256_kib", "AES-256-CTR, 256 KiB at a time", "GB/s"),
    ("keystream_gb_s", "aes128_ctr_256_kib", "AES-128-CTR, 256 KiB at a time", "GB/s"),
    ("keystream_gb_s", "aes256_gcm_256_kib", "AES-256-GCM over zeros, 256 KiB at a time", "GB/s"),
    ("keystream_gb_s", "chacha20_256_kib", "ChaCha20, 256 KiB at a time", "GB/s"),
    ("memory_gb_s", "add_in_place_256_kib", "32-bit words added in place, in cache", "GB/s"),
    ("memory_gb_s", "add_in_place_128_mib", "32-bit words added in place, 128 MiB", "GB/s"),
    ("memory_gb_s", "new_128_mib", "memory touched the first time", "GB/s"),
    ("hash_gb_s", "sha256", "SHA-256", "GB/s"),
    ("fixed_us", "x25519_exchange", "X25519", "us"),
    ("fixed_us", "mlkem768_encapsulate", "ML-KEM-768, encapsulate", "us"),
    ("fixed_us", "mlkem768_decapsulate", "ML-KEM-768, decapsulate", "us"),
    ("fixed_us", "ed25519_sign", "Ed25519, sign", "us"),
    ("fixed_us", "ed25519_verify", "Ed25519, verify", "us"),
)


def markdown(programme: Programme, results: Results, plots: Sequence[Path] = ()) -> str:
    """The whole report."""
    parts = [
        _introduction(results),
        "## Beside other systems",
        _beside(results, programme.table),
        *(part for sweep in programme.sweeps for part in _swept(results, sweep)),
        "## Masks, memory, secret sharing",
        _own(results),
        "## What one core can do",
        _limits(results),
        *(f"![{path.stem.replace('-', ' ')}]({path.as_posix()})" for path in plots),
    ]
    if results.left_out:
        parts += ["## Left out", "\n".join(f"- {what}" for what in results.left_out)]
    return "\n\n".join(parts) + "\n"


def _introduction(results: Results) -> str:
    return f"""\
# What a round costs

Measured by `make bench` on {results.date}: {results.machine}. Process CPU, user and system, of
one client (or tenant) and of the server (or coordinator) over one whole round; medians of turns in
which the systems followed each other. Compare within a row or a case: the machine is shared.

Every party is a process of its own, which has run a small round before. Left out for all systems
are sockets, databases and training. Ours has every check on and signs, verifies, seals and hashes
what the peers do not; the suite is the default, `x25519-mlkem768`."""


def _beside(results: Results, cases: Iterable[Case]) -> str:
    rows: list[Sequence[str]] = []
    for case in cases:
        systems = results.of(case)
        ours = systems.get(OURS)
        if ours is None:
            continue
        for name, one in systems.items():
            rows.append(
                (
                    str(case) if one is ours else "",
                    str(len(one.turns)),
                    f"{NAMES[name]} {one.version}",
                    _ms(one.client_s),
                    _ms(one.server_s),
                    f"{one.bytes_up:.3f}",
                    "" if one is ours else f"{one.client_s / ours.client_s:.1f}",
                    "" if one is ours else f"{one.server_s / ours.server_s:.1f}",
                )
            )
    titles = (
        "case", "turns", "system", "client CPU ms", "server CPU ms", "bytes up a value",
        "client, times ours", "server, times ours",
    )  # fmt: skip
    return _table(titles, rows)


def _swept(results: Results, sweep: Sweep) -> Iterator[str]:
    cases = [case for case in sweep.cases if results.of(case)]
    yield f"## Cost against {sweep.name} ({sweep.title})"
    names = [name for name in NAMES if any(name in results.of(case) for case in cases)]
    rows: list[Sequence[str]] = []
    for case in cases:
        systems = results.of(case)
        cells = [_cell(systems.get(name)) for name in names]
        rows.append((_point(sweep, case), *cells))
    yield "Client / server, ms."
    yield _table((_AXES[sweep.name], *(NAMES[name] for name in names)), rows)
    for role, whose in (("tenant", "A tenant"), ("coordinator", "The coordinator")):
        yield f"{whose} by step, ms."
        rows = [
            (_point(sweep, case), *(_ms(by_step[step]) for step in STEPS))
            for case in cases
            for by_step in (results.of(case)[OURS].by_step(role),)
        ]
        yield _table((_AXES[sweep.name], *STEPS), rows)


def _own(results: Results) -> str:
    text = (
        "`fraction` is keystream made and added over what AES-256-CTR alone reaches at that "
        "moment. `sharing` is CPU in Shamir's scheme, of a tenant and the coordinator. `k` "
        "holders have a share of each tenant's secrets, of which `t` open it."
    )
    rows = [
        (
            str(case),
            f"{ours.turns[-1]['neighbours']}, {ours.turns[-1]['share_threshold']}",
            f"{ours.median('keystream_gb_s'):.2f}",
            f"{ours.median('keystream_fraction'):.2f}",
            _ms(ours.median("shamir_s")),
            f"{ours.client_mb:,.0f}",
            f"{ours.server_mb:,.0f}",
            f"{ours.median('process_cpu_s'):,.2f}",
        )
        for case in results.cases()
        for ours in (results.of(case)[OURS],)
    ]
    titles = (
        "case", "k, t", "GB/s", "fraction", "sharing ms", "tenant MiB", "coordinator MiB",
        "all parties s",
    )  # fmt: skip
    return f"{text}\n\n{_table(titles, rows)}"


def _limits(results: Results) -> str:
    rows = [
        (what, f"{results.limits[group][name]:,.2f} {unit}")
        for group, name, what, unit in _LIMITS
        if name in results.limits.get(group, {})
    ]
    return _table(("what", "one core"), rows)


def _point(sweep: Sweep, case: Case) -> str:
    value = sweep.of(case)
    return f"{value:.0%}" if sweep.name == "dropout" else f"{value:,}"


def _cell(one: Figures | None) -> str:
    return "" if one is None else f"{_ms(one.client_s)} / {_ms(one.server_s)}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---" if title in ("case", "system", "what") else "---:" for title in titles]
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, rule, *rows))
