"""What is measured: one row an operator, and inputs made from shared sizes."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import _delta
from benchmarks import baseline_scan
from seqjax import ops

FORMS = ("recurrent", "chunk", "parallel")
# With gates a channel, parallel holds T x T x K numbers a head: gigabytes here.
_CHANNEL_FORMS = ("recurrent", "chunk")


class Sizes(NamedTuple):
    """The shared shape: [batch, length, heads, key_dim or value_dim]."""

    batch: int = 1
    length: int = 2048
    heads: int = 4
    key_dim: int = 64
    value_dim: int = 64


class Case(NamedTuple):
    """One operator on typical inputs.

    Attributes:
      run: called with the inputs and the keywords form and chunk_size (none
        of them if `forms` is empty); returns (y, state).
      inputs: makes the inputs from a key, the sizes and a dtype.
      forms: the forms it has, a part of FORMS; empty where it has just one.
      baseline: the same function of the same inputs as a scan over tokens,
        returning y, or None where a scan is no rival.
    """

    run: Callable[..., Any]
    inputs: Callable[[jax.Array, Sizes, Any], tuple[jax.Array, ...]]
    forms: tuple[str, ...] = FORMS
    baseline: Callable[..., jax.Array] | None = None


def _attention_inputs(key, sizes, dtype):
    shape = (sizes.batch, sizes.length, sizes.heads)
    keys = jax.random.split(key, 3)
    q = jax.random.normal(keys[0], (*shape, sizes.key_dim))
    k = jax.random.normal(keys[1], (*shape, sizes.key_dim))
    v = jax.random.normal(keys[2], (*shape, sizes.value_dim))
    k = k * sizes.key_dim**-0.5
    return q.astype(dtype), k.astype(dtype), v.astype(dtype)


def _positive_inputs(key, sizes, dtype):
    q, k, v = _attention_inputs(key, sizes, jnp.float32)
    q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
    return q.astype(dtype), k.astype(dtype), v.astype(dtype)


def _gated_inputs(key, sizes, dtype):
    key, gate_key = jax.random.split(key)
    shape = (sizes.batch, sizes.length, sizes.heads)
    log_decay = jax.nn.log_sigmoid(jax.random.normal(gate_key, shape) + 3)
    return *_attention_inputs(key, sizes, dtype), log_decay


def _mlstm_inputs(key, sizes, dtype):
    key, i_key, f_key = jax.random.split(key, 3)
    shape = (sizes.batch, sizes.length, sizes.heads)
    input_gate = jax.random.normal(i_key, shape)
    forget_gate = jax.random.normal(f_key, shape) + 3
    return *_attention_inputs(key, sizes, dtype), input_gate, forget_gate


def _channel_gated_inputs(key, sizes, dtype):
    key, gate_key = jax.random.split(key)
    shape = (sizes.batch, sizes.length, sizes.heads, sizes.key_dim)
    log_decay = jax.nn.log_sigmoid(jax.random.normal(gate_key, shape) + 3)
    return *_attention_inputs(key, sizes, dtype), log_decay


def _rwkv6_inputs(key, sizes, dtype):
    key, bonus_key = jax.random.split(key)
    bonus = jax.random.normal(bonus_key, (sizes.heads, sizes.key_dim))
    return *_channel_gated_inputs(key, sizes, dtype), bonus


def _slot_inputs(key, sizes, dtype):
    inputs = _channel_gated_inputs(key, sizes, dtype)
    return *inputs[:3], -jnp.expm1(inputs[3]), inputs[3]


def _level_inputs(key, sizes, dtype):
    key, level_key = jax.random.split(key)
    levels = (sizes.length - 1).bit_length() + 1
    shape = (sizes.batch, sizes.length, sizes.heads, levels)
    weights = jax.nn.softplus(jax.random.normal(level_key, shape))
    return *_gated_inputs(key, sizes, dtype), weights


def _ssd_inputs(key, sizes, dtype):
    shape = (sizes.batch, sizes.length, sizes.heads)
    state_shape = (sizes.batch, sizes.length, 1, sizes.key_dim)
    keys = jax.random.split(key, 5)
    x = jax.random.normal(keys[0], (*shape, sizes.value_dim))
    dt = jax.nn.softplus(jax.random.normal(keys[1], shape) - 3)
    A = -jax.random.uniform(keys[2], (sizes.heads,), minval=1.0, maxval=16.0)
    B = jax.random.normal(keys[3], state_shape) * sizes.key_dim**-0.5
    C = jax.random.normal(keys[4], state_shape)
    return x.astype(dtype), dt, A, B.astype(dtype), C.astype(dtype)


def _recurrence_inputs(key, sizes, dtype):
    shape = (sizes.batch, sizes.length, sizes.heads * sizes.value_dim)
    x_key, gate_key = jax.random.split(key)
    x = jax.random.normal(x_key, shape)
    log_decay = jax.nn.log_sigmoid(jax.random.normal(gate_key, shape) + 3)
    return x.astype(dtype), log_decay


def _selective_inputs(key, sizes, dtype):
    channels, states = sizes.heads * sizes.value_dim, 16  # as Mamba has them
    shape = (sizes.batch, sizes.length, channels)
    state_shape = (sizes.batch, sizes.length, 1, states)
    keys = jax.random.split(key, 4)
    x = jax.random.normal(keys[0], shape)
    dt = jax.nn.softplus(jax.random.normal(keys[1], shape) - 3)
    A = -jnp.broadcast_to(jnp.arange(1.0, states + 1), (channels, states))
    B = jax.random.normal(keys[2], state_shape)
    C = jax.random.normal(keys[3], state_shape)
    return x.astype(dtype), dt, A, B.astype(dtype), C.astype(dtype)


def _average_inputs(key, sizes, dtype):
    channels = sizes.heads * sizes.value_dim
    keys = jax.random.split(key, 4)
    shape = (sizes.batch, sizes.length, channels)
    k = jax.random.normal(keys[0], shape)
    v = jax.random.normal(keys[1], shape)
    log_decay = -jnp.exp(jax.random.normal(keys[2], (channels,)) - 2)
    bonus = jax.random.normal(keys[3], (channels,))
    return k.astype(dtype), v.astype(dtype), log_decay, bonus


def _convolution_inputs(key, sizes, dtype):
    width, channels = 4, sizes.heads * sizes.value_dim
    x_key, weight_key = jax.random.split(key)
    x = jax.random.normal(x_key, (sizes.batch, sizes.length, channels))
    weight = jax.random.normal(weight_key, (width, channels)) * width**-0.5
    return x.astype(dtype), weight.astype(dtype)


def _normalized_linear_attention(q, k, v, **form):
    return ops.linear_attention(q, k, v, normalize=True, **form)


CASES = {
    "linear_attention": Case(
        ops.linear_attention,
        _attention_inputs,
        baseline=baseline_scan.linear_attention,
    ),
    "linear_attention_normalized": Case(
        _normalized_linear_attention,
        _positive_inputs,
        baseline=baseline_scan.normalized_linear_attention,
    ),
    "retention": Case(
        ops.retention, _attention_inputs, baseline=baseline_scan.retention
    ),
    "lightning_attention": Case(
        ops.lightning_attention,
        _attention_inputs,
        baseline=baseline_scan.lightning_attention,
    ),
    "gated_linear_attention": Case(
        ops.gated_linear_attention,
        _gated_inputs,
        baseline=baseline_scan.gated_linear_attention,
    ),
    "gated_linear_attention_channel": Case(
        ops.gated_linear_attention,
        _channel_gated_inputs,
        forms=_CHANNEL_FORMS,
        baseline=baseline_scan.gated_linear_attention,
    ),
    "rwkv6": Case(
        ops.rwkv6,
        _rwkv6_inputs,
        forms=_CHANNEL_FORMS,
        baseline=baseline_scan.rwkv6,
    ),
    "ssd": Case(ops.ssd, _ssd_inputs, baseline=baseline_scan.ssd),
    "selective_scan": Case(
        ops.selective_scan,
        _selective_inputs,
        # parallel would hold T x T decays for every channel and state
        forms=("recurrent", "chunk"),
        baseline=baseline_scan.selective_scan,
    ),
    "rwkv4": Case(
        ops.rwkv4,
        _average_inputs,
        # parallel would hold T x T weights for every channel
        forms=("recurrent", "chunk"),
        baseline=baseline_scan.rwkv4,
    ),
    "linear_recurrence": Case(
        ops.linear_recurrence,
        _recurrence_inputs,
        # parallel would hold T x T decays for every channel
        forms=("recurrent", "chunk"),
        baseline=baseline_scan.linear_recurrence,
    ),
    "mlstm": Case(ops.mlstm, _mlstm_inputs, baseline=baseline_scan.mlstm),
    "log_linear_attention": Case(
        ops.log_linear_attention,
        _level_inputs,
        baseline=baseline_scan.log_linear_attention,
    ),
    "lightnet_attention": Case(
        ops.lightnet_attention,
        _attention_inputs,
        # parallel would hold T x T decays for every channel
        forms=("recurrent", "chunk"),
        baseline=baseline_scan.lightnet_attention,
    ),
    "gated_slot_attention": Case(
        ops.gated_slot_attention,
        _slot_inputs,
        # parallel would hold T x T decays for every slot
        forms=("recurrent", "chunk"),
        baseline=baseline_scan.gated_slot_attention,
    ),
    "delta_rule": Case(
        ops.delta_rule, _delta.delta_inputs, baseline=_delta.delta_rule
    ),
    "delta_rule_gated": Case(
        ops.delta_rule, _delta.gated_inputs, baseline=_delta.delta_rule
    ),
    "delta_rule_channel": Case(
        ops.delta_rule,
        _delta.channel_inputs,
        forms=_CHANNEL_FORMS,
        baseline=_delta.delta_rule,
    ),
    "gated_delta_product": Case(
        functools.partial(ops.gated_delta_product, num_householder=2),
        _delta.product_inputs,
        baseline=_delta.gated_delta_product,
    ),
    "comba": Case(ops.comba, _delta.comba_inputs, baseline=_delta.comba),
    "gated_delta_rule_2": Case(
        ops.gated_delta_rule_2,
        _delta.channel_strength_inputs,
        forms=_CHANNEL_FORMS,
        baseline=_delta.gated_delta_rule_2,
    ),
    "dplr_delta_rule": Case(
        ops.dplr_delta_rule,
        _delta.dplr_inputs,
        forms=_CHANNEL_FORMS,
        baseline=_delta.dplr_delta_rule,
    ),
    "softmax_attention": Case(ops.softmax_attention, _attention_inputs),
    "short_convolution": Case(
        ops.short_convolution, _convolution_inputs, forms=()
    ),
}
