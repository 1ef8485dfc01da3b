"""Make keys, ask for enrolment, approve requests: each party keeps its private keys.

The flow, with the authority held by whoever runs enrolment:

  secagg keys init --role authority --name acme-federation --dir authority
  secagg keys init --role tenant --name bank-1 --dir keys          # at the tenant
  secagg keys request --dir keys --out bank-1.request.json         # at the tenant; send the file
  secagg keys approve *.request.json --authority authority --out approved
  secagg keys accept approved/bank-1 --dir keys --roster-digest HEX   # at the tenant

Both sides read the fingerprints to each other over the phone before `approve` and `accept`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from secagg.errors import ConfigError
from secagg.identity import Roster
from secagg_wire.enrol import (
    CERTIFICATE_DAYS,
    Authority,
    Bundle,
    Request,
    create_authority,
    create_keys,
    extend_roster,
    issue,
    make_request,
    roster_view,
    write_bundle,
    write_roster,
)
from secagg_wire.key_files import (
    ROLES,
    KeyFiles,
    Party,
    fingerprint,
    read_public,
    read_secret,
    write_new,
)
from secagg_wire.tls import check_pair, check_validity, party_of, read_certificate, subject_names


@dataclass(frozen=True, slots=True)
class Report:
    """What a command did: `fields` for programs, `lines` for people."""

    fields: Mapping[str, object]
    lines: tuple[str, ...]

    def show(self, form: str) -> None:
        """Print it on stdout."""
        print(
            json.dumps(self.fields, ensure_ascii=False) if form == "json" else "\n".join(self.lines)
        )


def main(argv: list[str]) -> int:
    """Run `secagg keys ...`."""
    options = _parser().parse_args(argv)
    action: Callable[[argparse.Namespace], Report] = options.action
    action(options).show(options.format)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="secagg keys",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--format", choices=("text", "json"), default="text")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = commands.add_parser("init", parents=[common], help="make keys in a directory")
    init.add_argument("--role", required=True, choices=(*ROLES, "authority"))
    init.add_argument("--name", required=True, help="a-z, 0-9, '.', '_', '-'; at most 63")
    init.add_argument("--dir", required=True, type=Path)
    init.add_argument("--group", default="", help="the tenant's group in the roster")
    init.add_argument("--force", action="store_true", help="replace keys that are there")
    init.set_defaults(action=_init)

    request = commands.add_parser("request", parents=[common], help="write an enrolment request")
    request.add_argument("--dir", required=True, type=Path)
    host = request.add_argument("--host", action="append", default=[], metavar="NAME_OR_ADDRESS")
    host.help = "coordinator only: a name or address that clients connect to"
    request.add_argument("--out", type=Path, help="the request file (default: DIR/request.json)")
    request.set_defaults(action=_request)

    approve = commands.add_parser(
        "approve", parents=[common], help="issue certificates, extend the roster"
    )
    approve.add_argument("requests", nargs="+", type=Path, metavar="REQUEST")
    approve.add_argument("--authority", required=True, type=Path, metavar="DIR")
    approve.add_argument("--out", required=True, type=Path, metavar="DIR")
    approve.add_argument(
        "--days", type=int, default=CERTIFICATE_DAYS, help="a certificate's validity"
    )
    replace = approve.add_argument("--replace", action="append", default=[], metavar="NAME")
    replace.help = "this tenant made new keys: replace its line in the roster"
    committee = approve.add_argument("--committee", metavar="NAME[,NAME...]")
    committee.help = (
        "those who hold the key shares of scheme ckks in cohorts above 64; replaces the roster's "
        "list, without it the list stays"
    )
    approve.add_argument("--yes", action="store_true", help="do not ask on a terminal")
    approve.set_defaults(action=_approve)

    accept = commands.add_parser(
        "accept", parents=[common], help="check an answer and take it over"
    )
    accept.add_argument("bundle", type=Path, metavar="BUNDLE")
    accept.add_argument("--dir", required=True, type=Path)
    digest = accept.add_argument("--roster-digest", required=True, metavar="HEX")
    digest.help = "as heard from the authority over another channel"
    accept.set_defaults(action=_accept)

    show = commands.add_parser("show", parents=[common], help="what a directory or request holds")
    show.add_argument("what", type=Path, metavar="DIR_OR_REQUEST")
    show.set_defaults(action=_show)
    return parser


def _init(options: argparse.Namespace) -> Report:
    if options.role == "authority":
        authority = create_authority(options.dir, options.name, _now(), force=options.force)
        return Report(
            {"role": "authority", "directory": str(options.dir)},
            (f"authority {options.name!r}: key and certificate in {authority.directory}",
             "keep ca.key off the network; a backup of it belongs in a safe"),
        )  # fmt: skip
    party = Party(options.role, options.name)
    keys = create_keys(options.dir, party, options.group, force=options.force)
    public_key = keys.identity().public_key
    return Report(
        {"role": party.role, "name": party.name, "public_key": public_key.hex()},
        (f"{party}: identity and TLS key in {keys.directory}",
         f"public key   {public_key.hex()}",
         f"next: secagg keys request --dir {keys.directory}"),
    )  # fmt: skip


def _request(options: argparse.Namespace) -> Report:
    keys = KeyFiles(options.dir)
    request = make_request(keys, options.host, _now())
    path = options.out or keys.request
    write_new(path, request.encode(), replace=True)
    lines = (*_describe(request), f"send {path} to the authority, and read it the fingerprint")
    return Report({**_request_fields(request), "file": str(path)}, lines)


def _approve(options: argparse.Namespace) -> Report:
    requests = [Request.read(path) for path in options.requests]
    authority = Authority(options.authority)
    bundles = issue(authority, requests, _now(), options.days)
    _confirm(requests, ask=sys.stdin.isatty() and not options.yes)
    roster = extend_roster(
        authority.roster(), requests, replace=frozenset(options.replace),
        committee=_names(options.committee),
    )  # fmt: skip
    if roster is not None:
        write_roster(authority.directory, roster)
    certificate = read_public(authority.certificate_file)
    written = [write_bundle(options.out, bundle, certificate, roster) for bundle in bundles]
    if roster is not None:
        write_roster(options.out, roster)
    return _approved(bundles, written, roster)


def _names(listed: str | None) -> frozenset[str] | None:
    return None if listed is None else frozenset(listed.replace(",", " ").split())


def _approved(bundles: list[Bundle], written: list[Path], roster: Roster | None) -> Report:
    digest = roster.digest.hex() if roster else None
    fields = {
        "roster_digest": digest,
        "members": [member.tenant for member in roster.members] if roster else [],
        "committee": list(roster.committee) if roster else [],
        "bundles": {
            bundle.party.name: str(path) for bundle, path in zip(bundles, written, strict=True)
        },
    }
    lines = [
        f"{bundle.party}: approved; send back {path}"
        for bundle, path in zip(bundles, written, strict=True)
    ]
    if roster is not None:
        if roster.committee:
            lines.append(f"committee of {len(roster.committee)}: {', '.join(roster.committee)}")
        lines += [f"roster of {len(roster.members)}: everybody pins this digest", f"  {digest}"]
    return Report(fields, tuple(lines))


def _confirm(requests: list[Request], *, ask: bool) -> None:
    """Show what is about to be approved; a person at a terminal compares and agrees."""
    for request in requests:
        print("\n".join(_describe(request)), file=sys.stderr)
    if ask and input("do the fingerprints match what you heard by phone? [yes/no] ") != "yes":
        raise ConfigError("nothing was approved")


def _accept(options: argparse.Namespace) -> Report:
    keys, answer = KeyFiles(options.dir), KeyFiles(options.bundle)
    party = keys.party()
    certificate = _check_certificate(keys, answer, party)
    roster = _check_roster(keys, answer, party, options.roster_digest)
    for source, target in (
        (answer.certificate, keys.certificate),
        (answer.authority, keys.authority),
    ):
        write_new(target, read_public(source), replace=True)
    write_roster(keys.directory, roster)
    ends = certificate.not_valid_after_utc
    return Report(
        {"name": party.name, "roster_digest": roster.digest.hex(), "not_after": ends.isoformat()},
        (
            f"{party}: certificate valid until {ends:%Y-%m-%d}",
            f"roster of {len(roster.members)} tenants, digest {roster.digest.hex()}",
            *([f"committee: {', '.join(roster.committee)}"] if roster.committee else []),
        ),
    )


def _check_certificate(keys: KeyFiles, answer: KeyFiles, party: Party) -> x509.Certificate:
    where = str(answer.certificate)
    certificate = read_certificate(read_public(answer.certificate), where)
    authority = read_certificate(read_public(answer.authority), str(answer.authority))
    check_pair(read_public(answer.certificate), read_secret(keys.tls_key), keys)
    check_validity(certificate, _now(), where)
    if party_of(certificate) != party:
        raise ConfigError(f"{where} is of {party_of(certificate)}, and these keys are of {party}")
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        raise ConfigError(f"{where} was not issued by the authority beside it ({error})") from None
    return certificate


def _check_roster(keys: KeyFiles, answer: KeyFiles, party: Party, pinned: str) -> Roster:
    roster = answer.read_roster()
    if roster.digest.hex() != pinned.strip().lower():
        raise ConfigError(
            f"{answer.roster} has digest {roster.digest.hex()}, not the one given; ask the "
            "authority which one is right before anything else"
        )
    own = keys.identity().public_key
    if party.role == "tenant" and (
        party.name not in roster or roster[party.name].public_key != own
    ):
        raise ConfigError(
            f"{answer.roster} holds another key for {party}, or none; do not take part with it"
        )
    return roster


def _show(options: argparse.Namespace) -> Report:
    path: Path = options.what
    if path.is_file():
        request = Request.read(path)
        request.verify(_now())
        return Report(_request_fields(request), _describe(request))
    authority = Authority(path)
    if authority.key_file.exists():
        return _show_authority(authority)
    return _show_keys(KeyFiles(path))


def _show_authority(authority: Authority) -> Report:
    roster = authority.roster()
    if roster is None:
        return Report({"role": "authority", "roster": None}, ("authority; no tenant enrolled yet",))
    lines = [f"{m.tenant:24} {m.group:12} {m.public_key.hex()}" for m in roster.members]
    if roster.committee:
        lines.append(f"committee: {', '.join(roster.committee)}")
    return Report(
        {"role": "authority", "roster": roster_view(roster)},
        (f"authority; roster digest {roster.digest.hex()}", *lines),
    )


def _show_keys(keys: KeyFiles) -> Report:
    party, public_key = keys.party(), keys.identity().public_key
    fields: dict[str, object] = {"role": party.role, "name": party.name}
    fields["public_key"] = public_key.hex()
    lines = [str(party), f"public key     {public_key.hex()}"]
    if keys.certificate.exists():
        certificate = read_certificate(read_public(keys.certificate), str(keys.certificate))
        fields["not_after"] = certificate.not_valid_after_utc.isoformat()
        lines.append(f"certificate    valid until {certificate.not_valid_after_utc:%Y-%m-%d}")
    if keys.roster.exists():
        roster = keys.read_roster()
        fields["roster_digest"] = roster.digest.hex()
        lines.append(f"roster         {len(roster.members)} tenants, digest {roster.digest.hex()}")
        if roster.committee:
            lines.append(f"committee      {', '.join(roster.committee)}")
    return Report(fields, tuple(lines))


def _request_fields(request: Request) -> dict[str, object]:
    return {
        "role": request.role,
        "name": request.name,
        "public_key": request.public_key,
        "fingerprint": request.digest.hex(),
    }


def _describe(request: Request) -> tuple[str, ...]:
    names = subject_names(x509.load_pem_x509_csr(request.csr.encode()))
    hosts = [
        str(name.value) for name in names if not isinstance(name, x509.UniformResourceIdentifier)
    ]
    made = datetime.datetime.fromtimestamp(request.created, datetime.UTC)
    return (
        f"{request.party}" + f" in group {request.group!r}" * bool(request.group),
        *([f"  hosts        {', '.join(hosts)}"] if hosts else []),
        f"  made         {made:%Y-%m-%d %H:%M} UTC",
        f"  fingerprint  {fingerprint(request.digest)}",
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
