"""Feature maps: kernels of linear attention in place of the softmax.

A map phi [..., K] -> [..., F] makes phi(q) . phi(k) the weight of a token.
`linear_attention(q, k, v, feature_map=phi, normalize=True, scale=1.0)` keeps a
state of F V floats; a map with parameters is bound by `functools.partial`.

    elu_plus_one, relu    positive features, F = K
    taylor                1 + s + s^2/2, s = q . k / sqrt(K): exp(s) to second
                          order (Based), F = K (K + 1) / 2 + K + 1
    square                s^2 (ReBased), F = K (K + 1) / 2
    dpfp                  products of rectified neighbours, F = 2 K nu
    t2r, hadamard         learned: relu(W x), and (W1 x) * (W2 x)
    hedgehog              learned: softmax over both signs of W x, F = 2 F'

All compute and answer in float32, or float64 for float64: a square of bfloat16
numbers rounded to bfloat16 would lose what the operator's accumulation keeps.
Quadratic maps store each product of two channels once, so their state is half
of the outer product's and the kernel the same.
"""

import math

import jax
import jax.numpy as jnp


def elu_plus_one(x: jax.Array) -> jax.Array:
    """elu(x) + 1 (Katharopoulos et al., arXiv 2006.16236).

    Args:
      x: [..., K].

    Returns:
      [..., K], positive until exp underflows: exp(x) up to 0, x + 1 above.
    """
    x = _wide("elu_plus_one", x)
    above = x > 0
    # Not of the minimum of x and 0, which halves the gradient at 0.
    return jnp.where(above, x + 1, jnp.exp(jnp.where(above, 0, x)))


def relu(x: jax.Array) -> jax.Array:
    """max(x, 0): [..., K] to [..., K]."""
    return jax.nn.relu(_wide("relu", x))


def taylor(x: jax.Array) -> jax.Array:
    """exp(q . k / sqrt(K)) to second order (Based, arXiv 2402.18668).

    phi(q) . phi(k) = 1 + s + s^2 / 2 >= 1/2 with s = q . k / sqrt(K).

    Args:
      x: [..., K].

    Returns:
      [..., K (K + 1) / 2 + K + 1]: 1, x / K^(1/4), x_i^2 / sqrt(2 K), and
      x_i x_j / sqrt(K) for i < j, row by row.

    Raises:
      ValueError: K = 0, of which there is no scale.
    """
    x = _wide("taylor", x, 1)
    width = x.shape[-1]
    return jnp.concatenate(
        [
            jnp.ones_like(x[..., :1]),
            x * width**-0.25,
            x * x * (2 * width) ** -0.5,
            _products(x) * width**-0.5,
        ],
        axis=-1,
    )


def square(x: jax.Array) -> jax.Array:
    """(q . k)^2 / K (ReBased, arXiv 2402.10644, after its affine map).

    Where q and k are nearly orthogonal the features cancel to a small weight:
    its error is that of |q|^2 |k|^2, and a normaliser of such weights alone
    (the first token of a document) inherits it.

    Args:
      x: [..., K].

    Returns:
      [..., K (K + 1) / 2]: x_i^2 / sqrt(K), and x_i x_j sqrt(2 / K) for i < j.

    Raises:
      ValueError: K = 0, of which there is no scale.
    """
    x = _wide("square", x, 1)
    parts = [x * x, math.sqrt(2) * _products(x)]
    return jnp.concatenate(parts, axis=-1) * x.shape[-1] ** -0.5


def dpfp(x: jax.Array, *, nu: int = 1) -> jax.Array:
    """Deterministic parameter-free projection (arXiv 2102.11174).

    Args:
      x: [..., K].
      nu: how many neighbours each rectified channel is multiplied with.

    Returns:
      [..., 2 K nu]: r_i r_{i-n} for n = 1 .. nu, r = relu of (x, -x), indices
      modulo 2 K.

    Raises:
      ValueError: nu is no int in 1 .. 2 K - 1.
    """
    x = _wide("dpfp", x, 1)
    if isinstance(nu, bool) or not isinstance(nu, int):
        raise ValueError(
            f"dpfp: nu must be an int, got {nu!r}: it counts the neighbours of"
            " a channel"
        )
    if not 1 <= nu < 2 * x.shape[-1]:
        raise ValueError(
            f"dpfp: nu must be in 1 .. {2 * x.shape[-1] - 1} (2 K - 1), got"
            f" {nu}"
        )
    r = jax.nn.relu(jnp.concatenate([x, -x], axis=-1))
    shifted = [jnp.roll(r, n, axis=-1) for n in range(1, nu + 1)]
    return jnp.concatenate([r * s for s in shifted], axis=-1)


def t2r(x: jax.Array, weight: jax.Array) -> jax.Array:
    """relu(W x) (Kasai et al., arXiv 2103.13076).

    Args:
      x: [..., K].
      weight: [F, K].

    Returns:
      [..., F].
    """
    x = _wide("t2r", x, 0)
    return jax.nn.relu(_linear("t2r", x, {"weight": weight}))


def hadamard(
    x: jax.Array,
    weight1: jax.Array,
    bias1: jax.Array | None,
    weight2: jax.Array,
    bias2: jax.Array | None,
) -> jax.Array:
    """The product of two affine maps of x.

    Args:
      x: [..., K].
      weight1: [F, K].
      bias1: [F] or None.
      weight2: [F, K].
      bias2: [F] or None.

    Returns:
      [..., F].
    """
    x = _wide("hadamard", x, 0)
    first = _linear("hadamard", x, {"weight1": weight1}, {"bias1": bias1})
    second = _linear("hadamard", x, {"weight2": weight2}, {"bias2": bias2})
    if first.shape != second.shape:
        raise ValueError(
            "hadamard: weight1 and weight2 must both be [F, K], got shapes"
            f" {tuple(weight1.shape)} and {tuple(weight2.shape)}"
        )
    return first * second


def hedgehog(
    x: jax.Array, weight: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """softmax of (2 y, -2 y), y = W x + b (arXiv 2402.04347).

    Args:
      x: [..., K].
      weight: [F, K].
      bias: [F] or None.

    Returns:
      [..., 2 F], positive, summing to 1.
    """
    x = _wide("hedgehog", x, 0)
    y = 2 * _linear("hedgehog", x, {"weight": weight}, {"bias": bias})
    return jax.nn.softmax(jnp.concatenate([y, -y], axis=-1), axis=-1)


def _wide(function, x, least=None):
    """x in float32 or float64, its last axis K at least `least` if given."""
    _floats(function, "x", x, "[..., K]")
    if least is not None and (not x.shape or x.shape[-1] < least):
        raise ValueError(
            f"{function}: x must have shape [..., K] with K at least {least},"
            f" got shape {tuple(x.shape)}"
        )
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _floats(function, name, x, shape):
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        came = "None" if x is None else type(x).__name__
        raise ValueError(
            f"{function}: {name} must be an array of shape {shape}, got {came}"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{function}: {name} must be floats, got {x.dtype}; cast it"
        )


def _linear(function, x, weights, biases=None):
    """W x + b, each given by its name; a bias may be None."""
    ((name, weight),) = weights.items()
    _floats(function, name, weight, "[F, K]")
    width = x.shape[-1]
    if weight.ndim != 2 or weight.shape[1] != width:
        raise ValueError(
            f"{function}: {name} must have shape [F, K] (K = {width} from x),"
            f" got shape {tuple(weight.shape)}"
        )
    y = jnp.einsum(
        "...k,fk->...f",
        x,
        weight.astype(x.dtype),
        precision=jax.lax.Precision.HIGHEST,
    )
    for name, bias in (biases or {}).items():
        if bias is None:
            continue
        _floats(function, name, bias, "[F]")
        if tuple(bias.shape) != weight.shape[:1]:
            raise ValueError(
                f"{function}: {name} must have shape [F] (F ="
                f" {weight.shape[0]} from its weight), got shape"
                f" {tuple(bias.shape)}"
            )
        y = y + bias.astype(x.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
    return y


def _products(x):
    """x_i x_j for i < j, row by row: [..., K (K - 1) / 2]."""
    rows = [x[..., i : i + 1] * x[..., i + 1 :] for i in range(x.shape[-1])]
    return jnp.concatenate(rows, axis=-1)
