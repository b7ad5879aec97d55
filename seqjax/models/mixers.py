"""The mixers a pattern can name, built from a config.

| name | paper | state of a layer, numbers a row | cost a token and layer |
|---|---|---|---|
| retnet | arXiv 2307.08621 | H*K*V, V = retnet_value_expand * K | O(H*K*V) |
| lightning | arXiv 2401.04658 | H*K*K | O(H*K*K) |
| gla | arXiv 2312.06635, scalar gate | H*K*K + 3*(W-1)*H*K | O(H*K*K) |
| mamba2 | arXiv 2405.21060 | H*P*N + (W-1)*(H*P + 2*G*N) | O(H*P*N) |
| attention | arXiv 1706.03762 | 2*Hk*K a token, up to window-1 | O(T*H*K) |

Beside that every layer pays its projections, O(width^2) a token.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from seqjax import layers
from seqjax.models import config as config_lib

Mixer = (
    layers.RetNet
    | layers.Lightning
    | layers.SimpleGLA
    | layers.Mamba2
    | layers.Attention
)


def residual_scale(config: config_lib.LanguageModelConfig) -> float:
    """Factor on what each layer first adds to the residual stream.

    There are two additions a layer, so that their sum starts at unit size
    whatever the depth (as GPT-2 and Mamba).
    """
    return 1 / math.sqrt(2 * config.depth)


def build(
    config: config_lib.LanguageModelConfig, kind: str, **module: Any
) -> Mixer:
    """The mixer that `kind` names.

    Args:
      config: a valid config.
      kind: one of `config.PATTERN_NAMES`.
      **module: `name` or `parent`, as every Flax module takes them.
    """
    common = {
        "eps": config.norm_eps,
        "dtype": jnp.dtype(config.dtype),
        "residual_scale": residual_scale(config),
        **module,
    }
    heads = {"heads": config.heads, "head_dim": config.resolved_head_dim}
    match kind:
        case "retnet":
            if config.rotary_base is None:
                raise ValueError("rotary_base must be a number for retnet")
            return layers.RetNet(
                **heads,
                value_expand=config.retnet_value_expand,
                rotary_base=config.rotary_base,
                **common,
            )
        case "lightning":
            return layers.Lightning(
                **heads, slopes=config.slopes, layers=config.depth, **common
            )
        case "gla":
            return layers.SimpleGLA(
                **heads,
                conv_width=config.conv_width,
                gate_normalizer=config.gate_normalizer,
                **common,
            )
        case "mamba2":
            inner = config.mamba2_expand * config.width
            return layers.Mamba2(
                heads=inner // config.mamba2_head_dim,
                head_dim=config.mamba2_head_dim,
                state_size=config.mamba2_state_size,
                groups=config.mamba2_groups,
                conv_width=config.conv_width,
                **common,
            )
        case "attention":
            return layers.Attention(
                **heads,
                key_value_heads=config.resolved_key_value_heads,
                window=config.window,
                rotary_base=config.rotary_base,
                output_gate=config.output_gate,
                qk_norm=config.qk_norm,
                **common,
            )
    raise ValueError(
        f"kind must be one of {config_lib.PATTERN_NAMES}, got {kind!r}"
    )


def mix(
    mixer: Mixer,
    x: jax.Array,
    state: Any,
    segment_ids: jax.Array | None,
    positions: jax.Array,
    log_decay: jax.Array | None,
) -> tuple[jax.Array, Any]:
    """Calls a mixer with those of the arguments that it has a use for."""
    match mixer:
        case layers.Lightning():
            return mixer(x, state, segment_ids, log_decay)
        case layers.RetNet():
            return mixer(x, state, segment_ids, positions)
        case layers.Attention() if mixer.rotary_base is not None:
            return mixer(x, state, segment_ids, positions)
    return mixer(x, state, segment_ids)
