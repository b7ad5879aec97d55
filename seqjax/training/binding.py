"""One configuration per workdir, and per checkpoint.

config.json holds the resolved configuration; each checkpoint carries a copy
and the hash of the fields that must not change, so that a lost or edited
config.json does not let a run go on as another one.
"""

from collections.abc import Collection
import hashlib
import json
import os
import pathlib
from typing import Any

from absl import logging

from seqjax.training import _files
from seqjax.training import _processes

_SHOWN = 8
_ABSENT = "absent"


def bind_config(
    workdir: str | os.PathLike,
    config: dict[str, Any],
    *,
    allowed: Collection[str] = (),
    override: bool = False,
    override_flag: str | None = None,
) -> list[str]:
    """Ties a workdir to a resolved configuration, kept as config.json.

    The first call writes it. Later calls compare: a field outside allowed
    that differs is refused, so that a run is never continued as another one.
    In a job of many processes only the first one writes.

    Args:
      workdir: made if it is not there. Hold its lock.
      config: nested dict of what JSON can hold.
      allowed: dotted names that may change between starts; a name covers the
        fields below it.
      override: accept every difference; the old file is kept as
        config.<n>.json.
      override_flag: what the user types to set override, for the message.

    Returns:
      Dotted names of the fields that changed, [] on the first call.

    Raises:
      ValueError: naming the first differing fields with both values and the
        way out; for an allowed name that is no field; for a value JSON
        cannot hold; for a config.json that is no JSON.
    """
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "config.json"
    new = _flatten(config)
    text = (json.dumps(config, indent=2) + "\n").encode()
    if not path.exists():
        _check_allowed(allowed, new.keys())
        if _processes.is_first():
            _files.replace(path, text)
        return []
    old = _flatten(_load(path))
    _check_allowed(allowed, new.keys() | old.keys())
    changed = _changed(old, new)
    refused = _bound(changed, allowed)
    if refused and not override:
        raise ValueError(
            f"{workdir} belongs to a run with another configuration; "
            + _listing(refused, old, new)
            + "\nGo back to these values, or choose another workdir"
            + (
                f", or accept the change with {override_flag}"
                if override_flag
                else ""
            )
            + "."
        )
    if changed and _processes.is_first():
        for name in changed:
            logging.info(
                "configuration changed: %s from %s to %s",
                name,
                old.get(name, _ABSENT),
                new.get(name, _ABSENT),
            )
        count = 1
        while (kept := workdir / f"config.{count}.json").exists():
            count += 1
        _files.replace(kept, path.read_bytes())
        _files.replace(path, text)
    return changed


def kept(workdir: str | os.PathLike) -> dict[str, Any]:
    """The configuration in config.json, {} where it is lost or damaged."""
    try:
        config = json.loads((pathlib.Path(workdir) / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def describe(
    config: dict[str, Any], allowed: Collection[str]
) -> dict[str, Any]:
    """What a checkpoint says of its run: "config" and "config_hash".

    The hash is that of the fields outside allowed.
    """
    flat = _flatten(config)
    bound = {name: flat[name] for name in _bound(list(flat), allowed)}
    text = json.dumps(bound, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"config": config, "config_hash": digest}


def check_described(
    meta: dict[str, Any],
    config: dict[str, Any],
    allowed: Collection[str],
    where: str,
) -> None:
    """Refuses to go on from what another configuration has left.

    Args:
      meta: holds what ``describe`` returned when it was saved.
      config: of this start.
      allowed: as in ``bind_config``.
      where: what was saved, for the message.

    Raises:
      ValueError: naming the first differing fields and the way out.
    """
    if meta.get("config_hash") == describe(config, allowed)["config_hash"]:
        return
    old, new = _flatten(meta.get("config", {})), _flatten(config)
    refused = _bound(_changed(old, new), allowed)
    raise ValueError(
        f"{where} belongs to a run with another configuration; "
        + _listing(refused, old, new)
        + "\nGo back to these values, or choose another workdir."
    )


def differences(first: dict[str, Any], other: dict[str, Any]) -> str:
    """The fields in which two nested dicts differ, in a line; "" for none."""
    old, new = _flatten(first), _flatten(other)
    return ", ".join(
        f"{name} is {new.get(name, _ABSENT)}, not {old.get(name, _ABSENT)}"
        for name in _changed(old, new)[:_SHOWN]
    )


def _changed(old: dict[str, str], new: dict[str, str]) -> list[str]:
    return [
        name
        for name in dict.fromkeys([*new, *old])
        if new.get(name, _ABSENT) != old.get(name, _ABSENT)
    ]


def _bound(names: list[str], allowed: Collection[str]) -> list[str]:
    """The names that must not change."""
    return [n for n in names if not any(_covers(a, n) for a in allowed)]


def _listing(names: list[str], old: dict[str, str], new: dict[str, str]) -> str:
    shown = [
        f"  {name}: {old.get(name, _ABSENT)} in the workdir, "
        f"{new.get(name, _ABSENT)} now"
        for name in names[:_SHOWN]
    ]
    more = len(names) - _SHOWN
    text = f"{len(names)} fields differ\n" + "\n".join(shown)
    return text + (f"\n  and {more} more" if more > 0 else "")


def _flatten(config: Any, prefix: str = "") -> dict[str, str]:
    """JSON text of each field by dotted name."""
    if isinstance(config, dict) and config:
        flat = {}
        for name, value in config.items():
            flat |= _flatten(value, f"{prefix}.{name}" if prefix else str(name))
        return flat
    try:
        return {prefix: json.dumps(config)}
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"config field {prefix} must be JSON-able: {error}"
        ) from None


def _load(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is no JSON ({error}); bring back a copy of it, or choose "
            "another workdir"
        ) from None


def _check_allowed(allowed: Collection[str], names: Collection[str]) -> None:
    for entry in allowed:
        if not any(_covers(entry, name) for name in names):
            raise ValueError(
                f"allowed names {entry!r}, which is no field of the "
                f"configuration; fields are {', '.join(sorted(names))}"
            )


def _covers(entry: str, name: str) -> bool:
    return name == entry or name.startswith(f"{entry}.")
