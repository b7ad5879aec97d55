"""Softmax attention: forms, cache, packing, exact isolation, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import ops
from tests.ops import attention_cases as cases

attend = ops.softmax_attention
P = jax.sharding.PartitionSpec
B, T, H = cases.B, cases.T, cases.H
HK, K, V = cases.HK, cases.K, cases.V


@pytest.mark.parametrize("window", [None, 9])
def test_parallel_equals_oracle(window):
    y, _, grads = cases.reference(window, 0.0)
    with jax.enable_x64(True):
        x, segment_ids, cotangent = jax.tree.map(np.asarray, cases.make())
    assert (
        cases.relative(y, cases.oracle(x, segment_ids, window=window)) < 1e-13
    )
    # Gradients in one direction of all inputs at once; gates of -inf stay.
    rng = np.random.default_rng(1)
    move = {n: rng.normal(size=a.shape) for n, a in x.items()}
    f = functools.partial(cases.oracle, segment_ids=segment_ids, window=window)
    expected = directional(f, x, move, cotangent)
    actual = sum(np.sum(grads[n] * move[n]) for n in x)
    assert abs(actual - expected) < 1e-6 * abs(expected)


@pytest.mark.parametrize(
    ("form", "window", "cuts"),
    [
        ("chunk", None, (23,)),
        ("chunk", 9, ()),
        ("recurrent", 9, ()),
        ("parallel", None, (T - 1,)),
    ],
)
def test_forms_and_cuts_agree(form, window, cuts):
    y, state, grads = cases.reference(window)
    with jax.enable_x64(True):
        y2, state2, grads2 = cases.value_and_grads(
            *cases.make(), window=window, form=form, cuts=cuts
        )
    assert cases.relative(y2, y) < 1e-13
    for name in grads:
        assert cases.relative(grads2[name], grads[name]) < 1e-12, name
    for a, b in zip(state2, state, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-11)


@pytest.fixture(scope="module")
def exact():
    """Compiled gradients of a loss on chosen outputs of the chunk form."""

    @jax.jit
    def run(x, segment_ids, cotangent):
        def loss(x):
            y, _ = cases.call(x, 0, T, segment_ids, chunk_size=16)
            return jnp.sum(y * cotangent), y

        grads, y = jax.grad(loss, has_aux=True)(x)
        return y, grads

    return run


def test_chunk_in_float32_with_hard_gates(exact):
    y, _, grads = cases.reference(None, 0.0)
    x, segment_ids, cotangent = cases.make(np.float32)
    y2, grads2 = exact(x, segment_ids, cotangent)
    assert y2.dtype == jnp.float32
    assert cases.relative(y2, y) < 1e-6
    for name in grads:
        assert cases.relative(grads2[name], grads[name]) < 2e-6, name
    # Gates of -inf do not move, padding has no gradient at all.
    gates = np.asarray(grads2["log_decay"])
    assert not gates[np.isneginf(np.asarray(x["log_decay"]))].any()
    padding = np.asarray(segment_ids) < 0
    for name in ("q", "k", "v", "log_decay"):
        assert not np.asarray(grads2[name])[padding].any()
    assert not np.asarray(y2)[padding].any()


@pytest.mark.parametrize("window", [None, 9])
def test_decoding_token_by_token(window):
    x, segment_ids, _ = cases.make(np.float32)
    state = ops.attention_cache(
        B,
        T,
        HK,
        K,
        V,
        window=window,
        gate_heads=H,
    )

    def step(state, t):
        at = {
            name: a if name == "sink" else a[:, t][:, None]
            for name, a in x.items()
        }
        q, k, v = (at.pop(name) for name in ("q", "k", "v"))
        y, state = attend(
            q,
            k,
            v,
            window=window,
            initial_state=state,
            segment_ids=segment_ids[:, t][:, None],
            **at,
        )
        return state, y[:, 0]

    state, y = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(T)))(
        state
    )
    expected = cases.oracle(x, segment_ids, window=window)
    assert cases.relative(jnp.moveaxis(y, 0, 1), expected) < 1e-6
    whole = cases.reference(window)[1]
    for a, b in zip(state[:5], whole[:5], strict=True):
        np.testing.assert_array_equal(a, b.astype(a.dtype))
    np.testing.assert_allclose(state.log_decay, whole.log_decay, rtol=1e-6)
    assert state.k.shape[1] == (T if window is None else window - 1)


def test_neighbouring_documents_do_not_touch(exact):
    x, segment_ids, cotangent = cases.make(np.float32)
    y, grads = exact(x, segment_ids, cotangent)
    mine = np.asarray(segment_ids) == 1
    noise = cases.make(np.float32, seed=5)[0] | {"sink": x["sink"]}
    other = {
        n: a
        if n == "sink"
        else jnp.where(mine.reshape(B, T, *[1] * (a.ndim - 2)), a, noise[n])
        for n, a in x.items()
    }
    y2, grads2 = exact(other, segment_ids, cotangent)
    np.testing.assert_array_equal(np.asarray(y)[mine], np.asarray(y2)[mine])
    for name in ("q", "k", "v", "log_decay"):
        np.testing.assert_array_equal(
            np.asarray(grads[name])[mine], np.asarray(grads2[name])[mine]
        )


def test_the_future_does_not_touch_the_past(exact):
    x, _, cotangent = cases.make(np.float32)
    segment_ids = jnp.zeros((B, T), jnp.int32)
    t = 37
    cotangent = cotangent.at[:, t:].set(0)
    noise = cases.make(np.float32, seed=5)[0]
    other = {
        n: a if n == "sink" else a.at[:, t:].set(noise[n][:, t:])
        for n, a in x.items()
    }
    y, grads = exact(x, segment_ids, cotangent)
    y2, grads2 = exact(other, segment_ids, cotangent)
    np.testing.assert_array_equal(y[:, :t], y2[:, :t])
    np.testing.assert_array_equal(grads["sink"], grads2["sink"])
    for name in ("q", "k", "v", "log_decay"):
        np.testing.assert_array_equal(grads[name][:, :t], grads2[name][:, :t])
        assert not np.asarray(grads2[name][:, t:]).any()


def directional(f, x, move, cotangent):
    """Derivative of sum(cotangent * f) along `move`, by differences."""
    up, down = (
        f({n: np.asarray(x[n], np.float64) + h * move[n] for n in x})
        for h in (1e-6, -1e-6)
    )
    return np.sum((up - down) * np.asarray(cotangent)) / 2e-6


def test_bidirectional():
    x, segment_ids, cotangent = cases.make(np.float32, gate=False)

    @jax.jit
    def run(x):
        def loss(x):
            y, state = cases.call(
                x, 0, T, segment_ids, causal=False, form="chunk"
            )
            assert state is None
            return jnp.sum(y * cotangent), y

        return jax.grad(loss, has_aux=True)(x)

    f = functools.partial(
        cases.oracle, segment_ids=np.asarray(segment_ids), causal=False
    )
    grads, y = run(x)
    assert cases.relative(y, f(x)) < 1e-6
    # The gradient's own direction: no cancellation in the sum.
    move = {n: np.asarray(g, np.float64) for n, g in grads.items()}
    expected = directional(f, x, move, cotangent)
    actual = sum(np.sum(m**2) for m in move.values())
    assert abs(actual - expected) < 1e-5 * expected


def test_shard_map_over_the_batch():
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.normal(size=(4, 40, 2, 4)), jnp.float32)
        for _ in range(3)
    )
    gate = -jnp.abs(q[..., 0])
    sink = jnp.asarray([0.3, -0.2])  # replicated
    mesh = jax.make_mesh(
        (4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
    )

    def local(q, k, v, gate, sink):
        return attend(q, k, v, log_decay=gate, sink=sink, chunk_size=16)[0]

    def grads(f):
        loss = lambda *x: jnp.sum(jnp.sin(f(*x)))  # noqa: E731
        both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4)))
        return jax.tree.leaves(both(q, k, v, gate, sink))

    expected = grads(local)
    for check_vma in (True, False):
        shard = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(P("data"), P("data"), P("data"), P("data"), P()),
            out_specs=P("data"),
            check_vma=check_vma,
        )
        for a, b in zip(grads(shard), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_vmap_and_remat():
    x, segment_ids, _ = cases.make(np.float32, gate=False)
    shifted = jnp.stack([segment_ids, jnp.maximum(segment_ids, 0)])

    def loss(q, ids):
        y, _ = cases.call(x | {"q": q}, 0, T, ids, chunk_size=32)
        return jnp.sum(jnp.sin(y))

    q = jnp.stack([x["q"], x["q"] + 1])
    both = jax.jit(jax.vmap(jax.grad(jax.checkpoint(loss))))(q, shifted)
    one = jax.jit(jax.grad(loss))
    for i in range(2):
        assert cases.relative(both[i], one(q[i], shifted[i])) < 1e-6


def test_second_order_of_parallel():
    x, segment_ids, _ = cases.make(np.float32, gate=False)
    x = {n: a if n == "sink" else a[:1, :9] for n, a in x.items()}

    def loss(k):
        y, _ = cases.call(
            x | {"k": k}, 0, 9, segment_ids[2:, :9], form="parallel"
        )
        return jnp.sum(jnp.sin(y))

    @jax.jit
    def curvature(k):
        return jax.jvp(jax.grad(loss), (k,), (jnp.ones_like(k),))[1]

    slope = jax.jit(jax.grad(loss))
    h = 1e-2
    expected = (slope(x["k"] + h) - slope(x["k"] - h)) / (2 * h)
    assert cases.relative(curvature(x["k"]), expected) < 1e-3


def test_memory_is_linear_in_length():
    def temporary(length):
        shape = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
        loss = lambda q, k, v: jnp.sum(attend(q, k, v)[0])  # noqa: E731
        compiled = jax.jit(jax.grad(loss)).lower(shape, shape, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(8192) <= 4.4 * temporary(2048)


def test_cache_continues_documents_and_forgets_them():
    run = jax.jit(attend)
    k = jnp.arange(3.0).reshape(1, 3, 1, 1)
    ids = jnp.asarray([[4, 4, 7]], jnp.int32)
    state = ops.attention_cache(1, 8, 1, 1)
    _, state = run(k, k, k, initial_state=state, segment_ids=ids)
    np.testing.assert_array_equal(state.segment[0, :4], [4, 4, 7, -1])
    np.testing.assert_array_equal(state.position[0, :4], [0, 1, 2, -1])
    assert state.length[0] == 3
    q, one = jnp.zeros((1, 1, 1, 1)), jnp.ones((1, 1, 1, 1))
    # No ids: document 7 goes on, and holds the value 2 besides this one.
    y, after = run(q, one, one, initial_state=state)
    assert y.item() == pytest.approx(1.5)
    assert after.segment[0, 3] == 7
    # Another id starts afresh, even one that was there before 7.
    for other in (4, 9):
        ids = jnp.full((1, 1), other, jnp.int32)
        y, after = run(q, one, one, initial_state=state, segment_ids=ids)
        assert y.item() == 1
        y, _ = run(q, 3 * one, 3 * one, initial_state=after)
        assert y.item() == pytest.approx(2)


def test_dtypes():
    x, segment_ids, _ = cases.make(np.float32)
    half = {n: a.astype(jnp.bfloat16) for n, a in x.items()}

    @jax.jit
    def run(x):
        return cases.call(x, 0, T, segment_ids, form="chunk")[0]

    y = run(half)
    assert y.dtype == jnp.bfloat16
    assert cases.relative(y, cases.oracle(half, segment_ids)) < 4e-3
    for state_dtype, expected in ((None, "bfloat16"), ("float32", "float32")):
        _, state = jax.eval_shape(
            lambda x, dtype=state_dtype: cases.call(
                x, 0, T, segment_ids, state_dtype=dtype
            ),
            half,
        )
        assert state.k.dtype == state.v.dtype == expected
        assert state.log_decay.dtype == jnp.float32
