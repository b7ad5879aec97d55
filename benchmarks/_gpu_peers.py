# pyright: reportMissingImports=false
"""Peers through torch on the same GPU, skipped where they are not installed.

flash-linear-attention's layout is ours, [B, T, H, D], its gates are natural
logarithms, its default scale is K**-0.5, and it returns (y, state).  Written
for its releases 0.4 to 0.6.
"""

from collections.abc import Callable, Sequence
import importlib
import inspect
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class _Peer(NamedTuple):
    """A function that stands against a case.

    Attributes:
      modules: of which the first that is there has it; releases differ.
      chunk: its name.
      step: name of that for one token, "" for none.
      gate: what `chunk` calls our log_decay, or gate.
      step_gate: what `step` calls it.
      options: of `chunk`.
    """

    modules: tuple[str, ...]
    chunk: str
    step: str = ""
    gate: str = ""
    step_gate: str = ""
    options: tuple[tuple[str, Any], ...] = ()


# By name of the case.
PEERS = {
    "linear_attention": _Peer(
        ("fla.ops.linear_attn",),
        "chunk_linear_attn",
        "fused_recurrent_linear_attn",
        options=(("normalize", False),),  # the default divides
    ),
    "retention": _Peer(
        ("fla.ops.retention",), "chunk_retention", "fused_recurrent_retention"
    ),
    "simple_gla": _Peer(
        ("fla.ops.simple_gla",),
        "chunk_simple_gla",
        "fused_recurrent_simple_gla",
        "g",
        "g",
    ),
    "gla": _Peer(
        ("fla.ops.gla",), "chunk_gla", "fused_recurrent_gla", "g", "gk"
    ),
    "short_convolution": _Peer(
        ("fla.modules.causal_conv1d", "fla.modules.convolution"),
        "causal_conv1d",
        options=(("activation", "silu"),),
    ),
    "gated_rms_norm": _Peer(
        ("fla.modules.norm.fused_norm_gate", "fla.modules.fused_norm_gate"),
        "rms_norm_gated",
        gate="g",
        options=(("bias", None), ("activation", "silu"), ("eps", 1e-5)),
    ),
}


class Starts(NamedTuple):
    """What `_gpu_measure.median_ms` calls.

    Attributes:
      forward: starts call number i of y alone.
      both: of y and all gradients.
      wait: waits for all.
      peak_bytes: of one call with gradients, inputs counted once.
    """

    forward: Callable[[int], Any]
    both: Callable[[int], Any]
    wait: Callable[[Any], Any]
    peak_bytes: Callable[[], int]


def why_not(name: str, step: bool = False) -> str | None:
    """Why a peer cannot run here, or None.

    Args:
      name: "sdpa" for torch's softmax attention, else a name of the case table.
      step: of one token that reads and writes a state.
    """
    if name != "sdpa":
        if name not in PEERS:
            return "flash-linear-attention has none"
        if step and not PEERS[name].step:
            return "its step is not called here"
    try:
        torch = importlib.import_module("torch")
        if not torch.cuda.is_available():
            return "this torch has no CUDA"
        if name != "sdpa":
            _function(PEERS[name], step)
    except Exception as error:  # whatever a broken installation raises
        return f"{type(error).__name__}: {error}"
    return None


def _function(peer: _Peer, step: bool) -> Callable[..., Any]:
    *others, last = peer.modules
    for name in others:
        try:
            module = importlib.import_module(name)
            break
        except ImportError:
            continue
    else:
        module = importlib.import_module(last)
    return getattr(module, peer.step if step else peer.chunk)


def call(name: str, step: bool = False) -> Callable[..., Any]:
    """The peer as a function of tensors by our names, in our layout."""
    torch = importlib.import_module("torch")
    if name == "sdpa":

        def attention(q, k, v):
            q, k, v = (a.transpose(1, 2) for a in (q, k, v))
            y = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True
            )
            return y.transpose(1, 2)

        return attention
    peer = PEERS[name]
    function = _function(peer, step)
    options = {} if step else dict(peer.options)
    if step:
        options["output_final_state"] = True
    known = inspect.signature(function).parameters
    if "head_first" in known and known["head_first"].default:
        options["head_first"] = False  # releases up to 0.1
    gate = peer.step_gate if step else peer.gate

    def run(**given):
        for ours in ("log_decay", "gate"):
            if ours in given:
                given[gate] = given.pop(ours)
        made = function(**given, **options)
        return made[0] if isinstance(made, tuple) and not step else made

    return run


def tensor(value: np.ndarray) -> Any:
    """An array on the GPU, bit for bit."""
    torch = importlib.import_module("torch")
    value = np.ascontiguousarray(value)
    if value.dtype != jnp.bfloat16:
        return torch.from_numpy(value).cuda()
    bits = torch.from_numpy(value.view(np.int16))
    return bits.cuda().view(torch.bfloat16)


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """A case's arrays on the GPU, in the peer's layout; all take gradients."""
    made = {}
    for name, value in arrays.items():
        if name == "weight":
            value = value.T  # [D, W], weight[:, -1] meets the current token
        made[name] = tensor(value).requires_grad_()
    return made


def values(
    name: str, arrays: dict[str, np.ndarray], y_bar: np.ndarray
) -> list[np.ndarray]:
    """y and all gradients, in our layout."""
    torch = importlib.import_module("torch")
    given = tensors(arrays)
    y = call(name)(**given)
    bars = torch.autograd.grad(y, list(given.values()), tensor(y_bar))
    made = [a.detach().float().cpu().numpy() for a in (y, *bars)]
    names = ["y", *arrays]
    return [
        a.T if n == "weight" else a for n, a in zip(names, made, strict=True)
    ]


def starts(
    name: str,
    inputs: Sequence[dict[str, np.ndarray]],
    y_bar: np.ndarray,
    step: bool = False,
) -> Starts:
    """What is timed, after one call of each has compiled and tuned it.

    Args:
      name: as in `why_not`.
      inputs: copies of the arrays, which take turns.
      y_bar: cotangent of y.
      step: as in `why_not`.
    """
    torch = importlib.import_module("torch")
    torch.cuda.empty_cache()
    run = call(name, step)
    given = [tensors(arrays) for arrays in inputs]
    bar = tensor(y_bar)

    def forward(i):
        with torch.no_grad():
            return run(**given[i % len(given)])

    def both(i):
        some = given[i % len(given)]
        y = run(**some)
        return y, torch.autograd.grad(y, list(some.values()), bar)

    def wait(_):
        torch.cuda.synchronize()

    def peak_bytes():
        wait(None)
        torch.cuda.reset_peak_memory_stats()
        both(0)
        wait(None)
        others = sum(
            t.numel() * t.element_size()
            for some in given[1:]
            for t in some.values()
        )
        return torch.cuda.max_memory_allocated() - others

    wait(forward(0))
    if not step:
        wait(both(0))
    return Starts(forward, both, wait, peak_bytes)
