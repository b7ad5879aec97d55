"""Loads a checkpoint, tensor by tensor, on to its devices.

Each parameter is made on its devices first; then every tensor is read, sent and
written into its place before the next one is read, into the same memory.  So
the host holds one tensor beside the model, also where the layers of a pattern
are stacked in one parameter or projections are fused.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import models
from seqjax.interop import asides
from seqjax.interop import checkpoint
from seqjax.interop import config as config_lib
from seqjax.interop import hub
from seqjax.interop import progress as progress_lib
from seqjax.interop import safetensors
from seqjax.interop import tables
from seqjax.parallel import sharding

DTYPES = ("float32", "bfloat16", "float16", "float64")


def describe(path: str | pathlib.Path) -> config_lib.Config:
    """The config of a checkpoint's model; all is checked, nothing is loaded.

    Args:
      path: as for `load`.

    Raises:
      ValueError: as `load`.
    """
    folder = hub.folder(path)
    return _plan(folder, safetensors.entries(folder)).config


def load(
    path: str | pathlib.Path,
    *,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
    rules: sharding.ShardingRules = sharding.ShardingRules(),  # noqa: B008
    progress: bool = True,
) -> tuple[models.LanguageModel, dict[str, Any]]:
    """A model and its parameters from another project's checkpoint.

    Args:
      path: a folder with config.json and safetensors, or a hub id such as
        "owner/name" where huggingface_hub is installed.
      dtype: of the parameters; None for what the files hold.  The model
        computes in bfloat16 where its embedding is bfloat16, else in float32
        (float64); dataclasses.replace(model.config, dtype=...) changes that.
      mesh: with axes as `seqjax.parallel.mesh` makes them; None for the
        default device.
      rules: which axis of which parameter goes to which axis of the mesh.
      progress: whether a bar is shown on standard error.

    Returns:
      The model and its variables, {"params": ...}.

    Raises:
      ValueError: an unknown architecture, unsupported options, tensors that are
        missing, not known or of another shape: all of them named, before any
        parameter is made.
    """
    folder = hub.folder(path)
    entries = safetensors.entries(folder)
    plan = _plan(folder, entries)
    left = asides.found(plan.asides, entries)
    asides.check(plan.constants, left, entries)
    asides.say(left, entries)
    entries = {n: entry for n, entry in entries.items() if n not in left}
    dtypes = _dtypes(plan.links, entries, dtype)
    computed = np.dtype(dtypes["embedding"]).name
    config = dataclasses.replace(
        plan.config, dtype="float32" if computed == "float16" else computed
    )
    placed = _shardings(plan.abstract, mesh, rules)
    wanted = checkpoint.leaves(plan.abstract)
    params = {
        path: _empty(wanted[path].shape, dtypes[path], placed[path])
        for path in wanted
    }
    total = sum(safetensors.size(entry) for entry in entries.values())
    bar = progress_lib.Bar(total, progress)
    buffer = safetensors.aligned(
        max(safetensors.size(entry) for entry in entries.values())
    )
    for name, links in tables.by_tensor(plan.links).items():
        tensor = safetensors.read(entries[name], buffer)
        for link in links:
            how = link._replace(theirs="", ours="", index=())
            old = params[link.ours]
            params[link.ours] = (
                _write(old, tensor, how, link.index)
                if mesh is None
                else _write_on_mesh(old, tensor, link)
            )
            del old
            # The next tensor overwrites this one.
            params[link.ours].block_until_ready()
        bar.advance(tensor.nbytes)
    bar.close()
    tree = jax.tree_util.tree_map_with_path(
        lambda path, _: params[sharding.path_name(path)],
        plan.abstract["params"],
    )
    return models.LanguageModel(config), {"params": tree}


def checked_dtype(dtype: Any) -> np.dtype:
    """A dtype that parameters may have.

    Raises:
      ValueError: it is no dtype, or not one to compute with.
    """
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in DTYPES:
        raise ValueError(
            f"dtype must be one of {DTYPES} or None, got {dtype!r}"
        )
    return found


def _plan(
    folder: pathlib.Path, entries: dict[str, safetensors.Entry]
) -> checkpoint.Plan:
    shapes = {name: entry.shape for name, entry in entries.items()}
    plan = checkpoint.plan(checkpoint.read_config(folder), shapes)
    checkpoint.check_tensors(plan, entries)
    return plan


def _empty(shape: tuple[int, ...], dtype: Any, placed: Any) -> jax.Array:
    """A parameter to be filled; what no tensor fills stays 0."""
    return jnp.zeros(shape, dtype, device=placed)


def _write_on_mesh(
    param: jax.Array, tensor: np.ndarray, link: tables.Link
) -> jax.Array:
    """Writes a region into a parameter that is split over devices.

    A device is sent what it keeps.  Where a region is a part of an axis that is
    split, it is widened to the whole axis and the rest of it masked: an update
    at an offset would gather the whole parameter on every device.
    """
    region, placed = tables.forward(link, tensor), param.sharding
    assert isinstance(placed, jax.sharding.NamedSharding)
    spec = [*placed.spec] + [None] * (param.ndim - len(placed.spec))
    wide = tuple(
        size if axis is None else param.shape[i]
        for i, (axis, size) in enumerate(zip(spec, region.shape, strict=True))
    )
    low = np.where(np.equal(wide, region.shape), 0, link.index)
    high = low + region.shape
    index = np.where(np.equal(wide, region.shape), link.index, 0)

    def part(where: Any) -> np.ndarray:
        spans = [s.indices(n)[:2] for s, n in zip(where, wide, strict=True)]
        sent = np.zeros([b - a for a, b in spans], region.dtype)
        both = [
            (max(a, first), min(b, last))
            for (a, b), first, last in zip(spans, low, high, strict=True)
        ]
        if all(a < b for a, b in both):
            to = tuple(
                slice(a - start, b - start)
                for (a, b), (start, _) in zip(both, spans, strict=True)
            )
            of = tuple(
                slice(a - first, b - first)
                for (a, b), first in zip(both, low, strict=True)
            )
            sent[to] = region[of]
        return sent

    split = jax.sharding.NamedSharding(
        placed.mesh, jax.sharding.PartitionSpec(*spec)
    )
    sent = jax.make_array_from_callback(wide, split, part)
    return _write_masked(param, sent, tuple(index), tuple(low), tuple(high))


@functools.partial(jax.jit, donate_argnums=0)
def _write_masked(param, sent, index, low, high):
    """Writes what is between two corners of an update, in place."""
    inside = jnp.ones(sent.shape, bool)
    for i, (first, last) in enumerate(zip(low, high, strict=True)):
        at = jax.lax.broadcasted_iota(jnp.int32, sent.shape, i)
        inside &= (at >= first) & (at < last)
    old = jax.lax.dynamic_slice(param, index, sent.shape)
    new = jnp.where(inside, sent.astype(param.dtype), old)
    return jax.lax.dynamic_update_slice(param, new, index)


@functools.partial(jax.jit, static_argnums=2, donate_argnums=0)
def _write(param, tensor, link, index):
    """Writes a region into a parameter where it lies."""
    region = tables.forward(link, tensor).astype(param.dtype)
    return jax.lax.dynamic_update_slice(param, region, index)


def _dtypes(
    links: list[tables.Link],
    entries: dict[str, safetensors.Entry],
    dtype: Any,
) -> dict[str, np.dtype]:
    """The dtype of each parameter of ours."""
    if dtype is not None:
        dtype = checked_dtype(dtype)
    found: dict[str, np.dtype] = {}
    for link in links:
        stored = dtype
        if stored is None and link.theirs is not None:
            stored = entries[link.theirs].dtype
        if stored is None:
            continue
        before = found.get(link.ours, stored)
        found[link.ours] = np.dtype(jnp.promote_types(before, stored))
    wide = sorted(p for p, d in found.items() if d == np.float64)
    if wide and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            f"float64 needs jax_enable_x64, for {wide}; turn it on "
            '(JAX_ENABLE_X64=1) or pass dtype="float32"'
        )
    small = sorted(p for p, d in found.items() if d.name not in DTYPES)
    if small:
        raise ValueError(
            f"{found[small[0]].name} parameters cannot be computed with, "
            f"{small}; pass dtype= one of {DTYPES}"
        )
    return found


def _shardings(abstract: Any, mesh: Any, rules: Any) -> dict[str, Any]:
    if mesh is None:
        # Left to JAX and bound to no device, as what `model.init` makes.
        return dict.fromkeys(checkpoint.leaves(abstract))
    return checkpoint.leaves(sharding.tree_shardings(abstract, mesh, rules))
