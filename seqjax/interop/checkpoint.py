"""A checkpoint seen as a model of ours: its config and its mapping table.

All that can be wrong with a checkpoint is found here, from config.json, the
headers of its files and the shapes of our parameters, before any array is made.
"""

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import jax

from seqjax import models
from seqjax.interop import config as config_lib
from seqjax.interop import families
from seqjax.interop import safetensors
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables


class Plan(NamedTuple):
    """How a checkpoint and a model correspond.

    Attributes:
      config: of the model.
      abstract: its variables as shapes.
      links: the mapping table.
      constants: tensors that no parameter of ours stands for.
    """

    config: config_lib.Config
    abstract: Any
    links: list[tables.Link]
    constants: list[tables.Constant]


def read_config(folder: pathlib.Path) -> str:
    """The text of a folder's config.json."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} must hold config.json; it holds "
            f"{sorted(p.name for p in folder.iterdir())}"
        )
    return path.read_text()


def plan(
    source: str,
    shapes: dict[str, tuple[int, ...]],
    layout: str | None = None,
) -> Plan:
    """The model that a config.json describes, and its table.

    Args:
      source: text of config.json.
      shapes: of the checkpoint's tensors, for sizes that it leaves open.
      layout: of the tensors; None for what `shapes` tell.

    Raises:
      ValueError: an unknown architecture, or options that are not supported.
    """
    values = json.loads(source)
    kind = values.get("model_type")
    if kind not in families.BY_TYPE:
        raise ValueError(
            f"config.json names model_type {kind!r} (architectures "
            f"{values.get('architectures')}), which is not supported; "
            f"supported are {sorted(families.BY_TYPE)}"
        )
    family = families.BY_TYPE[kind]
    settings = settings_lib.Settings(values, shapes)
    config = family.config(settings)
    settings.finish(kind)
    if settings.found:  # said from now on
        values |= settings.found
        source = json.dumps(values, indent=2, sort_keys=True) + "\n"
    if layout is not None:
        config = dataclasses.replace(config, layout=layout)
    config = dataclasses.replace(config, source=source)
    config.validate(f"the model of {kind}: ")
    abstract = models.abstract_parameters(config)
    ours = {path: leaf.shape for path, leaf in leaves(abstract).items()}
    table = tables.Table(ours)
    family.tensors(table, config, values)
    tables.check_covered(table.links, ours)
    return Plan(config, abstract, table.links, table.constants)


def leaves(variables: Any) -> dict[str, Any]:
    """Leaves of {"params": ...} by path, "/" between names."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            variables["params"]
        )
    }


def check_tensors(plan: Plan, entries: dict[str, safetensors.Entry]) -> None:
    """Requires exactly the tensors of the table, of their shapes, in floats.

    Raises:
      ValueError: naming all that are missing, extra or of another shape.
    """
    wanted = {
        name: parts[0].shape
        for name, parts in tables.by_tensor(plan.links).items()
    }
    wanted |= {constant.theirs: constant.shape for constant in plan.constants}
    faults = [
        f"missing: {name} {list(wanted[name])}"
        for name in wanted
        if name not in entries
    ]
    faults += [
        f"not known: {name} {list(entries[name].shape)}"
        for name in entries
        if name not in wanted
    ]
    for name in wanted.keys() & entries.keys():
        entry = entries[name]
        if entry.shape != wanted[name]:
            faults.append(
                f"misshapen: {name} is {list(entry.shape)}, but config.json "
                f"asks for {list(wanted[name])}"
            )
        elif not jax.numpy.issubdtype(entry.dtype, jax.numpy.floating):
            faults.append(f"no floats: {name} is {entry.dtype}")
    if faults:
        raise ValueError(
            f"the checkpoint does not fit its config.json, {len(faults)} "
            "tensors:\n  " + "\n  ".join(sorted(faults))
        )
