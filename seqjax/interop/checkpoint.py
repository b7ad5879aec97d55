"""A checkpoint seen as a model of ours: its config and its mapping table.

All that can be wrong with a checkpoint is found here, from config.json, the
headers of its files and the shapes of our parameters, before any array is made.
"""

import dataclasses
import json
import pathlib
import re
from typing import Any, NamedTuple

import jax

from seqjax import models
from seqjax.interop import asides as asides_lib
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
      constants: tensors that follow from the config.
      asides: tensors that may be there and are not loaded.
    """

    config: config_lib.Config
    abstract: Any
    links: list[tables.Link]
    constants: list[asides_lib.Constant]
    asides: list[asides_lib.Aside]


def read_config(folder: pathlib.Path) -> str:
    """The text of a folder's config.json."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} must hold config.json; it holds "
            f"{sorted(p.name for p in folder.iterdir())}"
        )
    try:
        return path.read_text("utf-8")
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


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
    try:
        values = json.loads(source)
    except ValueError as error:
        raise ValueError(f"config.json is damaged: {error}") from error
    values, within = text_model(values)
    if within is not None:
        source = json.dumps(values, indent=2, sort_keys=True) + "\n"
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in families.BY_TYPE:
        raise ValueError(
            f"config.json names model_type {kind!r} (architectures "
            f"{values.get('architectures')}), which is not supported; "
            f"supported are {sorted({*families.BY_TYPE, *_WITHIN})}"
        )
    family = families.BY_TYPE[kind]
    settings = settings_lib.Settings(values, shapes)
    try:
        config = family.config(settings)
    except (TypeError, ArithmeticError):
        settings.finish(kind)  # what follows from a wrong setting
        raise
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
    found = Plan(config, abstract, table.links, table.constants, table.asides)
    return found if within is None else _within(found, within)


# Models of texts inside models of more: where their settings are, what their
# names begin with there and of themselves, and what else is beside them.
_WITHIN = {
    "qwen3_5": (
        "text_config",
        "model.language_model.",
        "model.",
        "model.visual",
    ),
}


def text_model(values: Any) -> tuple[dict[str, Any], str | None]:
    """Settings of a model of texts, and what it is a part of, if anything."""
    if not isinstance(values, dict):
        raise ValueError(f"config.json must hold an object, got {values!r:.80}")
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in _WITHIN:
        return values, None
    group = _WITHIN[kind][0]
    if not isinstance(values.get(group), dict):
        raise ValueError(
            f"config.json of {kind} must hold {group}, an object; it has "
            f"{sorted(values)}"
        )
    tied = "tie_word_embeddings"
    return {tied: values.get(tied, False), **values[group]}, kind


def _within(plan: Plan, kind: str) -> Plan:
    """A plan with the names that its tensors have in a larger model."""
    _, longer, own, beside = _WITHIN[kind]

    def renamed(name: str | None) -> str | None:
        if name is None or not name.startswith(own):
            return name
        return longer + name.removeprefix(own)

    links = [link._replace(theirs=renamed(link.theirs)) for link in plan.links]
    more = asides_lib.Aside(re.escape(f"{beside}.") + ".*", "what sees images")
    twins = [a._replace(twin=renamed(a.twin)) for a in plan.asides]
    return plan._replace(links=links, asides=[*twins, more])


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
    left = asides_lib.found(plan.asides, entries)
    faults = [
        f"missing: {name} {list(wanted[name])}"
        for name in wanted
        if name not in entries
    ]
    faults += [
        f"not known: {name} {list(entries[name].shape)}"
        for name in entries
        if name not in wanted and name not in left
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
