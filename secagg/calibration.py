"""What single operations take on this machine: `UnitCosts`, by a clock that the caller brings.

    units = measure(time.process_time)

The core has no clock of its own. Each operation is done a few times, by the functions that a round
calls, and the quickest turn counts: what else the machine does makes operations slower, never
quicker. It takes about half a second of CPU once the kernels of `ckks` are compiled (once per
machine: the first call may take half a minute more). Where the packages of an extra are missing,
the costs of what needs them keep their defaults.

Deliberately not here: measuring rounds (`secagg bench`), and the other parties' machines: tenants
may be slower than whoever measures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial

import numpy as np
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secagg import checks, shamir
from secagg.ckks.parameters import Packing
from secagg.costs import TYPICAL, UnitCosts
from secagg.encoding import Quantiser, Values, from_ring
from secagg.errors import ConfigError
from secagg.identity import Identity, Member, Roster, sha256
from secagg.layout import Layout
from secagg.merkle import bulk_leaf_hash
from secagg.messages import Acknowledge, DeliveredLeaf, Leaf, Signed
from secagg.plan import RoundPlan, Scheme
from secagg.prg import CHUNK_BYTES, Keystream, add_masks, new_scratch
from secagg.records import decode, encode
from secagg.scheme import LeafPlace, LeafSums, ProtectionSecrets, Sum, leaf_places, scheme_of
from secagg.secret import RoundingSeed, Seed, SelfMaskSeed, SelfMaskShare, StreamKey
from secagg.suite import derive
from secagg.upload import Upload, input_digests

Clock = Callable[[], float]
"""CPU seconds, such as `time.process_time`."""

_TURNS = 21
_LENGTH = 200_000
_HOLDERS, _THRESHOLD = 32, 22
_SEED_HOLDERS, _SEED_THRESHOLD = 100, 67


def measure(clock: Clock) -> UnitCosts:
    """On one core, now."""
    costs = dict(_keys(clock)) | dict(_masked(clock))
    costs["share_step"] = _share_step(clock)
    for part in (_ciphertexts, _key_shares, _slots):
        try:
            costs |= dict(part(clock))
        except ConfigError:  # an extra is not installed
            continue
    return replace(TYPICAL, **{name: max(cost, 1e-15) for name, cost in costs.items()})


def _fastest(clock: Clock, act: Callable[[], object]) -> float:
    act()  # kernels are compiled, tables made
    return min(_once(clock, act) for _ in range(_TURNS))


def _once(clock: Clock, act: Callable[[], object]) -> float:
    before = clock()
    act()
    return clock() - before


@cache
def _cohort() -> tuple[Identity, Roster]:
    identities = [Identity.generate(name, os.urandom) for name in ("a", "b", "c")]
    return identities[0], Roster.create(tuple(map(Member.create, identities)))


def _plan(scheme: Scheme, packing: Packing = "coefficients") -> RoundPlan:
    return RoundPlan.create(
        _cohort()[1], round_number=1, layout=Layout.flat(_LENGTH), quantiser=Quantiser(1.0, 16),
        model_digest=bytes(32), scheme=scheme, packing=packing,
    )  # fmt: skip


def _vector() -> Values:
    return np.linspace(-1, 1, _LENGTH, dtype=np.float32)


def _digested(clock: Clock, plan: RoundPlan) -> float:
    """A coordinate of an input, which a participant digests before it uses it."""
    vector = _vector()
    return _fastest(clock, lambda: input_digests(plan, vector, 1)) / _LENGTH


def _upload(plan: RoundPlan) -> Upload:
    secrets = ProtectionSecrets(SelfMaskSeed.draw(os.urandom), ())
    protector = scheme_of(plan).protector(plan, 0, secrets)
    return Upload(plan, _vector(), 1, RoundingSeed.draw(os.urandom), protector)


def _keys(clock: Clock) -> Iterator[tuple[str, float]]:
    point, other = X25519PrivateKey.generate(), X25519PrivateKey.generate().public_key()
    yield "exchange", _fastest(clock, lambda: derive(point.exchange(other), b"", b"info"))
    kem = MLKEM768PrivateKey.generate()
    public = kem.public_key().public_bytes_raw()
    _, ciphertext = kem.public_key().encapsulate()
    fresh = MLKEM768PublicKey.from_public_bytes
    yield "encapsulation", _fastest(clock, lambda: fresh(public).encapsulate())
    yield "decapsulation", _fastest(clock, lambda: derive(kem.decapsulate(ciphertext), b"", b""))
    identity, roster = _cohort()
    plan = _plan("masking")
    record = encode(Signed.create(plan, identity, Acknowledge(bytes(32), bytes(32), ())))
    setting = partial(checks.Setting, plan, roster)  # one anew: it remembers what it has verified
    yield (
        "signature",
        _fastest(clock, lambda: checks.verify(setting(), decode(Signed, record), Acknowledge)),
    )
    leaf = Leaf(0, ciphertext, bytes(200), (bytes(32),) * 2)
    yield "leaf", _fastest(clock, lambda: checks.leaf_digest(decode(Leaf, encode(leaf)).outline))


def _masked(clock: Clock) -> Iterator[tuple[str, float]]:
    keystream, scratch = Keystream(StreamKey.draw(os.urandom)), new_scratch()
    words = np.zeros(CHUNK_BYTES // 4, np.uint32)
    mask = _fastest(clock, lambda: add_masks(words, 1, [keystream], [], scratch))
    yield "mask_byte", mask / CHUNK_BYTES
    plan = _plan("masking")
    upload, sums, place = _upload(plan), scheme_of(plan).leaf_sums(plan), leaf_places(plan)[0]
    leaf, total = upload.leaf(0), sums.zero(place)
    made = _fastest(clock, lambda: bulk_leaf_hash(upload.leaf(0)))
    yield "tenant_value", (made - mask) / place.count + _digested(clock, plan)
    added = _fastest(clock, lambda: _taken(sums, total, leaf, place))
    yield "coordinator_value", added / place.count
    yield "opened_value", _fastest(clock, lambda: from_ring(total, place.bits)) / place.count


def _taken(sums: LeafSums, total: Sum, leaf: bytes, place: LeafPlace) -> bytes:
    sums.add(total, leaf, place)
    return bulk_leaf_hash(leaf)


def _share_step(clock: Clock) -> float:
    holders, secret = range(_SEED_HOLDERS), SelfMaskSeed.draw(os.urandom)
    dealt = _fastest(
        clock, lambda: shamir.split(secret, holders, _SEED_THRESHOLD, SelfMaskShare, os.urandom)
    )
    return dealt / (_SEED_HOLDERS * _SEED_THRESHOLD)


def _ciphertexts(clock: Clock) -> Iterator[tuple[str, float]]:
    from secagg.ckks.scheme import SumDecryptor

    plan = _plan("ckks")
    upload, sums, place = _upload(plan), scheme_of(plan).leaf_sums(plan), leaf_places(plan)[0]
    prepared = _fastest(clock, lambda: upload.levels(place))
    yield "prepared_value", prepared / place.count + _digested(clock, plan)
    leaf, total = upload.leaf(0), sums.zero(place)
    residues = total.size
    made = _fastest(clock, lambda: bulk_leaf_hash(upload.leaf(0)))
    yield "encrypted_residue", (made - prepared) / residues
    added = _fastest(clock, lambda: _taken(sums, total, leaf, place))
    yield "added_residue", added / residues
    decryptor = SumDecryptor(plan, np.zeros(total.shape[1], np.int32), plan.n, ())
    nothing = sums.zero(place)
    opened = _fastest(clock, lambda: decryptor.open(nothing.copy(), place))
    yield "decrypted_residue", opened / residues


def _key_shares(clock: Clock) -> Iterator[tuple[str, float]]:
    from secagg.ckks import sharing
    from secagg.ckks.field import Elements

    degree, holders, seed = 8192, range(_HOLDERS), Seed.draw(os.urandom)
    secret, context = np.zeros(degree, np.int32), bytes(32)
    rho = sharing.challenge(context, 0, (context,), degree)

    def deal() -> tuple[sharing.Dealing, Elements]:
        dealing = sharing.split(secret, holders, _THRESHOLD, seed, context)
        return dealing, sharing.check_polynomial(dealing, rho)

    yield "key_term", _fastest(clock, deal) / (_HOLDERS * _THRESHOLD * degree)
    dealing, check = deal()
    row, key = dealing.shares[0], AESGCM(bytes(32))

    def one_share() -> bool:
        packed = sharing.pack_elements(row)
        sealed = key.encrypt(bytes(12), packed, sha256(packed))
        opened = key.decrypt(bytes(12), sealed, sha256(packed))
        share = sharing.parse_elements(opened, degree + sharing.CHECKS)
        challenge = sharing.challenge(context, 0, (context,), degree)
        return sharing.holds(share, 0, challenge, check) and bool(sharing.add_shares([share]).size)

    yield "key_element", _fastest(clock, one_share) / (2 * degree)
    leaf = encode(Leaf(0, bytes(1088), sharing.pack_elements(row), (bytes(32),)))

    def relay() -> bytes:
        one = decode(Leaf, leaf)
        return checks.leaf_digest(one.outline) + encode(DeliveredLeaf(0, one, (bytes(32),)))

    yield "relayed_element", _fastest(clock, relay) / degree


def _slots(clock: Clock) -> Iterator[tuple[str, float]]:
    from secagg.ckks.packings import packing_of

    plan = _plan("ckks", "slots")
    packing, place = packing_of(plan), leaf_places(plan)[0]
    out = scheme_of(plan).leaf_sums(plan).zero(place)
    levels, error = np.zeros(place.count, np.int64), np.zeros(out.shape[1], np.int8)
    dither = np.zeros(out.shape[1])
    encoded = _fastest(clock, lambda: packing.encode(levels, error, dither, place, out))
    decoded = _fastest(clock, lambda: packing.decode(out.copy(), place, 1))
    yield "slot", max(encoded, decoded) / place.count
