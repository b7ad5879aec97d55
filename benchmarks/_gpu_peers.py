# pyright: reportMissingImports=false
"""Peers through torch on the same GPU, skipped where they are not installed."""

from collections.abc import Callable
import importlib
from typing import Any

import numpy as np

# Name of the case's peer -> (module, function, our name of its gate).
_FLA = {
    "linear_attn": ("fla.ops.linear_attn", "chunk_linear_attn", None),
    "retention": ("fla.ops.retention", "chunk_retention", None),
    "simple_gla": ("fla.ops.simple_gla", "chunk_simple_gla", "log_decay"),
    "gla": ("fla.ops.gla", "chunk_gla", "log_decay"),
}
# Whose output is normalised unless told otherwise.
_OPTIONS = {"linear_attn": {"normalize": False}}


def why_not(peer: str) -> str | None:
    """Why a peer cannot run here, or None.

    Args:
      peer: "sdpa" for torch's softmax attention, else a name of the case table.
    """
    try:
        torch = importlib.import_module("torch")
        if not torch.cuda.is_available():
            return "this torch has no CUDA"
        if peer != "sdpa":
            module, function, _ = _FLA[peer]
            getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def call(peer: str) -> Callable[..., Any]:
    """The peer as a function of tensors by our names, in our layout."""
    torch = importlib.import_module("torch")
    if peer == "sdpa":

        def attention(q, k, v):
            q, k, v = (a.transpose(1, 2) for a in (q, k, v))
            y = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True
            )
            return y.transpose(1, 2)

        return attention
    module, name, gate = _FLA[peer]
    function = getattr(importlib.import_module(module), name)

    def run(q, k, v, **rest):
        extra = {} if gate is None else {"g": rest[gate]}
        return function(q, k, v, **extra, **_OPTIONS.get(peer, {}))[0]

    return run


def tensors(arrays: dict[str, np.ndarray], tokens: set[str]) -> dict[str, Any]:
    """Arrays on the GPU, `tokens` in bfloat16; all take gradients."""
    torch = importlib.import_module("torch")
    made = {}
    for name, value in arrays.items():
        tensor = torch.from_numpy(value).cuda()
        if name in tokens:
            tensor = tensor.to(torch.bfloat16)
        made[name] = tensor.detach().requires_grad_()
    return made


def starts(
    peer: str, inputs: list[dict[str, Any]]
) -> tuple[Callable[[int], Any], Callable[[int], Any], Callable[[Any], Any]]:
    """(forward alone, forward and backward, wait) for `_gpu_measure.median_ms`.

    Args:
      peer: as in `call`.
      inputs: copies of the inputs that take turns.
    """
    torch = importlib.import_module("torch")
    run = call(peer)
    bar = torch.ones_like(inputs[0]["v"])

    def forward(i):
        with torch.no_grad():
            return run(**inputs[i % len(inputs)])

    def both(i):
        given = inputs[i % len(inputs)]
        return torch.autograd.grad(run(**given), list(given.values()), bar)

    def wait(_):
        torch.cuda.synchronize()

    return forward, both, wait
