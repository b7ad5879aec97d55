"""Writes a model in the layout of the project that it came from."""

from collections.abc import Iterator
import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np

from seqjax import models
from seqjax.interop import checkpoint
from seqjax.interop import safetensors
from seqjax.interop import tables

# Fields that may differ from what a config.json describes: where and how the
# model computes, not what.
_FREE = ("dtype", "remat")


def save(
    model: models.LanguageModel,
    params: dict[str, Any],
    out: str | pathlib.Path,
    *,
    like: str | pathlib.Path | None = None,
    max_file_bytes: int = 5 * 10**9,
) -> None:
    """Writes config.json and safetensors.

    What was loaded and is saved unchanged has the same bytes in every tensor.

    Args:
      model: as `load` returned it; or any model that `like` describes.
      params: its variables, each leaf on devices of this process.
      out: a folder, made if need be, that holds no checkpoint yet.
      like: a config.json that describes the model, for one that was not
        loaded; None for that of the model.
      max_file_bytes: a checkpoint beyond it is split into several files.

    Raises:
      ValueError: the model has no config.json or is not what it describes, the
        parameters do not fit, or `out` holds a checkpoint.
    """
    out = pathlib.Path(out)
    plan = _plan(model, params, like)
    _check_empty(out)
    ours, links = checkpoint.leaves(params), tables.by_tensor(plan.links)
    planned = [
        safetensors.Planned(name, _dtype(parts, ours), parts[0].shape)
        for name, parts in links.items()
    ]
    made = {constant.theirs: constant for constant in plan.constants}
    planned += [
        safetensors.Planned(name, np.dtype(ours["embedding"].dtype), one.shape)
        for name, one in made.items()
    ]
    # As others order them: wide dtypes first, then by name.
    planned.sort(key=lambda t: (-t.dtype.itemsize, t.name))
    out.mkdir(parents=True, exist_ok=True)
    files = safetensors.plan(planned, max_file_bytes)
    for name, kept in files:
        arrays = (
            _gather(links[tensor.name], ours)
            if tensor.name in links
            else made[tensor.name].make().astype(tensor.dtype)
            for tensor in kept
        )
        safetensors.write(out / name, kept, arrays, {"format": "pt"})
    if len(files) > 1:
        (out / safetensors.INDEX).write_text(safetensors.index_of(files))
    # Last, so that a folder with it is a whole checkpoint.
    (out / "config.json").write_text(_with_dtype(plan.config.source, planned))


def tensors(
    model: models.LanguageModel, params: dict[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors that `save` would write, one after another.

    Args:
      model: as `load` returned it.
      params: its variables, or a tree like them, such as their gradients.

    Yields:
      The name and the values of each.
    """
    plan, ours = _plan(model, params, None), checkpoint.leaves(params)
    for name, links in tables.by_tensor(plan.links).items():
        yield name, _gather(links, ours)


def _plan(
    model: models.LanguageModel, params: dict[str, Any], like: Any
) -> checkpoint.Plan:
    """The checked plan of a model."""
    layout = None
    if like is not None:
        source = pathlib.Path(like).read_text()
    else:
        source = getattr(model.config, "source", "")
        layout = getattr(model.config, "layout", None)
    if not source:
        raise ValueError(
            "model was not loaded from a checkpoint, so its layout is not "
            "known; pass like=, the path of a config.json that describes it"
        )
    plan = checkpoint.plan(source, {}, layout)
    _check_same(model.config, plan.config)
    _check_params(checkpoint.leaves(plan.abstract), checkpoint.leaves(params))
    return plan


def _check_same(came: Any, described: Any) -> None:
    options = {*came.pattern_names(), *came.mlp_names()}
    used = {*described.pattern, *described.mlps}
    names = [
        field.name
        for field in dataclasses.fields(models.LanguageModelConfig)
        if field.name not in _FREE and field.name not in options - used
    ]
    different = [
        f"{name}: {getattr(came, name)!r}, described is "
        f"{getattr(described, name)!r}"
        for name in names
        if getattr(came, name) != getattr(described, name)
    ]
    if different:
        raise ValueError(
            "model is not what its config.json describes:\n  "
            + "\n  ".join(different)
        )


def _check_params(wanted: dict[str, Any], ours: dict[str, Any]) -> None:
    def said(leaves: dict[str, Any], path: str) -> str:
        return str(list(leaves[path].shape)) if path in leaves else "missing"

    faults = [
        f"{path}: {said(ours, path)}, must be {said(wanted, path)}"
        for path in sorted(wanted.keys() | ours.keys())
        if said(ours, path) != said(wanted, path)
    ]
    faults += [
        f"{path}: not all of it lies on devices of this process"
        for path, leaf in sorted(ours.items())
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    ]
    if faults:
        raise ValueError("params do not fit:\n  " + "\n  ".join(faults))


def _check_empty(out: pathlib.Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"out must be a folder, {out} is a file")
    there = [out / "config.json", *out.glob("*.safetensors*")]
    there = sorted(path.name for path in there if path.exists())
    if there:
        raise ValueError(
            f"out must hold no checkpoint yet, {out} has {there}; remove them "
            "or choose another folder"
        )


def _dtype(links: list[tables.Link], ours: dict[str, Any]) -> np.dtype:
    found = {np.dtype(ours[link.ours].dtype) for link in links}
    if len(found) == 1:
        return found.pop()
    return np.dtype(jax.numpy.result_type(*sorted(found, key=str)))


def _gather(links: list[tables.Link], ours: dict[str, Any]) -> np.ndarray:
    """One tensor of theirs from the regions of ours."""
    whole = np.empty(links[0].shape, _dtype(links, ours))
    for link in links:
        where = tuple(
            slice(start, start + size)
            for start, size in zip(link.index, link.region, strict=True)
        )
        region = np.asarray(ours[link.ours][where])
        # A view: parts of one tensor may be split in ways of their own.
        target = tables.part_of(link, whole.reshape(link.split))
        target[...] = tables.backward(link, region)
    return whole


def _with_dtype(source: str, planned: list[safetensors.Planned]) -> str:
    """config.json with the dtype that most numbers have."""
    counts: dict[str, int] = {}
    for tensor in planned:
        name = tensor.dtype.name
        counts[name] = counts.get(name, 0) + tensor.bytes
    most = max(counts, key=counts.__getitem__)
    values = json.loads(source)
    names = [name for name in ("dtype", "torch_dtype") if name in values]
    if all(values[name] == most for name in names):
        return source
    values |= dict.fromkeys(names, most)
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
