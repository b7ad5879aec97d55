"""What the launches of one call share: shapes, arithmetic, tiles.

Products are of bfloat16 operands where an input is bfloat16.  Else they are of
float32 operands, as three products of TF32: the digits of float32, on tensor
cores.  float16 is too narrow for states and scores, and so counts as float32.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

from seqjax_kernels.decay import configs

# As in `gates`.
NO_GATE, HEAD_GATE, TOKEN_GATE, CHANNEL_GATE = 0, 1, 2, 3


class Problem(NamedTuple):
    """What the launches of one call share; hashable."""

    batch: int
    length: int
    groups: int
    heads: int
    key: int
    value: int
    scale: float
    gate: int
    operand: str
    precision: str
    shares: int
    config: configs.Config

    @property
    def chunks(self) -> int:
        """Chunks of a row."""
        return -(-self.length // self.config.chunk)

    @property
    def state_dtype(self):
        """Of the states kept between launches: as products read them."""
        return jnp.bfloat16 if self.operand == "bf16" else jnp.float32


def chunk_sizes(q, k, v, log_decay) -> tuple[int, ...]:
    """Chunk sizes that the kernels have for these inputs."""
    return configs.chunk_sizes(
        wide=operand_of(q, k, v) == "fp32",
        channels=log_decay is not None and log_decay.ndim == 4,
    )


def make_problem(q, k, v, log_decay, scale, chunk_size) -> Problem:
    """Shapes, arithmetic and tiles of one call."""
    batch, length, groups, key = q.shape
    heads, value = v.shape[2:]
    operand = operand_of(q, k, v)
    precision = "ieee" if operand == "bf16" else "tf32x3"
    gate = NO_GATE
    if log_decay is not None:
        gate = {1: HEAD_GATE, 3: TOKEN_GATE, 4: CHANNEL_GATE}[log_decay.ndim]
    wide, repeat = operand == "fp32", heads // groups
    if gate == CHANNEL_GATE:
        return Problem(
            batch, length, groups, heads, key, value, float(scale), gate,
            operand, precision, repeat,
            configs.choose_channel(key, value, chunk_size, wide=wide),
        )  # fmt: skip
    shapes = functools.partial(configs.choose, key, value, chunk_size)
    config = shapes(wide=wide, grouped=repeat > 1)
    tiles = config.keys
    programs = batch * groups * -(-length // config.chunk)
    shares = configs.shares(programs * -(-key // tiles.key), repeat)
    if wide:
        shares = repeat  # no registers are left for sums over heads
    if shares == repeat:
        config = shapes(wide=wide, grouped=False)
    return Problem(
        batch, length, groups, heads, key, value, float(scale), gate, operand,
        precision, shares, config,
    )  # fmt: skip


def operand_of(*inputs) -> str:
    """Of matrix products of these inputs: "bf16" or "fp32"."""
    dtypes = {jnp.dtype(x.dtype).name for x in inputs}
    return "bf16" if "bfloat16" in dtypes else "fp32"


def constants(problem: Problem, tiles: configs.Tiles, **more) -> dict[str, Any]:
    """The constexpr arguments that all kernels have, and more."""
    return dict(
        T=problem.length,
        G=problem.groups,
        H=problem.heads,
        K=problem.key,
        V=problem.value,
        C=problem.config.chunk,
        GATE=problem.gate,
        DOT=problem.operand,
        PRECISION=problem.precision,
        BK=tiles.key,
        BV=tiles.value,
        **more,
    )
