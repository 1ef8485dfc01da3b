"""Key derivation, sealed bundles, sealed pads and pairwise seeds of both suites."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from secagg import suite as code
from secagg.messages import AdvertiseKeys
from secagg.secret import ChannelSeed, MaskSeed, Pad
from tests.vectors.cases import Case, case, operation, shake
from tests.vectors.derandomised import with_m

SUITES = ("x25519", "x25519-mlkem768")
CONTEXT = shake("context", 32).hex()
DEALER, HOLDER = 3, 7
SEEDS = {
    str(index): {kind: shake(f"{kind} {index}", 32).hex() for kind in ("channel", "mask")}
    for index in (DEALER, HOLDER)
}
_FIELD = 2**255 - 19
# Curve25519's points of small order (Bernstein 2006, section 3), as u-coordinates.
_LOW_ORDER = (
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    _FIELD - 1,
)

Seeds = dict[str, dict[str, str]]


def channel(seeds: Seeds, index: int) -> ChannelSeed:
    return ChannelSeed(bytes.fromhex(seeds[str(index)]["channel"]))


def mask(seeds: Seeds, index: int) -> MaskSeed:
    return MaskSeed(bytes.fromhex(seeds[str(index)]["mask"]))


def peer(suite: Any, seeds: Seeds, index: int) -> code.Peer:
    return code.Peer(index, code.advertise(suite, channel(seeds, index), mask(seeds, index)))


@operation("suite.derive")
def derive(ikm: str, salt: str, info: str, length: int) -> str:
    parts = (bytes.fromhex(part) for part in (ikm, salt, info))
    return code.derive(*parts, length).hex()


@operation("suite.public_keys")
def public_keys(suite: Any, kind: str, seed: str) -> dict[str, str]:
    made = {"channel": ChannelSeed, "mask": MaskSeed}[kind](bytes.fromhex(seed))
    point, kem = code.public_keys(code.private_keys(suite, made))
    return {"x25519": point.hex(), "mlkem768": kem.hex()}


@operation("suite.check_public_keys")
def check_public_keys(suite: Any, keys: dict[str, str]) -> str:
    code.check_public_keys(suite, AdvertiseKeys(**{k: bytes.fromhex(v) for k, v in keys.items()}))
    return "accepted"


@operation("suite.seal")
def seal(
    suite: Any, context: str, seeds: Seeds, sender: int, receiver: int, plaintext: str, drawn: str
) -> dict[str, str]:
    with with_m(bytes.fromhex(drawn)):
        before, sealed = code.seal(
            bytes.fromhex(context), peer(suite, seeds, sender), peer(suite, seeds, receiver),
            code.private_keys(suite, channel(seeds, sender)), bytes.fromhex(plaintext),
            lambda length: bytes.fromhex(drawn),
        )  # fmt: skip
    return {"encapsulation": before.hex(), "sealed": sealed.hex()}


@operation("suite.open")
def open_(
    suite: Any, context: str, seeds: Seeds, sender: int, receiver: int, encapsulation: str,
    sealed: str,
) -> str:  # fmt: skip
    return code.open_sealed(
        bytes.fromhex(context), peer(suite, seeds, sender), peer(suite, seeds, receiver),
        code.private_keys(suite, channel(seeds, receiver)), bytes.fromhex(encapsulation),
        bytes.fromhex(sealed),
    ).hex()  # fmt: skip


@operation("suite.pad")
def pad_of(context: str, mask_seed: str, dealer: int, holder: int) -> str:
    seed = MaskSeed(bytes.fromhex(mask_seed))
    return code.pad_of(bytes.fromhex(context), seed, dealer, holder).expose().hex()


@operation("suite.seal_pad")
def seal_pad(
    context: str, seeds: Seeds, dealer: int, holder: int, pad: str, drawn: str
) -> dict[str, str]:
    suite: Any = SUITES[1]
    with with_m(bytes.fromhex(drawn)):
        box, commitment = code.seal_pad(
            bytes.fromhex(context), peer(suite, seeds, dealer), peer(suite, seeds, holder),
            Pad(bytes.fromhex(pad)),
        )  # fmt: skip
    return {"box": box.hex(), "commitment": commitment.hex()}


@operation("suite.open_pad")
def open_pad(
    context: str, seeds: Seeds, dealer: int, holder: int, box: str, commitment: str
) -> str:
    suite: Any = SUITES[1]
    pad = code.open_pad(
        bytes.fromhex(context), peer(suite, seeds, dealer), peer(suite, seeds, holder),
        code.private_keys(suite, mask(seeds, holder)), bytes.fromhex(box),
        bytes.fromhex(commitment),
    )  # fmt: skip
    return pad.expose().hex()


@operation("suite.pairwise_seed")
def pairwise_seed(
    suite: Any, context: str, seeds: Seeds, mine: int, theirs: int, pad: str, commitment: str
) -> str:
    seed = code.pairwise_seed(
        bytes.fromhex(context), peer(suite, seeds, mine), peer(suite, seeds, theirs),
        code.private_keys(suite, mask(seeds, mine)), Pad(bytes.fromhex(pad)) if pad else None,
        bytes.fromhex(commitment),
    )  # fmt: skip
    return seed.expose().hex()


# ---------------------------------------------------------------------------- cases


def suite_cases() -> Iterator[Case]:
    for length in (32, 64):
        yield case(
            f"{length} bytes", "suite.derive",
            ikm=shake("ikm", 64).hex(), salt="", info=shake("info", 10).hex(), length=length,
        )  # fmt: skip
    for suite in SUITES:
        for kind in ("channel", "mask"):
            yield case(
                f"{suite}: {kind} keys", "suite.public_keys",
                suite=suite, kind=kind, seed=SEEDS[str(DEALER)][kind],
            )  # fmt: skip
        yield from key_cases(suite)
        yield from bundle_cases(suite)
        yield from pairwise_cases(suite)
    yield from pad_cases()


def advertised(suite: str) -> dict[str, str]:
    keys = peer(suite, SEEDS, DEALER).keys
    return {field: getattr(keys, field).hex() for field in AdvertiseKeys.__slots__}


def changed(data: str, place: int, new: bytes) -> str:
    raw = bytearray(bytes.fromhex(data))
    raw[place : place + len(new)] = new
    return raw.hex()


def key_cases(suite: str) -> Iterator[Case]:
    keys = advertised(suite)

    def one(title: str, **change: str) -> Case:
        return case(
            f"{suite}: {title}", "suite.check_public_keys", suite=suite, keys={**keys, **change}
        )

    yield one("as advertised")
    yield one("low order in the mask key", mask_key=bytes(32).hex())
    yield one("one X25519 key in both places", mask_key=keys["channel_key"])
    yield one("no mask key", mask_key="")
    yield one("a mask key a byte short", mask_key=keys["mask_key"][:-2])
    yield one("a mask key a zero byte longer", mask_key=keys["mask_key"] + "00")
    if suite == "x25519":
        other = advertised(SUITES[1])
        yield one("KEM keys of the other suite", channel_kem=other["channel_kem"])
        yield from point_cases(keys)
        return
    yield one("no KEM key", channel_kem="")
    yield one("a KEM key of another length", mask_kem=keys["mask_kem"][:-2])
    # FIPS 203, section 7.2: the first coefficient, 12 bits, is q = 3329.
    yield one("a coefficient of q", channel_kem=changed(keys["channel_kem"], 0, b"\x01\x0d"))
    yield one("one KEM key in both places", mask_kem=keys["channel_kem"])


def point_cases(keys: dict[str, str]) -> Iterator[Case]:
    high = changed(keys["channel_key"], 31, bytes([bytes.fromhex(keys["channel_key"])[31] | 0x80]))
    points = {f"low order, point {i}": point for i, point in enumerate(_LOW_ORDER)} | {
        "2^255 - 20, of low order and canonical": _FIELD - 1,
        "2^255 - 19, an alias of 0": _FIELD,
        "2^255 - 18, an alias of 1": _FIELD + 1,
        "2^255 - 1": 2**255 - 1,
        "2^256 - 1": 2**256 - 1,
        "2, on the twist, of large order": 2,
        "the high bit is set": int.from_bytes(bytes.fromhex(high), "little"),
    }
    for title, point in points.items():
        given = {**keys, "channel_key": point.to_bytes(32, "little").hex()}
        yield case(title, "suite.check_public_keys", suite="x25519", keys=given)


def bundle_cases(suite: str) -> Iterator[Case]:
    given: dict[str, Any] = {
        "suite": suite, "context": CONTEXT, "seeds": SEEDS, "sender": DEALER, "receiver": HOLDER,
    }  # fmt: skip
    plaintext, drawn = shake("bundle", 130).hex(), shake("m", 32).hex()
    yield case(f"{suite}: a bundle", "suite.seal", **given, plaintext=plaintext, drawn=drawn)
    there = seal(**given, plaintext=plaintext, drawn=drawn)
    back = {**given, "sender": HOLDER, "receiver": DEALER}
    yield case(f"{suite}: the way back", "suite.seal", **back, plaintext=plaintext, drawn=drawn)
    yield case(f"{suite}: it opens", "suite.open", **given, **there)
    other = {**SEEDS, str(DEALER): {kind: shake(f"other {kind}", 32).hex() for kind in SEEDS["3"]}}
    last = len(there["sealed"]) // 2 - 1
    end = len(there["encapsulation"]) // 2 - 1
    for title, change in {
        "of another sender": {"seeds": other},
        "from another index": {"sender": 4, "seeds": {**SEEDS, "4": SEEDS["3"]}},
        "in the other direction": {"sender": HOLDER, "receiver": DEALER},
        "in another round": {"context": shake("other context", 32).hex()},
        "with another first byte": {"sealed": changed(there["sealed"], 0, b"\0")},
        "with another tag": {"sealed": changed(there["sealed"], last, b"\0")},
        "without a tag": {"sealed": ""},
        "with another encapsulation": {
            "encapsulation": changed(there["encapsulation"], end, b"\0")
        },
        "without an encapsulation": {"encapsulation": ""},
    }.items():
        yield case(f"{suite}: {title}", "suite.open", **{**given, **there, **change})


def pairwise_cases(suite: str) -> Iterator[Case]:
    given: dict[str, Any] = {
        "suite": suite, "context": CONTEXT, "seeds": SEEDS, "mine": DEALER, "theirs": HOLDER,
        "pad": "", "commitment": "",
    }  # fmt: skip
    if suite != "x25519":
        given |= {"pad": shake("pad", 32).hex(), "commitment": shake("commitment", 32).hex()}
    yield case(f"{suite}: from one end", "suite.pairwise_seed", **given)
    yield case(
        f"{suite}: from the other end", "suite.pairwise_seed",
        **{**given, "mine": HOLDER, "theirs": DEALER},
    )  # fmt: skip


def pad_cases() -> Iterator[Case]:
    mask_seed = SEEDS[str(DEALER)]["mask"]
    yield case(
        "a pad", "suite.pad", context=CONTEXT, mask_seed=mask_seed, dealer=DEALER, holder=HOLDER
    )
    given: dict[str, Any] = {
        "context": CONTEXT, "seeds": SEEDS, "dealer": DEALER, "holder": HOLDER,
    }  # fmt: skip
    pad = pad_of(CONTEXT, mask_seed, DEALER, HOLDER)
    drawn = shake("m of a pad", 32).hex()
    yield case("a sealed pad", "suite.seal_pad", **given, pad=pad, drawn=drawn)
    sealed = seal_pad(**given, pad=pad, drawn=drawn)
    other = seal_pad(**given, pad=shake("other pad", 32).hex(), drawn=drawn)
    yield case("it opens", "suite.open_pad", **given, **sealed)
    for title, change in {
        "another commitment": {"commitment": bytes(32).hex()},
        "the box of another pad": {"box": other["box"]},
        "a changed ciphertext": {"box": changed(sealed["box"], 0, b"\0\0")},
        "a changed tag": {"box": changed(sealed["box"], 1135, b"\0")},
        "a byte too few": {"box": sealed["box"][:-2]},
        "no box": {"box": ""},
        "from another index": {"dealer": 4, "seeds": {**SEEDS, "4": SEEDS["3"]}},
    }.items():
        yield case(title, "suite.open_pad", **{**given, **sealed, **change})
