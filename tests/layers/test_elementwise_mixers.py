"""HGRN, Mamba, RG-LRU and S5 against a token-by-token numpy account."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import layers
from seqjax import ops
from seqjax.layers import rglru
from tests.conformance import golden
from tests.conformance import spec

B, T, D, E, N = 2, 9, 12, 8, 4


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _silu(x):
    return x * _sigmoid(x)


def _gelu(x):
    return x * _sigmoid(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))


def _softplus(x):
    return np.logaddexp(x, 0)


def _dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def _conv(p, x):
    past = np.pad(x, ((0, 0), (3, 0), (0, 0)))
    taps = [past[:, w : w + T] * p["weight"][w] for w in range(4)]
    return sum(taps) + p["bias"]


def _recur(x, decay):
    h, out = np.zeros_like(x[:, 0]), []
    for t in range(T):
        h = decay[:, t] * h + x[:, t]
        out.append(h)
    return np.stack(out, 1)


def _hgrn(p, x):
    bound = _BOUND
    f = bound + (1 - bound) * _sigmoid(_dense(p["forget"], x))
    h = _recur((1 - f) * _silu(_dense(p["value"], x)), f)
    h = h / np.sqrt((h * h).mean(-1, keepdims=True) + 1e-5)
    o = h * p["norm"]["scale"] * _silu(_dense(p["gate"], x))
    return _dense(p["out"], o)


def _mamba(p, x):
    u, z = np.split(_dense(p["in"], x), 2, -1)
    u = _silu(_conv(p["conv"], u))
    low, b, c = np.split(_dense(p["select"], u), [3, 3 + N], -1)
    dt = _softplus(_dense(p["dt"], low))[..., None]
    decay = np.exp(-dt * np.exp(p["A_log"]))
    h = _recur(dt * u[..., None] * b[:, :, None], decay)
    o = (h * c[:, :, None]).sum(-1) + p["D"] * u
    return _dense(p["out"], o * _silu(z))


def _blocks(p, u):
    parts = u.reshape(B, T, 2, E // 2)
    y = np.einsum("btni,nij->btnj", parts, p["kernel"])
    return _sigmoid(y.reshape(u.shape) + p["bias"])


def _rglru(p, x):
    u = _conv(p["conv"], _dense(p["in"], x))
    r, i = _blocks(p["decay_gate"], u), _blocks(p["input_gate"], u)
    a = np.exp(-8 * r * _softplus(p["decay"]))
    room = np.sqrt(1 - a * a)
    room[:, 0] = 1
    h = _recur(room * i * u, a)
    return _dense(p["out"], h * _gelu(_dense(p["gate"], x)))


def _s5(p, x):
    step = np.exp(p["log_step"])
    rate = np.minimum(p["rate"], -1e-4) + 1j * p["frequency"]
    decay = np.exp(rate * step)
    b = p["B"] @ np.array([1, 1j]) * (decay - 1) / rate
    c = p["C"] @ np.array([1, 1j])
    h = _recur(x @ b, np.broadcast_to(decay, (B, T, len(decay))))
    o = _gelu(2 * (h @ c).real + p["D"] * x)
    return _dense(p["out"], o) * _sigmoid(_dense(p["gate"], o))


_BOUND = np.linspace(0, 0.6, E)
CASES = {
    "hgrn": (layers.HGRN(E), _hgrn, {"lower_bound": jnp.asarray(_BOUND)}),
    "mamba": (layers.Mamba(E, 3, N), _mamba, {}),
    "rglru": (layers.RGLRU(E, 2), _rglru, {}),
    "s5": (layers.S5(8, 2), _s5, {}),
}


def _noisy(params, key):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten(
        [
            leaf + 0.1 * jax.random.normal(k, leaf.shape)
            for leaf, k in zip(leaves, keys, strict=True)
        ]
    )


def _made(name):
    layer, oracle, extra = CASES[name]
    x = jax.random.normal(jax.random.key(0), (B, T, D))
    params = jax.jit(layer.init)(jax.random.key(1), x)
    return layer, oracle, extra, _noisy(params, jax.random.key(2)), x


@pytest.mark.parametrize("name", CASES)
def test_equals_numpy(name):
    layer, oracle, extra, params, x = _made(name)
    y, state = jax.jit(layer.apply)(params, x, **extra)
    params64 = jax.tree.map(np.float64, params["params"])
    expected = oracle(params64, np.float64(x))
    scale = np.sqrt((expected**2).mean())
    np.testing.assert_allclose(y / scale, expected / scale, atol=2e-5, rtol=0)
    first = jax.eval_shape(lambda: layer.init_state(B, T))
    assert jax.tree.map(lambda s: (s.shape, s.dtype), first) == jax.tree.map(
        lambda s: (s.shape, s.dtype), state
    )


@pytest.mark.parametrize("name", CASES)
def test_packed_and_resumed_equal_separate(name):
    """Rows of two documents, the second one cut by a call's border."""
    layer, _, extra, params, x = _made(name)
    ids = jnp.array([[0] * 3 + [1] * 6, [0, -1, 0, 0, 2, -1, 2, 2, 2]])
    whole, _ = jax.jit(layer.apply)(params, x, None, ids, **extra)
    positions = ops.real_positions(ids)

    def call(state, part):
        more = {"positions": positions[:, part]} if name == "rglru" else {}
        return layer.apply(
            params, x[:, part], state, ids[:, part], **extra, **more
        )

    first, state = jax.jit(lambda: call(layer.init_state(B, T), slice(0, 7)))()
    last, _ = jax.jit(lambda state: call(state, slice(7, T)))(state)
    parts = np.concatenate([first, last], 1)
    real = np.asarray(ids) >= 0
    np.testing.assert_allclose(parts[real], whole[real], atol=2e-5, rtol=0)
    alone, _ = jax.jit(layer.apply)(params, x[:1, 3:], **extra)
    np.testing.assert_allclose(alone[0], whole[0, 3:], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["mamba", "rglru"])
def test_sharded_over_time_equals_whole(name):
    layer, _, extra, params, _ = _made(name)
    x = jax.random.normal(jax.random.key(3), (B, 16, D))
    ids = jnp.array([[0] * 5 + [1] * 9 + [-1] * 2, [3] * 10 + [4] * 6])
    timed = (ids,)
    if name == "rglru":
        timed += (ops.real_positions(ids),)
    mesh = jax.make_mesh(
        (4,),
        ("seq",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:4],
    )
    whole = jax.sharding.PartitionSpec()
    time = jax.sharding.PartitionSpec(None, "seq")
    sharded = jax.shard_map(
        lambda params, x, *timed: layer.clone(axis_name="seq").apply(
            params, x, None, *timed, **extra
        )[0],
        mesh=mesh,
        in_specs=(whole, time) + (time,) * len(timed),
        out_specs=time,
    )
    expected, _ = jax.jit(layer.apply)(params, x, None, ids, **extra)
    got = jax.jit(sharded)(params, x, *timed)
    real = np.asarray(ids) >= 0
    np.testing.assert_allclose(got[real], expected[real], atol=2e-5, rtol=0)


@pytest.mark.parametrize("case", ["tiny", "t1", "t63", "t65", "reset"])
def test_rglru_golden(case):
    """Values and gradients of the unit, gates included."""
    index = json.loads((golden.FOLDER / "ops.json").read_text())
    notes = index["ops"]["rglru"]["cases"]
    allowed = next(n for n in notes if n["case"] == case)["float32_error"]
    with np.load(golden.FOLDER / "rglru.npz") as arrays:
        parts = {
            name.removeprefix(f"{case}/"): arrays[name]
            for name in arrays.files
            if name.startswith(f"{case}/")
        }
    positions = parts.pop("in/position_ids")
    inputs = {
        name.removeprefix("in/"): x
        for name, x in parts.items()
        if name.startswith("in/")
    }

    def gate(x, kernel, bias):
        parts = x.reshape(*x.shape[:2], *kernel.shape[:2])
        y = jnp.einsum("btni,nij->btnj", parts, kernel) + bias[None, None]
        return y.reshape(x.shape)

    @jax.jit
    def call(inputs):
        x = inputs["x"]
        log_decay, written = rglru.gated_input(
            x,
            gate(x, inputs["wi"], inputs["bi"]),
            gate(x, inputs["wa"], inputs["ba"]),
            inputs["a_param"],
            positions,
        )
        # The state is dropped where a position is 0, also in front.
        log_decay = jnp.where((positions == 0)[..., None], -jnp.inf, log_decay)
        y, state = ops.linear_recurrence(
            written, log_decay, initial_state=inputs.get("h0")
        )
        return {"y": y, "ht": state}

    out, pull = jax.vjp(call, inputs)
    grads = pull({name: parts[f"ct/{name}"] for name in out})[0]
    got = {f"out/{n}": x for n, x in out.items()}
    got |= {f"grad/{n}": x for n, x in grads.items()}
    for name, x in got.items():
        bound = max(1e-5, 10 * allowed[name])
        assert spec.error(x, parts[name]) <= bound, name


def test_initial_values_are_those_of_the_papers():
    x = jnp.zeros((1, 1, 64))
    mamba = jax.jit(layers.Mamba(128, 4).init)(jax.random.key(0), x)["params"]
    np.testing.assert_allclose(
        np.exp(mamba["A_log"]), np.tile(np.arange(1, 17), (128, 1)), rtol=1e-6
    )
    step = _softplus(np.float64(mamba["dt"]["bias"]))
    assert 1e-3 * 0.999 < step.min() < 2e-3 and 0.05 < step.max() < 0.1001
    assert np.abs(mamba["dt"]["kernel"]).max() <= 0.5
    unit = jax.jit(layers.RGLRU(4096, 8).init)(jax.random.key(0), x)["params"]
    radius = np.exp(-_softplus(np.float64(unit["decay"])))
    assert 0.9 < radius.min() < 0.901 and 0.998 < radius.max() < 0.999
    area = (radius**2 - 0.81) / (0.999**2 - 0.81)
    assert abs(area.mean() - 0.5) < 0.02
    s5 = jax.jit(layers.S5(64, 4).init)(jax.random.key(0), x)["params"]
    np.testing.assert_array_equal(s5["rate"], -0.5)
    frequency = s5["frequency"].reshape(4, 8)
    np.testing.assert_array_equal(frequency, frequency[:1].repeat(4, 0))
    assert (frequency > 0).all()
    step = np.exp(s5["log_step"])
    assert 1e-3 <= step.min() < 3e-3 and 0.05 < step.max() <= 0.1


def test_options_make_the_layers():
    host = layers.Host(width=32, depth=2, heads=4)
    assert layers.HGRNOptions().build(host).inner == 32
    assert layers.HGRNOptions().lower_bound(host) == 32
    mamba = layers.MambaOptions().build(host)
    assert (mamba.inner, mamba.step_rank, mamba.state_size) == (64, 2, 16)
    unit = layers.RGLRUOptions().build(host)
    assert (unit.inner, unit.blocks) == (32, 4)
    assert layers.S5Options().build(host).state_size == 32
    for options, words in (
        (layers.HGRNOptions(expand=0.3), "here.expand"),
        (layers.MambaOptions(expand=0.3), "here.expand"),
        (layers.RGLRUOptions(blocks=5), "here.blocks must divide"),
        (layers.S5Options(blocks=5), "multiple of 2 \\* here.blocks"),
    ):
        with pytest.raises(ValueError, match=words):
            options.check(host, "here.")
