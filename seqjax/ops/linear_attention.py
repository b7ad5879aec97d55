"""Linear attention.

Katharopoulos et al., "Transformers are RNNs" (arXiv 2006.16236):

    S_t = S_{t-1} + k_t v_t^T,   z_t = z_{t-1} + k_t
    o_t = scale S_t^T q_t        (normalised: / (scale q_t . z_t + 1e-10))

Time O(T (C + K) V) a head in chunk form, state K V floats (and K for z).
Weak in that nothing is ever forgotten; without positive features the
normaliser may cross zero.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from seqjax import recurrence
from seqjax.ops import _additive
from seqjax.ops import _contract

_OP = "linear_attention"
_EPSILON = 1e-10
_additive.register(_OP)


def linear_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    normalize: bool = False,
    feature_map: Callable[[jax.Array], jax.Array] | None = None,
    scale: float | None = None,
    initial_state=None,
    segment_ids: jax.Array | None = None,
    axis_name: str | None = None,
    exchange: str | None = None,
    form: str | None = None,
    chunk_size: int | None = None,
    implementation=None,
    state_dtype=None,
):
    """Attention without the softmax: a sum of outer products as the state.

    Args:
      q: [B, T, Hk, K] float16, bfloat16, float32 or (all inputs) float64.
      k: [B, T, Hk, K].
      v: [B, T, H, V]; H a multiple of Hk, value head j reads key head
        j // (H / Hk).
      normalize: divide by scale q . (sum of k) + 1e-10; q and k should then be
        positive features.
      feature_map: function applied to q and k, [..., K] -> [..., F]; the state
        and the default scale then have F for K.
      scale: factor of q, default K**-0.5.
      initial_state: [B, H, K, V], or ([B, H, K, V], [B, H, K]) if normalised.
      segment_ids: int32 [B, T], non-decreasing over real tokens, -1 padding.
      axis_name: mesh axis along which T is sharded, inside `jax.shard_map`.
      exchange: "all_gather", "prefix_scan", "ring" or None for the default,
        with `axis_name` only.
      form: "recurrent", "chunk", "parallel", or None: recurrent up to T = 4,
        else chunk.  Chunk is differentiable once, in reverse mode.
      chunk_size: tokens a chunk, default 64; implies form="chunk".
      implementation: "triton" (chunk on NVIDIA GPUs; K and V up to 256, no
        float64), "xla", a list of names, or None for the first that can run.
      state_dtype: of the returned state, default float32 (float64).

    Returns:
      (y [B, T, H, V] in the dtype of v, state shaped as `initial_state`).

    Raises:
      ValueError: a shape, dtype or option that does not fit.
    """
    if not isinstance(normalize, bool):
        raise ValueError(
            f"{_OP}: normalize must be True or False, got {normalize!r}"
        )
    if feature_map is not None:
        if not callable(feature_map):
            raise ValueError(
                f"{_OP}: feature_map must be a function of an array or None,"
                f" got {feature_map!r}"
            )
        if segment_ids is not None and q.ndim == k.ndim == 4:
            # Nothing at padding may reach the gradient of the map.
            q, k = (recurrence.mask_padding(segment_ids, x) for x in (q, k))
        q, k = feature_map(q), feature_map(k)
    state, normalizer = _split_state(initial_state, normalize)
    shapes = _additive.check_heads(_OP, q, k, v, state, segment_ids)
    if normalizer is not None:
        shapes.bind("initial_state[1]", normalizer, "B H K")
    dtype = _contract.accumulation_dtype(
        _OP, q=q, k=k, v=v, initial_state=state, normalizer=normalizer
    )
    values = v
    if normalize:
        # The normaliser is one more value channel, constantly 1.
        values = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
        if state is not None:
            state = jnp.concatenate(
                [state.astype(dtype), normalizer.astype(dtype)[..., None]], -1
            )
    y, state = _additive.additive(
        _OP,
        q,
        k,
        values,
        None,
        scale=_additive.check_scale(_OP, scale, shapes["K"]),
        initial=state,
        options=_contract.Options(
            segment_ids, axis_name, exchange, form, chunk_size, implementation
        ),
        dtype=dtype,
    )
    state_dtype = _contract.check_state_dtype(_OP, state_dtype, dtype)
    state = state.astype(state_dtype)
    if normalize:
        y = y[..., :-1] / (y[..., -1:] + _EPSILON)
        # Padding divides 0 by 0 + epsilon; its cotangent must not be scaled up.
        y = recurrence.mask_padding(segment_ids, y)
        state = (state[..., :-1], state[..., -1])
    return y.astype(v.dtype), state


def _split_state(initial_state, normalize):
    if initial_state is None:
        return None, None
    if not normalize:
        if isinstance(initial_state, tuple):
            raise ValueError(
                f"{_OP}: initial_state must be one array [B, H, K, V] with"
                " normalize=False, got a tuple"
            )
        return initial_state, None
    if not isinstance(initial_state, tuple) or len(initial_state) != 2:
        raise ValueError(
            f"{_OP}: initial_state with normalize=True must be a tuple"
            f" (kv [B, H, K, V], k [B, H, K]), got {type(initial_state)}"
        )
    return initial_state
