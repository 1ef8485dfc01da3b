"""Which layers belong to which block: contiguous, in order, as even as can be.

Not here: which noise levels belong to a block (noise.py).
"""

from __future__ import annotations

from secagg.errors import ConfigError


def partition(layers: int, blocks: int) -> tuple[tuple[int, ...], ...]:
    """Layer numbers by block; where they do not divide evenly, earlier blocks have one more.

    Raises: ConfigError unless every block gets a layer.
    """
    if not 1 <= blocks <= layers:
        raise ConfigError(f"{blocks} blocks of {layers} layers: 1 to {layers} blocks are possible")
    each, more = divmod(layers, blocks)
    starts = [b * each + min(b, more) for b in range(blocks + 1)]
    return tuple(tuple(range(starts[b], starts[b + 1])) for b in range(blocks))
