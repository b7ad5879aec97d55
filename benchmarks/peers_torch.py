# pyright: reportMissingImports=false
r"""Our operators beside the CPU paths of Hugging Face Transformers.

    pip install torch transformers     # beside seqjax, in a Python of their own
    python -m benchmarks.peers_torch --ops=gated_delta_rule,kda --repeats=9

Both sides run in one process, in turn, on the same float32 inputs, PyTorch with
as many threads as --threads says. B = 1, T = 2048, H = 4, K = V = 64; Mamba-1
has D = 256 channels of N = 16 states, RG-LRU 256 channels. forward: y alone.
both: y and the gradients of all inputs. difference: ||a - b|| / ||b|| of the
two outputs, so that the rivals are seen to compute the same function. What is
timed is the sequence mixing: layers of theirs that cannot be had without
projections get the identity for those. Neither torch nor transformers is a
dependency of seqjax.

glibc gives large blocks back to the system and faults them in again, which
costs PyTorch up to three times its time on some machines (Mamba-2: 54 ms for
21). To see both sides at their best, keep the blocks:

    export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=268435456 \
        MALLOC_TRIM_THRESHOLD_=8589934592
"""

from collections.abc import Callable, Sequence
import json
import os
import pathlib
import platform
import time
from typing import Any, NamedTuple

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _timing
from seqjax import ops
from seqjax.training import provenance

LENGTH, HEADS, WIDTH, CHANNELS, STATES = 2048, 4, 64, 256, 16


class Rivals(NamedTuple):
    """One operator, twice.

    Attributes:
      inputs: float32 arrays by name, in our layout.
      ours: of jax arrays in the order of `inputs`; returns y.
      theirs: of torch tensors in the order of `inputs`; returns y as ours.
      most: runs at most, where theirs takes seconds each.
    """

    inputs: dict[str, np.ndarray]
    ours: Callable[..., jax.Array]
    theirs: Callable[..., Any]
    most: int | None = None


class Row(NamedTuple):
    """Medians in milliseconds; times_faster is theirs over ours."""

    operator: str
    direction: str
    runs: int
    ours: float
    theirs: float
    times_faster: float
    difference: float


def _draw(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _log_sigmoid(x):
    return -np.logaddexp(0, -x).astype(np.float32)


def _tokens(rng):
    shape = (1, LENGTH, HEADS, WIDTH)
    return {name: _draw(rng, *shape) for name in "qkv"}


def _delta_inputs(rng, gate_width=()):
    inputs = _tokens(rng)
    inputs["k"] = _unit(inputs["k"])
    beta = 1 / (1 + np.exp(-_draw(rng, 1, LENGTH, HEADS)))
    log_decay = _log_sigmoid(_draw(rng, 1, LENGTH, HEADS, *gate_width) + 3)
    return inputs | {"beta": beta, "log_decay": log_decay}


def gated_delta_rule(rng) -> Rivals:
    """Qwen3-Next's chunked gated delta rule."""
    from transformers.models.qwen3_next import modeling_qwen3_next as peer

    def theirs(q, k, v, beta, g):
        return peer.torch_chunk_gated_delta_rule(q, k, v, g, beta)[0]

    return Rivals(_delta_inputs(rng), lambda *x: ops.delta_rule(*x)[0], theirs)


def kda(rng) -> Rivals:
    """Kimi Linear's chunked delta attention with channel gates."""
    from transformers.models.kimi_linear import modeling_kimi_linear as peer

    def theirs(q, k, v, beta, g):
        return peer.chunk_kimi_delta_attention(q, k, v, g, beta)[0]

    return Rivals(
        _delta_inputs(rng, (WIDTH,)),
        lambda *x: ops.delta_rule(*x)[0],
        theirs,
        most=3,
    )


def mamba2(rng) -> Rivals:
    """Mamba-2's chunked scan, chunks of 64."""
    from transformers.models.mamba2 import modeling_mamba2 as peer

    inputs = {
        "x": _draw(rng, 1, LENGTH, HEADS, WIDTH),
        "dt": np.logaddexp(0, _draw(rng, 1, LENGTH, HEADS) - 3),
        "A": -rng.uniform(1, 16, HEADS).astype(np.float32),
        "B": _draw(rng, 1, LENGTH, 1, WIDTH) * WIDTH**-0.5,
        "C": _draw(rng, 1, LENGTH, 1, WIDTH),
    }

    def theirs(x, dt, A, B, C):
        return peer.mamba2_chunk_scan(x, dt, A, B, C, chunk_size=64)

    return Rivals(inputs, lambda *x: ops.ssd(*x)[0], theirs)


def lightning(rng) -> Rivals:
    """MiniMax's lightning attention, its projections the identity."""
    import torch
    from transformers.models.minimax import configuration_minimax
    from transformers.models.minimax import modeling_minimax as peer

    config = configuration_minimax.MiniMaxConfig(
        hidden_size=HEADS * WIDTH,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        num_hidden_layers=2,
        head_dim=WIDTH,
        layer_types=["linear_attention", "linear_attention"],
    )
    layer = peer.MiniMaxLightningAttention(config, 0)
    for name in ("qkv_proj", "out_proj", "norm", "act_fn"):
        setattr(layer, name, torch.nn.Identity())

    class Open(torch.nn.Module):
        """An output gate whose sigmoid is 1."""

        def forward(self, x):
            return x.new_full((*x.shape[:2], HEADS * WIDTH), 40.0)

    layer.output_gate = Open()
    log_decay = -layer.slope_rate.ravel().numpy()

    def theirs(q, k, v):
        mixed = layer(torch.cat([q, k, v], -1).flatten(2), None, None)[0]
        return mixed.unflatten(-1, (HEADS, WIDTH))

    def ours(q, k, v):
        decay = jnp.asarray(log_decay)
        return ops.lightning_attention(q, k, v, log_decay=decay)[0]

    return Rivals(_tokens(rng), ours, theirs)


def mlstm(rng) -> Rivals:
    """xLSTM's chunkwise mLSTM."""
    from transformers.models.xlstm import modeling_xlstm as peer

    gates = {
        "input_gate": _draw(rng, 1, LENGTH, HEADS),
        "forget_gate": _draw(rng, 1, LENGTH, HEADS) + 3,
    }

    def theirs(q, k, v, i, f):
        q, k, v, i, f = (
            x.transpose(1, 2).contiguous() for x in (q, k, v, i, f)
        )
        y = peer.mlstm_chunkwise_native_autograd(q, k, v, igate=i, fgate=f)
        return y.transpose(1, 2)

    return Rivals(_tokens(rng) | gates, lambda *x: ops.mlstm(*x)[0], theirs)


def mamba1(rng) -> Rivals:
    """Mamba-1's selective scan."""
    from transformers.models.mamba import modeling_mamba as peer

    inputs = {
        "x": _draw(rng, 1, LENGTH, CHANNELS),
        "dt": np.logaddexp(0, _draw(rng, 1, LENGTH, CHANNELS) - 3),
        "A": -rng.uniform(1, 16, (CHANNELS, STATES)).astype(np.float32),
        "B": _draw(rng, 1, LENGTH, 1, STATES),
        "C": _draw(rng, 1, LENGTH, 1, STATES),
    }

    def theirs(x, dt, A, B, C):
        x, dt, B, C = (
            a.transpose(1, 2) for a in (x, dt, B[:, :, 0], C[:, :, 0])
        )
        return peer.mamba_selective_scan(x, dt, A, B, C).transpose(1, 2)

    return Rivals(inputs, lambda *x: ops.selective_scan(*x)[0], theirs, most=1)


def rg_lru(rng) -> Rivals:
    """RecurrentGemma's scan, its gates already applied."""
    import torch
    from transformers.models.recurrent_gemma import (
        modeling_recurrent_gemma as peer,
    )

    shape = (1, LENGTH, CHANNELS)
    inputs = {
        "x": _draw(rng, *shape),
        "log_decay": _log_sigmoid(_draw(rng, *shape) + 3),
    }
    scan = peer.RecurrentGemmaRglru._rnn_scan
    first = torch.zeros(1, LENGTH, 1, dtype=torch.bool)

    def theirs(x, log_decay):
        return scan(None, x, log_decay.exp(), first, None)[0]

    return Rivals(
        inputs, lambda *x: ops.linear_recurrence(*x)[0], theirs, most=3
    )


RIVALS = {
    "gated_delta_rule": gated_delta_rule,
    "kda": kda,
    "mamba2": mamba2,
    "lightning": lightning,
    "mlstm": mlstm,
    "mamba1": mamba1,
    "rg_lru": rg_lru,
}


def measure(name: str, repeats: int) -> list[Row]:
    """Times one operator of both sides, forward and both directions."""
    import torch

    rng = np.random.default_rng(0)
    rivals = RIVALS[name](rng)
    values = [np.asarray(x, np.float32) for x in rivals.inputs.values()]
    arrays = [jnp.asarray(x) for x in values]
    tensors = [torch.from_numpy(x).requires_grad_() for x in values]

    with torch.no_grad():
        expected = rivals.theirs(*tensors).numpy()
    weight = _draw(rng, *expected.shape)
    ct, ct_torch = jnp.asarray(weight), torch.from_numpy(weight)

    forward = jax.jit(rivals.ours)

    @jax.jit
    def both(ct, *inputs):
        y, pull = jax.vjp(rivals.ours, *inputs)
        return y, pull(ct)

    def their_forward():
        with torch.no_grad():
            rivals.theirs(*tensors)

    def their_both():
        torch.autograd.grad(rivals.theirs(*tensors), tensors, ct_torch)

    y = np.asarray(forward(*arrays))
    difference = float(np.linalg.norm(y - expected) / np.linalg.norm(expected))
    rows = []
    for direction, ours, theirs in (
        ("forward", lambda: forward(*arrays), their_forward),
        ("both", lambda: both(ct, *arrays), their_both),
    ):
        count = min(repeats, rivals.most or repeats)
        a, b = _timing.interleave([ours, theirs], count)
        rows.append(
            Row(
                name,
                direction,
                count,
                a.median,
                b.median,
                b.median / a.median,
                difference,
            )
        )
    return rows


def line(row: Row) -> str:
    """One line of the printed table."""
    return (
        f"{row.operator:20}{row.direction:>10}{row.runs:>6}{row.ours:12.2f}"
        f"{row.theirs:12.2f}{row.times_faster:10.2f}{row.difference:14.1e}"
    )


def about() -> dict[str, Any]:
    """Where and with what the table was made, for its JSON file."""
    import torch
    import transformers

    return {
        "settings": {
            "threads": flags.FLAGS.threads,
            "malloc": {
                name: value
                for name, value in sorted(os.environ.items())
                if name.startswith("MALLOC_")
            },
        },
        "jax": jax.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "commit": provenance.git_hash(),
        "when": time.strftime("%Y-%m-%d"),
    }


def main(argv: Sequence[str]) -> None:
    """Prints the table; writes it with versions where --json says."""
    import torch
    import transformers

    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}; see --help")
    unknown = sorted(set(flags.FLAGS.ops) - set(RIVALS))
    if unknown:
        raise app.UsageError(
            f"--ops names {', '.join(unknown)}; there are {', '.join(RIVALS)}"
        )
    torch.set_num_threads(flags.FLAGS.threads)
    print(
        f"jax {jax.__version__}, torch {torch.__version__}, transformers"
        f" {transformers.__version__}, {flags.FLAGS.threads} threads, medians"
    )
    print(
        f"{'operator':20}{'direction':>10}{'runs':>6}{'ours ms':>12}"
        f"{'theirs ms':>12}"
        f"{'x faster':>10}{'difference':>14}"
    )
    rows = []
    for name in flags.FLAGS.ops:
        for row in measure(name, flags.FLAGS.repeats):
            print(line(row), flush=True)
            rows.append(row)
    if flags.FLAGS.json:
        facts = about()
        facts["rows"] = [row._asdict() for row in rows]
        pathlib.Path(flags.FLAGS.json).write_text(
            json.dumps(facts, indent=1) + "\n"
        )


if __name__ == "__main__":
    flags.DEFINE_list("ops", list(RIVALS), "Operators to compare.")
    flags.DEFINE_integer("repeats", 9, "Measured runs of each.", 1)
    flags.DEFINE_integer("threads", 2, "Threads of PyTorch.", 1)
    flags.DEFINE_string("json", None, "Where to write the table as JSON.")
    app.run(main)
