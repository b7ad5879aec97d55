"""What `softmax_attention` accepts, and what it says otherwise."""

import jax
import jax.numpy as jnp

from seqjax.ops import _contract
from seqjax.ops import _softmax_cache

_OP = "softmax_attention"
EXCHANGES = ("all_gather", "ring")


def check_shapes(q, k, v, sink, log_decay, segment_ids):
    """Binds the letters of all inputs but the cache."""
    shapes = _contract.Shapes(_OP)
    shapes.bind("q", q, "B T H K")
    shapes.bind("k", k, "B T Hk K")
    shapes.bind("v", v, "B T Hk V")
    shapes.divides("Hk", "H", "heads")
    if shapes["T"] == 0:
        raise ValueError(f"{_OP}: q must hold at least one token, got T = 0")
    if sink is not None:
        shapes.bind("sink", sink, "H")
    if log_decay is not None:
        shapes.bind("log_decay", log_decay, "B T H")
    _contract.check_segment_ids(_OP, shapes, segment_ids)
    return shapes


def check_options(causal, window, log_decay, initial_state, form, state_dtype):
    """Refuses options out of range, and what has no meaning backwards."""
    if not isinstance(causal, bool):
        raise ValueError(f"{_OP}: causal must be True or False, got {causal!r}")
    if window is not None:
        if (
            isinstance(window, bool)
            or not isinstance(window, int)
            or window < 1
        ):
            raise ValueError(
                f"{_OP}: window must be an int of at least 1 (a token sees "
                f"itself), or None, got {window!r}"
            )
    if causal:
        return
    reasons = {
        "window": (window is not None, "a window reaches back from a token"),
        "log_decay": (log_decay is not None, "a gate forgets the past"),
        "initial_state": (initial_state is not None, "a cache holds the past"),
        "state_dtype": (state_dtype is not None, "there is no state"),
        "form='recurrent'": (
            form == "recurrent",
            "the first token needs the last",
        ),
    }
    for name, (given, why) in reasons.items():
        if given:
            raise ValueError(
                f"{_OP}: {name} has no meaning with causal=False: {why}; leave "
                "it out, or use causal=True"
            )


def check_exchange(window, axis_name, exchange, form):
    """Refuses an exchange that softmax attention has not."""
    if axis_name is None or exchange is None:
        return
    if exchange not in EXCHANGES:
        raise ValueError(
            f"{_OP}: exchange must be one of {', '.join(EXCHANGES)} or None, "
            f"got {exchange!r}: keys and values do not compose to a map of a "
            "size independent of T"
        )
    if window is not None:
        raise ValueError(
            f"{_OP}: exchange={exchange!r} has no meaning with window={window}:"
            " only the window - 1 tokens in front of a shard are moved; leave "
            "it out"
        )
    if exchange == "ring" and form == "recurrent":
        raise ValueError(
            f"{_OP}: exchange='ring' needs form='chunk' or None, got form="
            "'recurrent'; use exchange='all_gather' with it"
        )


def check_state(shapes, state, window, log_decay, segment_ids, axis_name=None):
    """Requires a cache that fits the inputs and the window."""
    if not isinstance(state, _softmax_cache.AttentionState):
        raise ValueError(
            f"{_OP}: initial_state must be an AttentionState (see "
            f"attention_cache), got {type(state).__name__}"
        )
    shapes.bind("initial_state.k", state.k, "B S Hk K")
    shapes.bind("initial_state.v", state.v, "B S Hk V")
    for name, letters in (
        ("segment", "B S"),
        ("position", "B S"),
        ("length", "B"),
    ):
        x = getattr(state, name)
        shapes.bind(f"initial_state.{name}", x, letters)
        if jnp.result_type(x) != jnp.int32:
            raise ValueError(
                f"{_OP}: initial_state.{name} must be int32, got "
                f"{jnp.result_type(x).name}"
            )
    for name in ("log_decay", "log_decay_low"):
        x = getattr(state, name)
        if (x is None) != (log_decay is None):
            have, lack = "log_decay", f"initial_state.{name}"
            if log_decay is None:
                have, lack = lack, have
            raise ValueError(
                f"{_OP}: {have} is given and {lack} is None; a cache for a "
                "forget gate comes from attention_cache(..., gate_heads=H) and "
                "goes with log_decay"
            )
        if x is not None:
            shapes.bind(f"initial_state.{name}", x, "B S H")
    if window is not None and shapes["S"] != window - 1:
        raise ValueError(
            f"{_OP}: initial_state holds {shapes['S']} tokens and window="
            f"{window} needs {window - 1}; make it with attention_cache(..., "
            f"window={window})"
        )
    tokens = shapes["T"]
    if axis_name is not None:
        tokens *= jax.lax.axis_size(axis_name)
    if window is None and segment_ids is None and tokens > shapes["S"]:
        raise ValueError(
            f"{_OP}: initial_state holds {shapes['S']} tokens and cannot take "
            f"{tokens} more; make it larger with attention_cache"
        )
