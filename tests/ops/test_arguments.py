"""What operators do with arguments and sizes at the edge of the contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import ops

X = np.ones((2, 3, 4), np.float32)
WEIGHT = np.ones((4, 4), np.float32)


@pytest.mark.parametrize("heads", [0, -1, 2.0, True, "4", None])
def test_slopes_need_heads(heads):
    with pytest.raises(ValueError, match="heads must be an int of at least 1"):
        ops.alibi_slopes(heads)


def test_convolution_of_no_tokens():
    """The state goes through, with ids and without."""
    state = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for ids in (None, np.zeros((2, 0), np.int32)):
        y, after = ops.short_convolution(
            X[:, :0], WEIGHT, initial_state=state, segment_ids=ids
        )
        assert y.shape == (2, 0, 4)
        np.testing.assert_array_equal(after, state)


def test_attention_of_no_tokens_is_refused():
    q = np.zeros((1, 0, 2, 4), np.float32)
    with pytest.raises(ValueError, match="at least one token, got T = 0"):
        ops.softmax_attention(q, q, q)


@pytest.mark.parametrize("form", ["chunk", "recurrent", "parallel"])
def test_feature_maps_see_nothing_at_padding(form):
    """Not NaN, nor a number at which the map has an infinite slope."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.uniform(1, 2, (2, 9, 2, 4)).astype("f") for _ in range(3))
    ids = np.array([[0, 0, -1, 0, 1, 1, -1, -1, 1], [-1] * 4 + [0] * 5])
    ids = ids.astype(np.int32)

    @jax.jit
    def run(q, k, v):
        def loss(q, k, v):
            y, state = ops.linear_attention(
                q,
                k,
                v,
                feature_map=lambda x: jnp.sqrt(x + 1),
                segment_ids=ids,
                form=form,
            )
            return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.sin(state)), y

        return jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)

    before = run(q, k, v)
    for x, filler in ((q, np.nan), (k, -1.0), (v, np.inf)):
        x[ids < 0] = filler
    after = run(q, k, v)
    for a, b in zip(
        jax.tree.leaves(before), jax.tree.leaves(after), strict=True
    ):
        assert not np.asarray(b)[ids < 0].any()
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": [[1.0]]}, r"q must be an array of shape .* got list"),
        ({"v": "values"}, r"v must be an array of shape .* got str"),
        ({"normalize": "yes"}, "normalize must be True or False, got 'yes'"),
        (
            {"implementation": 5},
            "implementation must be one of triton, xla, .* got 5",
        ),
        ({"scale": jnp.ones(())}, "fold a traced scale into q"),
        ({"scale": np.inf}, "scale must be finite, got inf"),
        ({"state_dtype": object()}, "state_dtype must be one of"),
    ],
)
def test_linear_attention_refuses(changes, message):
    q = np.ones((1, 3, 2, 4), np.float32)
    arguments = {"q": q, "k": q, "v": q} | changes
    q, k, v = (arguments.pop(name) for name in "qkv")
    with pytest.raises(ValueError, match=message):
        ops.linear_attention(q, k, v, **arguments)


def test_forward_mode_through_chunks_is_refused_and_elsewhere_right():
    """JAX says so in its own words; the other forms give the derivative."""
    q = np.random.default_rng(0).normal(size=(1, 9, 2, 4)).astype("f")

    def derivative(form):
        def run(v):
            return ops.linear_attention(q, q, v, form=form)[0]

        return jax.jvp(run, (q,), (2 * q,))

    with pytest.raises(TypeError, match=r"forward-mode .* custom_vjp function"):
        derivative("chunk")
    y, slope = derivative("parallel")
    np.testing.assert_allclose(slope, 2 * y, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_dtype": "float64"}, "float64, which JAX narrows unless"),
        ({"state_dtype": "wide"}, "state_dtype must be one of .* got 'wide'"),
        ({"axis_name": 5}, "axis_name must be the name of a mesh axis"),
        (
            {"q": np.ones((2, 3, 1, 0)), "k": np.ones((2, 3, 1, 0))},
            "K must be at least 1 for the default scale",
        ),
    ],
)
def test_delta_rule_names_what_it_refuses(changes, message):
    token = np.ones((2, 3, 1, 4), np.float32)
    inputs = {"q": token, "k": token, "v": token, "beta": token[..., 0]}
    changes = {
        name: x.astype(np.float32) if isinstance(x, np.ndarray) else x
        for name, x in changes.items()
    }
    with pytest.raises(ValueError, match=message):
        ops.delta_rule(**{**inputs, **changes})


@pytest.mark.parametrize("dtype", ["wide", "float32", "complex128"])
def test_complex_states_stay_complex(dtype):
    x = X.astype(np.complex64)
    with pytest.raises(ValueError, match="state_dtype"):
        ops.linear_recurrence(x, -X, state_dtype=dtype)
