r"""Draws the token-mixing matrices shown in docs/.

    python -m experiments.figures --out=docs/figures

Every picture is `seqjax.ops.as_matrix` of an operator on random inputs of
T = 64 tokens, one head: row i shows how much of each token j reaches output i,
white for nothing, red and blue for either sign, each panel scaled to its own
largest entry with the square root of the size as depth of colour. Needs
matplotlib (`pip install seqjax[figures]`).
"""

from collections.abc import Callable, Sequence
import functools
import pathlib
from typing import NamedTuple

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from seqjax import ops

LENGTH, WIDTH = 64, 16


class Panel(NamedTuple):
    """One matrix: its title and what gives it, [T, T]."""

    title: str
    matrix: Callable[[], jax.Array]


def _normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def _head(*trailing, seed=0):
    return _normal(seed, 1, LENGTH, 1, *trailing)


def _unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _gate(*trailing, seed=7, open_=2.0):
    return jax.nn.log_sigmoid(2 * _head(*trailing, seed=seed) + open_)


def _qkv():
    return tuple(_head(WIDTH, seed=seed) for seed in (1, 2, 3))


def _of(op, *inputs, **options):
    """The one matrix of one head or channel."""

    def matrix():
        full = ops.as_matrix(op, *inputs, **options)
        return full.reshape(-1, *full.shape[-2:])[0]

    return matrix


def _linear():
    q, k, v = _qkv()
    elu = functools.partial(
        ops.linear_attention,
        normalize=True,
        feature_map=ops.feature_maps.elu_plus_one,
    )
    based = functools.partial(
        ops.linear_attention,
        normalize=True,
        scale=1.0,
        feature_map=ops.feature_maps.taylor,
    )
    return (
        Panel("linear", _of(ops.linear_attention, q, k, v)),
        Panel("normalised, elu + 1", _of(elu, q, k, v)),
        Panel("Based: Taylor features", _of(based, q, k, v)),
    )


def _decay():
    q, k, v = _qkv()
    documents = (jnp.arange(LENGTH) // 24)[None].astype(jnp.int32)
    slow, fast = jnp.array([-0.02]), jnp.array([-0.3])
    gla = ops.gated_linear_attention
    return (
        Panel("retention, slow", _of(ops.retention, q, k, v, log_decay=slow)),
        Panel("retention, fast", _of(ops.retention, q, k, v, log_decay=fast)),
        Panel("a gate a token", _of(gla, q, k, v, _gate())),
        Panel(
            "three documents",
            _of(gla, q, k, v, _gate(), segment_ids=documents),
        ),
    )


def _channel():
    q, k, v = _qkv()
    gla = ops.gated_linear_attention
    g = _gate(WIDTH, open_=1.0)
    return (
        Panel("GLA", _of(gla, q, k, v, g)),
        Panel("HGRN2", _of(gla, q, -jnp.expm1(g), v, g)),
        Panel("RWKV-6", _of(ops.rwkv6, q, k, v, g, jnp.ones((1, WIDTH)))),
    )


def _delta():
    q, k, v = _qkv()
    k = _unit(k)
    beta = jax.nn.sigmoid(_head(seed=4))
    delta = ops.delta_rule
    return (
        Panel("DeltaNet", _of(delta, q, k, v, beta)),
        Panel("Gated DeltaNet", _of(delta, q, k, v, beta, _gate())),
        Panel("KDA", _of(delta, q, k, v, beta, _gate(WIDTH))),
        Panel(
            "RWKV-7",
            _of(
                ops.dplr_delta_rule,
                q,
                k,
                v,
                -k,
                beta[..., None] * k,
                _gate(WIDTH, open_=4.0),
            ),
        ),
    )


def _elementwise():
    x = _normal(1, 1, LENGTH, 1)
    gate = jax.nn.log_sigmoid(_normal(2, 1, LENGTH, 1) + 2)
    wave = jnp.full((1, LENGTH, 1), -0.05 + 0.5j)
    dt = jax.nn.softplus(x - 1)
    A = -jnp.arange(1.0, 5)[None]
    B, C = _normal(4, 1, LENGTH, 1, 4), _normal(5, 1, LENGTH, 1, 4)
    recurrence = ops.linear_recurrence
    rotating = _of(recurrence, x.astype(jnp.complex64), wave)
    return (
        Panel("real gates", _of(recurrence, x, gate)),
        Panel("complex, real part", lambda: rotating().real),
        Panel("Mamba-1", _of(ops.selective_scan, x, dt, A, B, C)),
    )


def _mlstm():
    q, k, v = _qkv()
    i, f = _head(seed=5), _head(seed=6) + 3
    return (
        Panel("mLSTM", _of(ops.mlstm, q, k, v, i, f)),
        Panel(
            "one strong input gate",
            _of(ops.mlstm, q, k, v, i.at[:, 20].set(6), f),
        ),
    )


def _log_linear():
    q, k, v = _qkv()
    levels = jax.nn.softplus(_normal(6, 1, LENGTH, 1, 7))
    gate = _gate(open_=5.0)
    op = ops.log_linear_attention
    same = jnp.ones_like(levels)
    return (
        Panel("one scale for all levels", _of(op, q, k, v, gate, same)),
        Panel("a scale a level", _of(op, q, k, v, gate, levels)),
    )


def _convolution():
    x, weight = _normal(1, 1, LENGTH, 1), jnp.array([[-0.4], [0.3], [0.6], [1]])
    documents = (jnp.arange(LENGTH) // 24)[None].astype(jnp.int32)
    convolution = ops.short_convolution
    return (
        Panel("four taps", _of(convolution, x, weight)),
        Panel(
            "three documents",
            _of(convolution, x, weight, segment_ids=documents),
        ),
    )


def _softmax():
    q, k, v = _qkv()
    attention = ops.softmax_attention
    return (
        Panel("causal", _of(attention, 2 * q, k, v)),
        Panel("window of 16", _of(attention, 2 * q, k, v, window=16)),
        Panel("sink", _of(attention, 2 * q, k, v, sink=jnp.array([3.0]))),
        Panel("forget gate", _of(attention, 2 * q, k, v, log_decay=_gate())),
    )


FIGURES = {
    "linear": _linear,
    "decay": _decay,
    "channel": _channel,
    "delta": _delta,
    "elementwise": _elementwise,
    "mlstm": _mlstm,
    "log_linear": _log_linear,
    "convolution": _convolution,
    "softmax": _softmax,
}


def draw(name: str, path: pathlib.Path) -> None:
    """Draws one figure of `FIGURES` into a PNG file."""
    from matplotlib import figure

    panels = FIGURES[name]()
    page = figure.Figure(figsize=(2.3 * len(panels), 2.6), layout="constrained")
    for axes, panel in zip(
        np.atleast_1d(page.subplots(1, len(panels))), panels, strict=True
    ):
        matrix = np.asarray(panel.matrix())
        shade = np.sign(matrix) * np.sqrt(np.abs(matrix))
        largest = np.abs(shade).max()
        axes.imshow(
            shade,
            cmap="RdBu_r",
            vmin=-largest,
            vmax=largest,
            interpolation="nearest",
        )
        axes.set_title(panel.title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    # No date or version in the file: the same code gives the same bytes.
    page.savefig(path, dpi=80, metadata={"Software": None})


def main(argv: Sequence[str]) -> None:
    """Draws the figures that --only names, or all."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}; see --help")
    unknown = sorted(set(flags.FLAGS.only) - set(FIGURES))
    if unknown:
        raise app.UsageError(
            f"--only names {', '.join(unknown)}; there are {', '.join(FIGURES)}"
        )
    out = pathlib.Path(flags.FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    for name in flags.FLAGS.only or FIGURES:
        draw(name, out / f"{name}.png")
        print(out / f"{name}.png", flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("out", "docs/figures", "Folder of the PNG files.")
    flags.DEFINE_list("only", [], "Names of figures; empty: all.")
    app.run(main)
