"""The signed layout: which tensors a flat vector consists of, in which order.

A protected vector is one-dimensional. Every party must agree on how named tensors
map into it, so the layout is part of the round plan and so of the context that enters
every signature and key derivation (protocol.md, "Before a round"). Nothing here touches
tensor data; flattening lives beside the framework that owns the tensors.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from secagg.canonical import Reader, Writer
from secagg.errors import ConfigError

_DTYPES = frozenset({"float16", "bfloat16", "float32", "float64"})
_MAX_TENSORS = 1 << 16
_MAX_RANK = 8


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and dtype of one tensor (the dtype in which its owner stores it)."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("layout: a tensor has an empty name; give every tensor its name")
        if self.dtype not in _DTYPES:
            raise ConfigError(
                f"layout: {self.name}: dtype {self.dtype!r} is none of {sorted(_DTYPES)}"
            )
        if len(self.shape) > _MAX_RANK or any(not 0 < side < 1 << 40 for side in self.shape):
            raise ConfigError(
                f"layout: {self.name}: shape {self.shape} needs positive sides and at most "
                f"{_MAX_RANK} of them"
            )

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """An ordered tuple of tensors with distinct names; coordinates are row-major, back to back."""

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.tensors) <= _MAX_TENSORS:
            raise ConfigError(
                f"layout: {len(self.tensors)} tensors; 1 to {_MAX_TENSORS} are possible"
            )
        seen: set[str] = set()
        for spec in self.tensors:
            if spec.name in seen:
                raise ConfigError(f"layout: the name {spec.name!r} stands twice")
            seen.add(spec.name)

    @property
    def size(self) -> int:
        """Length d of the flat vector."""
        return sum(spec.size for spec in self.tensors)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes (32 bytes)."""
        writer = Writer()
        self.write(writer)
        return hashlib.sha256(writer.finish()).digest()

    def write(self, writer: Writer) -> None:
        """Append the canonical form."""
        writer.tag("layout").u32(len(self.tensors))
        for spec in self.tensors:
            writer.text(spec.name).text(spec.dtype).u32(len(spec.shape))
            for side in spec.shape:
                writer.u64(side)

    @classmethod
    def read(cls, reader: Reader) -> Layout:
        """Read the canonical form; refuses whatever `write` would not have written."""
        reader.tag("layout")
        return cls(tuple(_read_spec(reader) for _ in range(reader.count(_MAX_TENSORS))))

    @classmethod
    def flat(cls, length: int, name: str = "vector") -> Layout:
        """One float32 tensor of `length` coordinates, for users with a ready flat vector."""
        return cls((TensorSpec(name, (length,)),))


def _read_spec(reader: Reader) -> TensorSpec:
    name, dtype = reader.text(), reader.text()
    return TensorSpec(name, tuple(reader.u64() for _ in range(reader.count(_MAX_RANK))), dtype)


def explain_difference(
    ours: Layout, theirs: Layout, places: tuple[str, str] = ("here", "there")
) -> str:
    """Name the tensors in which two layouts differ, for an operator who has to mend one of them.

    `places`: how the message calls what has the one layout and what has the other.
    """
    mine, other = ({s.name: s for s in layout.tensors} for layout in (ours, theirs))
    missing = sorted(mine.keys() - other.keys())
    extra = sorted(other.keys() - mine.keys())
    changed = sorted(n for n in mine.keys() & other.keys() if mine[n] != other[n])
    parts = [f"missing {missing[:5]}"] * bool(missing) + [f"unexpected {extra[:5]}"] * bool(extra)
    parts += [
        f"{n}: {mine[n].shape} {mine[n].dtype} {places[0]}, "
        f"{other[n].shape} {other[n].dtype} {places[1]}"
        for n in changed[:5]
    ]
    return "; ".join(parts) or "the same tensors in another order"
