"""Calls whose kernels are compiled and held to their resources."""

import functools

import jax
import jax.numpy as jnp

from seqjax_kernels import registry
from seqjax_kernels.decay import channel
from seqjax_kernels.decay import passes
from seqjax_kernels.decay import problems
from seqjax_kernels.decay import scalar


def _both(q, k, v, log_decay, starts, initial, *, scale):
    """Runs forward and backward."""
    y, final, states = scalar.forward(
        q, k, v, log_decay, starts, initial, scale=scale
    )
    return scalar.backward(
        q, k, v, log_decay, starts, states, y, final, scale=scale
    )


def _both_channel(q, k, v, log_decay, starts, initial, *, scale):
    """Runs forward and backward with gates of key channels."""
    y, final, states, scores = channel.forward(
        q, k, v, log_decay, starts, initial, scale=scale
    )
    return channel.backward(
        q, k, v, log_decay, starts, states, scores, y, final, scale=scale
    )


def _carry_channel(q, k, v, log_decay, starts, initial):
    """Runs the passes over states, either way."""
    problem = problems.make_problem(q, k, v, log_decay, 0.1, None)
    for x, reverse in ((k, False), (q, True)):
        passes.carry(
            problem,
            x,
            v,
            log_decay,
            starts,
            initial,
            reverse=reverse,
            launcher=None,
        )


def _inputs(dtype, shape, gate: str | None = "token", packed=False):
    batch, length, groups, heads, key, value = shape
    of = jax.ShapeDtypeStruct
    gates = {
        None: None,
        "head": of((heads,), jnp.float32),
        "token": of((batch, length, heads), jnp.float32),
        "channel": of((batch, length, heads, key), jnp.float32),
    }
    return (
        of((batch, length, groups, key), dtype),
        of((batch, length, groups, key), dtype),
        of((batch, length, heads, value), dtype),
        gates[gate],
        of((batch, length), jnp.bool_) if packed else None,
        of((batch, heads, key, value), jnp.float32),
    )


_run = functools.partial(_both, scale=0.1)
_run_channel = functools.partial(_both_channel, scale=0.1)
_BF16, _FP32 = jnp.bfloat16, jnp.float32

# B, T, G, H, K, V
CASES = (
    registry.Case(
        "scalar bf16 K128 packed",
        _run,
        _inputs(_BF16, (2, 4096, 16, 16, 128, 128), packed=True),
    ),
    registry.Case(
        "scalar bf16 K128 V64 grouped",
        _run,
        _inputs(_BF16, (2, 4096, 1, 32, 128, 64)),
    ),
    registry.Case(
        "scalar bf16 K256 head gates",
        _run,
        _inputs(_BF16, (8, 2048, 32, 32, 256, 256), "head"),
    ),
    registry.Case(
        "scalar bf16 few heads, long, packed",
        _run,
        _inputs(_BF16, (1, 16384, 2, 2, 96, 80), packed=True),
    ),
    registry.Case(
        "scalar fp32 K128 packed",
        _run,
        _inputs(_FP32, (2, 4096, 16, 16, 128, 128), packed=True),
    ),
    registry.Case(
        "channel bf16 K128 packed",
        _run_channel,
        _inputs(_BF16, (2, 4096, 16, 16, 128, 128), "channel", packed=True),
    ),
    registry.Case(
        "channel bf16 few heads, long",
        _carry_channel,
        _inputs(_BF16, (1, 16384, 2, 2, 96, 80), "channel"),
    ),
    registry.Case(
        "channel fp32 K64 packed",
        _run_channel,
        _inputs(_FP32, (2, 4096, 16, 16, 64, 64), "channel", packed=True),
    ),
)

# A few words in the largest kernels, whose smaller tiles read more and whose
# smaller chunks write twice the states. Gradients of grouped heads have no tile
# at chunks of 64 without; 8.0 and 10.0 are not what the tiles were swept for.
SPILLS = {
    ("H200", "scalar bf16 K128 V64 grouped: key_gradients_kernel"): 4,
    ("H200", "channel fp32 K64 packed: states_kernel"): 8,
    ("A100", "scalar bf16 few heads, long, packed: key_gradients_kernel"): 4,
    ("A100", "channel bf16 K128 packed: channel_keys_kernel"): 16,
    ("A100", "channel fp32 K64 packed: channel_keys_kernel"): 44,
    ("B200", "scalar bf16 few heads, long, packed: parts_kernel #2"): 12,
}
