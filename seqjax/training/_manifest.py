"""What a checkpoint says about itself: leaves, checksums and a seal.

The manifest is plain JSON kept beside the arrays:

    {"format": 1, "step": 40, "processes": 1,
     "state": {"params/w": {"shape": [3, 4], "dtype": "float32",
                            "checksum": 123}},
     "data_sha256": "...", "meta": {...}, "seal": sha256 of all the above}
"""

from collections.abc import Mapping
import hashlib
import json
from typing import Any

import jax

FORMAT = 1
_SHOWN = 5


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message says what to do."""


class CheckpointMismatch(CheckpointError, ValueError):
    """The checkpoint is intact but belongs to another model or run."""


class CheckpointDamaged(CheckpointError):
    """What was asked for is damaged, and nothing intact can stand in."""


class Damage(Exception):
    """Internal: this step cannot be trusted; the text says what is wrong."""


def none_intact(directory: Any, damaged: dict[int, str]) -> CheckpointDamaged:
    """The error that lists every step with what is wrong with it."""
    return CheckpointDamaged(
        f"no intact checkpoint in {directory}:\n"
        + "\n".join(f"  step {s}: {what}" for s, what in damaged.items())
        + "\nNothing was changed. Bring back a copy of one of these steps, "
        "or start over with another workdir."
    )


def save_failed(
    directory: Any, step: int | None, kept: list[int], error: Exception
) -> CheckpointError:
    """The error of a save, with what is left and the way on."""
    return CheckpointError(
        f"saving checkpoint step {step} in {directory} failed: "
        f"{brief(error)}. Steps on disk: {kept or 'none'}. Check free space, "
        "quota and permissions there, then start the same command again: it "
        "resumes from the newest step."
    )


def flatten(state: Any) -> dict[str, Any]:
    """Leaves by path, such as 'params/blocks/kernel'.

    Raises:
      ValueError: if two leaves have the same path.
    """
    flat = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in flat:
            raise ValueError(
                f"state has two leaves with the path {name!r}; rename one key "
                "so that paths joined by '/' are unique"
            )
        flat[name] = leaf
    return flat


def check_arrays(flat: Mapping[str, Any]) -> None:
    """Raises ValueError naming a leaf that would not come back as it is."""
    for name, leaf in flat.items():
        if not isinstance(leaf, jax.Array):
            kind = type(leaf).__name__
        elif getattr(leaf, "weak_type", False):
            # Weakness is lost on disk; after a restart the step would be
            # traced again, perhaps with other promotions.
            kind = "weakly typed"
        else:
            continue
        raise ValueError(
            f"state leaf {name!r} is {kind}; checkpoints hold arrays of a "
            "definite dtype, use jnp.asarray(value, dtype)"
        )


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed PRNG key."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def key_impl(leaf: jax.Array) -> str:
    """Name of the generator of a typed PRNG key."""
    return str(jax.random.key_impl(leaf))


def build(
    step: int,
    flat: Mapping[str, Any],
    checksums: Mapping[str, int],
    data: list,
    meta: dict,
) -> dict:
    """The sealed manifest of a state, its data position and user's meta."""
    manifest = {
        "format": FORMAT,
        "step": step,
        "processes": len(data),
        "state": {
            name: {
                "shape": list(leaf.shape),
                "dtype": str(leaf.dtype),
                "checksum": checksums[name],
                **({"impl": key_impl(leaf)} if is_key(leaf) else {}),
            }
            for name, leaf in flat.items()
        },
        "data_sha256": digest(data),
        "meta": meta,
    }
    return manifest | {"seal": digest(manifest)}


def check_seal(manifest: Any, step: int) -> None:
    """Raises Damage unless the manifest is whole and belongs to this step."""
    if not isinstance(manifest, dict) or "seal" not in manifest:
        raise Damage("meta: not a manifest of seqjax")
    body = {name: v for name, v in manifest.items() if name != "seal"}
    if digest(body) != manifest["seal"]:
        raise Damage("meta: its contents do not match their checksum")
    if body["format"] != FORMAT:
        raise CheckpointMismatch(
            f"checkpoint step {step} has format {body['format']}, this version "
            f"reads format {FORMAT}; use the version of seqjax that wrote it"
        )
    if body["step"] != step:
        raise Damage(f"meta: written for step {body['step']}, found at {step}")


def compare(
    recorded: Mapping[str, dict], abstract: Mapping[str, Any], where: str
) -> None:
    """Raises CheckpointMismatch listing the first leaves that differ."""
    wanted = {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for name, leaf in abstract.items()
    }
    lines = []
    for name in [*wanted, *(name for name in recorded if name not in wanted)]:
        here, there = wanted.get(name), recorded.get(name)
        if (
            here is None
            or there is None
            or (
                (here["shape"], here["dtype"])
                != (there["shape"], there["dtype"])
            )
        ):
            lines.append(
                f"  {name}: checkpoint {_show(there)}, model {_show(here)}"
            )
    if lines:
        more = len(lines) - _SHOWN
        raise CheckpointMismatch(
            f"{where} holds another state: {len(lines)} of "
            f"{len(recorded.keys() | wanted.keys())} leaves differ\n"
            + "\n".join(lines[:_SHOWN])
            + (f"\n  and {more} more" if more > 0 else "")
            + "\nRestore it with the model and optimizer configuration that "
            "wrote it, or use another workdir."
        )


def _show(leaf: dict | None) -> str:
    if leaf is None:
        return "has none"
    return f"{leaf['dtype']}[{','.join(map(str, leaf['shape']))}]"


def plain(value: Any, name: str) -> Any:
    """value as JSON gives it back (tuples become lists).

    Raises:
      ValueError: naming the argument, if value cannot be written as JSON.
    """
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must hold only what JSON can (dict, list, str, int, "
            f"float, bool, None): {error}"
        ) from None


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON text of value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def brief(error: Exception) -> str:
    """The first line of an error, without what libraries append to it."""
    text = str(error).strip().split("\n")[0]
    for tail in (" [tensorstore_spec=", " [source locations="):
        text = text.split(tail)[0]
    return f"{type(error).__name__}: {text[:400]}" if text else repr(error)
