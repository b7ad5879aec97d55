"""Each mixer layer against a token-by-token numpy account of its paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import layers
from seqjax import models
from seqjax.layers import mixer

B, T, D, H, K = 2, 7, 12, 2, 4


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _silu(x):
    return x * _sigmoid(x)


def _rms(x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)


def _heads(x, kernel):
    return np.einsum("btd,dhk->bthk", x, kernel)


def _out(o, kernel):
    return np.einsum("bthv,hvd->btd", o, kernel)


def _rotate(x):
    half = x.shape[-1] // 2
    angle = np.arange(T)[:, None] * 10000.0 ** (-np.arange(half) / half)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _conv(x, weight, bias=0.0):
    past = np.pad(x, ((0, 0), (len(weight) - 1, 0), (0, 0)))
    taps = [past[:, w : w + T] * weight[w] for w in range(len(weight))]
    return _silu(sum(taps) + bias)


def _recur(q, k, v, log_decay, scale):
    """o_t = scale * S_t^T q_t with log_decay [B, T, H]."""
    state = np.zeros((B, q.shape[2], q.shape[3], v.shape[3]))
    out = []
    for t in range(T):
        state = state * np.exp(log_decay[:, t])[..., None, None]
        state = state + np.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        out.append(scale * np.einsum("bhk,bhkv->bhv", q[:, t], state))
    return np.stack(out, 1)


def _retnet(p, x):
    q = _rotate(_heads(x, p["query"]["kernel"]))
    k = _rotate(_heads(x, p["key"]["kernel"]))
    v = _heads(x, p["value"]["kernel"])
    decay = np.log(1 - 2.0 ** (-5 - np.arange(H)))
    o = _recur(q, k, v, np.broadcast_to(decay, (B, T, H)), K**-0.5)
    o = _rms(o) * p["norm"]["scale"] * _silu(_heads(x, p["gate"]["kernel"]))
    return _out(o, p["out"]["kernel"])


def _lightning(p, x):
    q, k, v = (
        _silu(_heads(x, p[name]["kernel"]))
        for name in ("query", "key", "value")
    )
    slope = 2.0 ** (-4.0 * np.arange(1, H + 1)) * (1 - 1 / (3 + 1e-5) + 1e-5)
    o = _recur(q, k, v, np.broadcast_to(-slope, (B, T, H)), 1.0)
    low = x @ p["gate_in"]["kernel"]
    gate = _sigmoid(_heads(low, p["gate"]["kernel"]))
    o = _rms(o.reshape(B, T, -1)) * p["norm"]["scale"]
    return _out(o.reshape(B, T, H, K) * gate, p["out"]["kernel"])


def _simple_gla(p, x):
    qkv = _conv(x @ p["qkv"]["kernel"], p["conv"]["weight"])
    q, k, v = (part.reshape(B, T, H, K) for part in np.split(qkv, 3, -1))
    gate = x @ p["decay"]["kernel"] + p["decay"]["bias"]
    o = _recur(q, k, v, np.log(_sigmoid(gate)) / 16, K**-0.5)
    o = _rms(o) * p["norm"]["scale"] * _silu(_heads(x, p["gate"]["kernel"]))
    return _out(o, p["out"]["kernel"])


def _mamba2(p, x, norm="gate_first"):
    inner, shared = 4 * 4, 2 * 3
    zxbc = x @ p["in"]["kernel"] + p["in"].get("bias", 0)
    z, xbc = zxbc[..., :inner], zxbc[..., inner:]
    xbc = _conv(xbc, p["conv"]["weight"], p["conv"].get("bias", 0))
    u = xbc[..., :inner].reshape(B, T, 4, 4)
    b = xbc[..., inner : inner + shared].reshape(B, T, 2, 3).repeat(2, 2)
    c = xbc[..., inner + shared :].reshape(B, T, 2, 3).repeat(2, 2)
    dt = np.log1p(np.exp(x @ p["dt"]["kernel"] + p["dt"]["bias"]))
    if norm != "gate_first":
        dt = np.clip(dt, 0.5, 1.5)
    y = _recur(c, b, dt[..., None] * u, -dt * np.exp(p["A_log"]), 1.0)
    y = y + p["D"][:, None] * u
    y = y.reshape(B, T, inner)
    if norm == "gate_first":
        y = _rms((y * _silu(z)).reshape(B, T, 2, -1)).reshape(B, T, inner)
        return y * p["norm"]["scale"] @ p["out"]["kernel"]
    if norm == "norm_first":
        y = _rms(y) * p["norm"]["scale"]
    return y * _silu(z) @ p["out"]["kernel"] + p["out"]["bias"]


def _mamba2_variant(norm, **options):
    layer = layers.Mamba2(
        4, 4, 3, 2, use_bias=True, norm=norm, step_range=(0.5, 1.5), **options
    )
    return layer, functools.partial(_mamba2, norm=norm)


def _attention(gate, p, x):
    q = _heads(x, p["query"]["kernel"])
    k = _heads(x, p["key"]["kernel"])
    q = _rotate(_rms(q) * p["query_norm"]["scale"])
    k = _rotate(_rms(k) * p["key_norm"]["scale"]).repeat(2, 2)
    v = _heads(x, p["value"]["kernel"]).repeat(2, 2)
    logits = np.einsum("bthk,bshk->bhts", q, k) * K**-0.5
    distance = np.arange(T)[:, None] - np.arange(T)
    logits = np.where((distance >= 0) & (distance < 3), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    o = np.einsum("bhts,bshv->bthv", weights, v)
    if gate != "none":
        o = o * _sigmoid(_heads(x, p["gate"]["kernel"]))
    return _out(o, p["out"]["kernel"])


def _softmax(gate):
    layer = layers.Attention(
        2 * H, K, H, window=3, output_gate=gate, qk_norm=True
    )
    return layer, functools.partial(_attention, gate)


CASES = {
    "retnet": (layers.RetNet(H, K), _retnet),
    "lightning": (
        layers.Lightning(H, K, layer=1, layers=4, gate_rank=3),
        _lightning,
    ),
    "simple_gla": (layers.SimpleGLA(H, K), _simple_gla),
    "mamba2": (layers.Mamba2(4, 4, 3, groups=2), _mamba2),
    "mamba2_norm_first": _mamba2_variant("norm_first", norm_groups=1),
    "mamba2_no_norm": _mamba2_variant("none", conv_bias=False),
    "attention": _softmax("none"),
    "headwise": _softmax("headwise"),
    "elementwise": _softmax("elementwise"),
}


def _noisy(params, key):
    """Random values on top, so that scales and biases of 1 and 0 matter."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten(
        [
            leaf + 0.3 * jax.random.normal(k, leaf.shape)
            for leaf, k in zip(leaves, keys, strict=True)
        ]
    )


@pytest.mark.parametrize("name", CASES)
def test_equals_numpy(name):
    layer, oracle = CASES[name]
    x = jax.random.normal(jax.random.key(0), (B, T, D))
    params = jax.jit(layer.init)(jax.random.key(1), x)
    params = _noisy(params, jax.random.key(2))
    y, state = jax.jit(layer.apply)(params, x)
    params64 = jax.tree.map(np.float64, params["params"])
    expected = oracle(params64, np.float64(x))
    scale = np.sqrt((expected**2).mean())
    np.testing.assert_allclose(y / scale, expected / scale, atol=2e-5, rtol=0)
    first = jax.eval_shape(lambda: layer.init_state(B, T))
    assert jax.tree.map(lambda s: (s.shape, s.dtype), first) == jax.tree.map(
        lambda s: (s.shape, s.dtype), state
    )


def _over_time(layer, params, extra):
    """A sharded call of a layer whose axis_name is "seq", on four devices."""
    mesh = jax.make_mesh(
        (4,), ("seq",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    whole, time = (
        jax.sharding.PartitionSpec(),
        jax.sharding.PartitionSpec(None, "seq"),
    )
    return jax.shard_map(
        lambda params, x, *extra: layer.apply(params, x, None, *extra)[0],
        mesh=mesh,
        in_specs=(whole, time) + (time,) * len(extra),
        out_specs=time,
    )


def test_sharded_over_time_equals_whole():
    layer = CASES["simple_gla"][0]
    x = jax.random.normal(jax.random.key(0), (B, 16, D))
    ids = jnp.array([[0] * 5 + [1] * 9 + [-1] * 2, [3] * 10 + [4] * 6])
    params = jax.jit(layer.init)(jax.random.key(1), x[:, :1])
    sharded = _over_time(layer.clone(axis_name="seq"), params, (ids,))
    expected, _ = jax.jit(layer.apply)(params, x, None, ids)
    np.testing.assert_allclose(
        jax.jit(sharded)(params, x, ids), expected, atol=2e-5, rtol=0
    )


NAMES = set(models.LanguageModelConfig.pattern_names())


# Softmax attention refuses axis_name itself; what has it inside is made of
# parts that are tested by themselves.
@pytest.mark.parametrize(
    "name", sorted(NAMES - {"attention", "mamba2_attention"})
)
def test_axis_name_reaches_every_operator(name):
    """Of the mixers as a model makes them; nothing is computed."""
    options = models.LanguageModelConfig().options(name)
    host = mixer.Host(64, 2, 2, axis_name="seq")
    layer = options.build(host)
    x = jnp.zeros((B, 16, 64))
    ids = jnp.zeros((B, 16), jnp.int32)
    extra = (ids, ids) if "positions" in options.needs else (ids,)
    params = jax.eval_shape(
        layer.clone(axis_name=None).init, jax.random.key(0), x
    )
    traced = jax.make_jaxpr(_over_time(layer, params, extra))(params, x, *extra)
    assert "all_gather" in str(traced)


def test_initial_values_are_those_of_the_papers():
    x = jnp.zeros((1, 1, 256))
    mamba = jax.jit(layers.Mamba2(512, 1).init)(jax.random.key(0), x)
    mamba = mamba["params"]
    assert 1 <= np.exp(mamba["A_log"]).min() < 1.5
    assert 15 < np.exp(mamba["A_log"]).max() <= 16
    step = np.log1p(np.exp(np.float64(mamba["dt"]["bias"])))
    assert 1e-3 * 0.999 < step.min() < 2e-3 and 0.05 < step.max() < 0.1001
    # Log-uniform: the median is the geometric mean of the bounds.
    assert 0.007 < np.median(step) < 0.014
    np.testing.assert_array_equal(mamba["D"], 1)
    assert np.abs(mamba["in"]["kernel"]).max() <= 1 / 16
    retnet = jax.jit(layers.RetNet(4, 64).init)(jax.random.key(0), x)
    retnet = retnet["params"]
    # Xavier with gain 2^-2.5: variance 2^-5 * 2 / (fan_in + fan_out).
    np.testing.assert_allclose(
        np.var(retnet["query"]["kernel"]), 2 / 512 / 32, rtol=0.05
    )
    half = layers.SimpleGLA(4, 64, residual_scale=0.5)
    half = jax.jit(half.init)(jax.random.key(0), x)["params"]
    np.testing.assert_allclose(
        np.var(half["out"]["kernel"]), 0.25 / 256, rtol=0.05
    )


def test_errors():
    x = jnp.zeros((1, 2, D))
    with pytest.raises(ValueError, match="positions must be given along with"):
        layer = layers.RetNet(H, K)
        layer.init(jax.random.key(0), x, layer.init_state(1, 2))
    with pytest.raises(ValueError, match=r"positions must have shape \(1, 2\)"):
        layers.RetNet(H, K).init(
            jax.random.key(0), x, positions=jnp.zeros((1, 3), jnp.int32)
        )
    with pytest.raises(ValueError, match="positions must be None where rotary"):
        layers.Attention(H, K, rotary_base=None).init(
            jax.random.key(0), x, positions=jnp.zeros((1, 2), jnp.int32)
        )
    with pytest.raises(ValueError, match="output_gate must be one of .*'sig'"):
        layers.Attention(H, K, output_gate="sig").init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="got layer=4 and layers=4"):
        layers.Lightning(H, K, layer=4, layers=4).init(jax.random.key(0), x)
