"""Checkpoints of other projects, loaded once, and what they are run with.

Two programs a family serve all its tests: values and gradients of padded calls
with a cache, and sixteen decode steps.
"""

from collections.abc import Callable
import functools
import pathlib
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import generation
from seqjax import interop
from seqjax import models
from seqjax.interop import saving

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "golden" / "models"
# Rows, tokens and capacity of every call.
B, T, CAPACITY = 2, 150, 200
VOCAB, STEPS = 97, 16
# Tensors of a file that are others, or parts of one, while a model is trained.
EXPERTS = (
    (r"experts\.\d+\.(gate|up)_proj\.weight", "experts.gate_up_proj"),
    (r"experts\.\d+\.down_proj\.weight", "experts.down_proj"),
)
MIXTRAL = (
    (r"block_sparse_moe", "mlp"),
    (r"experts\.\d+\.w[13]\.weight", "experts.gate_up_proj"),
    (r"experts\.\d+\.w2\.weight", "experts.down_proj"),
)
KDA = (
    (r"\.[qkv]_conv1d", ".conv1d"),
    (
        r"self_attn\.(f_a_proj|f_b_proj|f_proj|dt_bias|A_log)",
        r"self_attn.forget_gate.\1",
    ),
)
RENAMED = {
    "bailing_hybrid": (
        (r"word_embeddings", "embed_tokens"),
        (r"\.attention\.dense", ".attention.o_proj"),
        (r"\.attention\.", ".self_attn."),
        *KDA,
        *EXPERTS,
    ),
    "granitemoehybrid": (
        (r"moe\.input_linear\.weight", "moe.experts.gate_up_proj"),
        (r"moe\.output_linear\.weight", "moe.experts.down_proj"),
        (r"router\.layer\.weight", "router.weight"),
    ),
    "jamba": EXPERTS,
    "kimi_linear": (*KDA, *MIXTRAL),
    "minimax": MIXTRAL,
    "nemotron_h": (
        (r"^backbone", "model"),
        (r"experts\.\d+\.(up|down)_proj\.weight", r"experts.\1_proj"),
    ),
    "olmo_hybrid": (
        (r"attention_layer_norm", "input_layernorm"),
        (r"feedforward_layer_norm", "post_attention_layernorm"),
        (r"\.[qkv]_conv1d", ".conv1d"),
    ),
    "qwen3_next": EXPERTS,
}


class Loaded(NamedTuple):
    """A model, its parameters, what is known of it, and its program."""

    model: models.LanguageModel
    params: dict
    golden: dict[str, np.ndarray]
    call: Callable


@functools.cache
def load(family: str) -> Loaded:
    model, params = interop.load(FOLDER / family, progress=False)
    with np.load(FOLDER / family / "golden.npz") as arrays:
        golden = dict(arrays)

    @jax.jit
    def call(params, tokens, cache, ids):
        def loss(params):
            logits, after = model.apply(params, tokens, cache, ids)
            likely = jax.nn.log_softmax(logits[:, :-1])
            targets = jnp.where(ids[:, 1:] < 0, 0, tokens[:, 1:])
            picked = jnp.take_along_axis(likely, targets[..., None], axis=-1)
            real = (ids[:, 1:] >= 0) & (ids[:, :-1] >= 0)
            total = jnp.sum(jnp.where(real, picked[..., 0], 0))
            return -total / jnp.maximum(jnp.sum(real), 1), (logits, after)

        found = jax.value_and_grad(loss, has_aux=True)(params)
        (value, (logits, after)), grads = found
        return logits, after, value, grads

    return Loaded(model, params, golden, call)


def run(family, tokens, ids=None, cache=None):
    """Logits, cache, loss and gradients of rows padded to one program.

    Args:
      family: name of a folder.
      tokens: int [rows, t], at most B rows of T tokens.
      ids: segment ids alike; None for one document without padding.
      cache: what an earlier run returned; None for an empty one.

    Returns:
      logits [rows, t, vocab], the cache, the loss, its gradients.
    """
    loaded = load(family)
    tokens = np.asarray(tokens)
    rows, length = tokens.shape
    if ids is None:
        ids = np.zeros_like(tokens)
    pad = ((0, B - rows), (0, T - length))
    if cache is None:
        cache = loaded.model.init_cache(B, CAPACITY)
    logits, cache, loss, grads = loaded.call(
        loaded.params,
        np.pad(tokens, pad).astype(np.int32),
        cache,
        np.pad(ids, pad, constant_values=-1).astype(np.int32),
    )
    return np.asarray(logits[:rows, :length]), cache, loss, grads


@functools.cache
def whole(family):
    """The golden input in one pass."""
    return run(family, load(family).golden["input_ids"])


def decode(family, logits, cache):
    """Sixteen greedy tokens a row, and the state after them."""
    loaded = load(family)
    state = generation.DecodeCache(
        jax.tree.map(jnp.copy, cache), jnp.asarray(logits), jnp.zeros(B, bool)
    )
    return generation.decode(loaded.model, loaded.params, state, STEPS)


def gradient_norms(family, grads) -> dict[str, float]:
    """The norm of each of the other project's gradients."""
    squares = {}
    for name, grad in saving.tensors(load(family).model, grads):
        for pattern, memory in RENAMED.get(family, ()):
            name = re.sub(pattern, memory, name)
        square = np.sum(np.square(grad.astype(np.float64)))
        squares[name] = squares.get(name, 0) + square
    return {name: float(np.sqrt(found)) for name, found in squares.items()}


def error(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / (np.linalg.norm(b) + 1e-6 * b.size**0.5)
