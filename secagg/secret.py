"""Secret values that cannot leak by accident.

A secret prints as its kind and length, compares in constant time with its own kind only, has no
hash, and refuses pickle, copy, `bytes()`, numpy and JSON. `.expose()` is the only way out; a test
over the syntax tree lists the modules that may call it. Python cannot promise to wipe memory:
`bytes` are immutable and the collector may copy nothing but frees late. We drop references early
and claim no more than that.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import ClassVar, NoReturn, Self

Randomness = Callable[[int], bytes]
"""`randomness(n)` returns n bytes from a CSPRNG; `os.urandom` everywhere but in tests."""


class SecretBytes:
    """Bytes of one kind of secret. Subclass it for each kind; `LENGTH` fixes the size."""

    __slots__ = ("_value",)
    LENGTH: ClassVar[int | None] = None

    def __init__(self, value: bytes) -> None:
        if self.LENGTH is not None and len(value) != self.LENGTH:
            raise ValueError(f"{type(self).__name__} has {self.LENGTH} bytes, not {len(value)}")
        self._value = bytes(value)

    @classmethod
    def draw(cls, randomness: Randomness) -> Self:
        """A fresh secret of `LENGTH` bytes."""
        if cls.LENGTH is None:
            raise TypeError(f"{cls.__name__} has no fixed length to draw")
        return cls(randomness(cls.LENGTH))

    def expose(self) -> bytes:
        """The bytes themselves. Every call site is a place to review."""
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, {len(self._value)} bytes, redacted>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} is secret: it cannot be copied, pickled or converted"
        )

    __bytes__ = __iter__ = __array__ = __getitem__ = _refuse
    __copy__ = __deepcopy__ = __reduce__ = __reduce_ex__ = __getstate__ = _refuse
    __buffer__ = _refuse


class Seed(SecretBytes):
    """32 bytes from which keys are derived."""

    __slots__ = ()
    LENGTH = 32


class SelfMaskSeed(Seed):
    """Expands to what hides a participant's own input: its self mask (b_i of scheme `masking`), or
    its one-time key and errors (scheme `ckks`)."""

    __slots__ = ()


class MaskSeed(Seed):
    """Seed of the mask key pair; rebuilt from shares if its participant drops out."""

    __slots__ = ()


class PairwiseSeed(Seed):
    """s_ij: what two participants share and the sum cancels."""

    __slots__ = ()


class Pad(Seed):
    """What one participant of a pair draws for both: the hybrid part of their pairwise seed."""

    __slots__ = ()


class ChannelSeed(Seed):
    """Private half of the channel key; seals share bundles and is never rebuilt."""

    __slots__ = ()


class RoundingSeed(Seed):
    """Seed of stochastic rounding (and of a scheme's errors) for one upload."""

    __slots__ = ()


class SealKey(Seed):
    """AES-256 key that seals exported state."""

    __slots__ = ()


class StreamKey(Seed):
    """AES-256 key of one keystream: one context, one purpose, one vector."""

    __slots__ = ()


class Share(SecretBytes):
    """One Shamir share of a secret, of the length that its scheme gives it."""

    __slots__ = ()


class SeedShare(Share):
    """A share of a seed, big-endian, below p = 2^256 + 297 (33 bytes)."""

    __slots__ = ()
    LENGTH = 33


class SelfMaskShare(SeedShare):
    """A share of b_i."""

    __slots__ = ()


class MaskKeyShare(SeedShare):
    """A share of a mask seed."""

    __slots__ = ()


class KeyShare(Share):
    """A share of a one-time CKKS key and of what blinds its check, packed (`ckks/sharing.py`)."""

    __slots__ = ()
