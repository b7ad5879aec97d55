"""Decay tables of lightning attention: log_decay = -slope(head, layer).

Three incompatible tables are in public use, so the choice has a name.  With
head h = 0..H-1 of layer l = 0..L-1:

- "minimax" (MiniMax-01): 2^(-8(h+1)/H) * (1 - l/(L - 1 + 1e-5) + 1e-5).
- "tnl_code" (released TransNormerLLM): alibi(h, H) * (1 - l/(L - 1) + 1e-5),
  where alibi is 2^(-8(h+1)/H) for H a power of two and else its interleave.
- "tnl_paper" (arXiv 2307.14995): (8 h / H) * (1 - l/L).

Under the first two the last layer practically does not decay; under the third
the first head never does.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import ops

Slopes = Literal["minimax", "tnl_code", "tnl_paper"]
SLOPES = get_args(Slopes)


def check(slopes: str, layers: int, path: str = "slopes") -> None:
    """Raises ValueError for an unknown table, or one that L layers lack."""
    if slopes not in SLOPES:
        raise ValueError(f"{path} must be one of {SLOPES}, got {slopes!r}")
    if slopes == "tnl_code" and layers < 2:
        raise ValueError(
            f'{path}="tnl_code" divides by layers - 1 and needs at least 2 '
            f'layers, got {layers}; use "minimax", the same but for 1e-5'
        )


def log_decay(slopes: str, heads: int, layers: int) -> jax.Array:
    """Log decays of every layer of a model.

    Args:
      slopes: name of the table.
      heads: H.
      layers: L, all layers of the model.

    Returns:
      float32 [L, H], at most 0.

    Raises:
      ValueError: unknown table, or "tnl_code" with one layer.
    """
    check(slopes, layers)
    layer = np.arange(layers)[:, None]
    if slopes == "minimax":
        geometric = 2.0 ** (-8.0 * np.arange(1, heads + 1) / heads)
        table = geometric * (1 - layer / (layers - 1 + 1e-5) + 1e-5)
    elif slopes == "tnl_code":
        table = ops.alibi_slopes(heads)[None] * (
            1 - layer / (layers - 1) + 1e-5
        )
    else:
        table = 8.0 * np.arange(heads) / heads * (1 - layer / layers)
    return jnp.asarray(-table, jnp.float32)
