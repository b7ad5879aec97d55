"""The delta family's benchmark inputs, and its rules as plain scans.

    S' = exp(g_t) S_{t-1}
    S_t = S' + k_t (beta_t (v_t - S'^T k_t))^T          o_t = scale S_t^T q_t

One step a token, differentiated by JAX, nothing checkpointed, as all of
`baseline_scan`.
"""

import jax
import jax.numpy as jnp


def delta_inputs(key, sizes, dtype):
    """q, k of norm 1, v, and beta in (0, 1)."""
    return _delta_inputs(key, sizes, dtype)


def gated_inputs(key, sizes, dtype):
    """The same and log_decay [B,T,H]."""
    gate = _gate(key, sizes, ())
    return *_delta_inputs(key, sizes, dtype), gate


def channel_inputs(key, sizes, dtype):
    """The same and log_decay [B,T,H,K]."""
    gate = _gate(key, sizes, (sizes.key_dim,))
    return *_delta_inputs(key, sizes, dtype), gate


def product_inputs(key, sizes, dtype):
    """Two steps a token: k, v, beta [B,2T,...]."""
    longer = sizes._replace(length=2 * sizes.length)
    q, k, v, beta = _delta_inputs(key, longer, dtype)
    return q[:, ::2], k, v, beta, _gate(key, sizes, ())


def comba_inputs(key, sizes, dtype):
    """q, k, v, p, beta, log_decay; p is k, shortened."""
    q, k, v, beta, gate = gated_inputs(key, sizes, dtype)
    return q, k, v, (0.7 * k).astype(dtype), beta, gate


def dplr_inputs(key, sizes, dtype):
    """q, k, v, a, b, log_decay as RWKV-7 makes them."""
    q, k, v, beta, gate = channel_inputs(key, sizes, dtype)
    b = (beta[..., None] * k).astype(dtype)
    return q, k, v, -k, b, gate


def channel_strength_inputs(key, sizes, dtype):
    """q, k, v, b [B,T,H,K], w [B,T,H,V], log_decay [B,T,H,K]."""
    q, k, v, _, gate = channel_inputs(key, sizes, dtype)
    keys = jax.random.split(jax.random.fold_in(key, 2))
    b, w = (
        jax.nn.sigmoid(jax.random.normal(key, x.shape)).astype(dtype)
        for key, x in zip(keys, (k, v), strict=True)
    )
    return q, k, v, b, w, gate


def _delta_inputs(key, sizes, dtype):
    shape = (sizes.batch, sizes.length, sizes.heads)
    keys = jax.random.split(key, 4)
    q = jax.random.normal(keys[0], (*shape, sizes.key_dim))
    k = jax.random.normal(keys[1], (*shape, sizes.key_dim))
    k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    v = jax.random.normal(keys[2], (*shape, sizes.value_dim))
    beta = jax.nn.sigmoid(jax.random.normal(keys[3], shape))
    return q.astype(dtype), k.astype(dtype), v.astype(dtype), beta


def _gate(key, sizes, channels):
    shape = (sizes.batch, sizes.length, sizes.heads, *channels)
    gate_key = jax.random.fold_in(key, 1)
    return jax.nn.log_sigmoid(jax.random.normal(gate_key, shape) + 3)


def _read(state, key):
    return jnp.einsum("bhk,bhkv->bhv", key, state)


def _decay(state, log):
    """Gates [B,H] or [B,H,K] on a state [B,H,K,V]."""
    return jnp.exp(log)[(..., *(None,) * (4 - log.ndim))] * state


def _write(state, key, value):
    return state + key[..., :, None] * value[..., None, :]


def _scan(step, v, q, *inputs):
    """Scans over time, the inputs' second axis; y in the dtype of v."""
    time_first = [
        jnp.moveaxis(x.astype(jnp.float32), 1, 0) for x in (q, *inputs)
    ]
    batch, _, heads, key_dim = q.shape
    start = jnp.zeros((batch, heads, key_dim, v.shape[-1]), jnp.float32)
    _, y = jax.lax.scan(step, start, tuple(time_first))
    return jnp.moveaxis(y, 0, 1).astype(v.dtype)


def delta_rule(q, k, v, beta, log_decay=None):
    """q, k [B,T,H,K], v [B,T,H,V], beta [B,T,H], log_decay [B,T,H(,K)]."""
    scale = q.shape[-1] ** -0.5

    def step(state, token):
        q, k, v, beta, *gate = token
        if gate:
            state = _decay(state, gate[0])
        state = _write(state, k, beta[..., None] * (v - _read(state, k)))
        return state, scale * _read(state, q)

    gate = () if log_decay is None else (log_decay,)
    return _scan(step, v, q, k, v, beta, *gate)


def gated_delta_product(q, k, v, beta, log_decay):
    """Two steps a token: k, v, beta [B,2T,...], q and log_decay [B,T,...]."""
    scale = q.shape[-1] ** -0.5
    pairs = [x.reshape(x.shape[0], -1, 2, *x.shape[2:]) for x in (k, v, beta)]

    def step(state, token):
        q, k, v, beta, gate = token
        state = _decay(state, gate)
        for i in range(2):
            write = v[:, i] - _read(state, k[:, i])
            state = _write(state, k[:, i], beta[:, i, :, None] * write)
        return state, scale * _read(state, q)

    return _scan(step, v, q, *pairs, log_decay)


def comba(q, k, v, p, beta, log_decay):
    """Reads with p [B,T,H,K] before the decay, the rest as delta_rule."""
    scale = q.shape[-1] ** -0.5

    def step(state, token):
        q, k, v, p, beta, gate = token
        write = beta[..., None] * (v - _read(state, p))
        state = _write(_decay(state, gate), k, write)
        return state, scale * _read(state, q)

    return _scan(step, v, q, k, v, p, beta, log_decay)


def gated_delta_rule_2(q, k, v, b, w, log_decay):
    """Erases with b [B,T,H,K], writes with w [B,T,H,V]."""
    scale = q.shape[-1] ** -0.5

    def step(state, token):
        q, k, v, b, w, gate = token
        state = _decay(state, gate)
        state = _write(state, k, w * v - _read(state, b * k))
        return state, scale * _read(state, q)

    return _scan(step, v, q, k, v, b, w, log_decay)


def dplr_delta_rule(q, k, v, a, b, log_decay):
    """S = (diag(exp g) + b a^T) S + k v^T, unscaled."""

    def step(state, token):
        q, k, v, a, b, gate = token
        read = _read(state, a)
        state = _write(_decay(state, gate), b, read)
        state = _write(state, k, v)
        return state, _read(state, q)

    return _scan(step, v, q, k, v, a, b, log_decay)
