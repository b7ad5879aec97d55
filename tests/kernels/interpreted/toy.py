"""A kernel small enough to be wrong on purpose."""

# pyright: reportMissingImports=false

import triton
import triton.language as tl


@triton.jit
def toy_kernel(
    x,
    bias,
    w,
    y,
    T: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    MISTAKE: tl.constexpr,
):
    """y = x w + bias [T,K], or one of the mistakes that tests look for."""
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    k = tl.arange(0, K)
    mask = (t < T)[:, None]
    cells = t[:, None] * K + k[None, :]
    if MISTAKE == "reads beyond the end":
        mask = (t < T + BT)[:, None]
    tile = tl.load(x + cells, mask=mask, other=0.0)
    factors = tl.load(w + k[:, None] * K + k[None, :])
    out = tl.dot(tile, factors, input_precision="ieee")
    if bias is not None:
        out += tl.load(bias + k).to(tl.float32)[None, :]
    if MISTAKE == "arithmetic in bfloat16":
        out = (tile * tile).to(tl.float32)
    if MISTAKE == "exponential of a large number":
        out = tl.exp(out + 100.0)
    if MISTAKE == "leaves a row out":
        mask = (t < T - 1)[:, None]
    if MISTAKE == "writes beyond the end":
        mask = (t < T + 1)[:, None]
    if MISTAKE == "writes a row twice":
        cells = (t - tl.program_id(0))[:, None] * K + k[None, :]
    if MISTAKE == "overflows":
        mask = mask & ((t * 2**26)[:, None] >= 0)
    if MISTAKE == "writes an input":
        tl.store(x + cells, tile, mask=mask)
    if MISTAKE == "reads an output":
        out += tl.load(y + cells, mask=mask, other=0.0).to(tl.float32)
    if MISTAKE == "atomics":
        tl.atomic_add(y + cells, out.to(y.dtype.element_ty), mask=mask)
    tl.store(y + cells, out.to(y.dtype.element_ty), mask=mask)
