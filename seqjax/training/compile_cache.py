"""Compiled programs that outlive the process, so that a restart is short."""

import json
import os
import pathlib

import jax

from seqjax.training import _files

_SEAL = "complete.json"


def enable(
    setting: str, workdir: str | os.PathLike[str]
) -> pathlib.Path | None:
    """Turns the persistent cache on; call it before the first array.

    Args:
      setting: "auto" takes the directory that JAX_COMPILATION_CACHE_DIR or
        jax.config names, else WORKDIR/compile_cache; "off" leaves JAX as it
        is; anything else is a directory.
      workdir: of the run, locked.

    Returns:
      WORKDIR/compile_cache where that is used, to be passed to ``seal``.
    """
    if setting == "off":
        return None
    named = (
        jax.config.values["jax_compilation_cache_dir"]
        if setting == "auto"
        else (setting)
    )
    own = None if named else pathlib.Path(workdir) / "compile_cache"
    if own is not None:
        own.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:  # which alone writes, and drops, entries
            _drop_unsealed(own)
    jax.config.update("jax_compilation_cache_dir", str(own or named))
    # The default leaves out what compiles in under a second; a run has dozens
    # of such programs (initialisation, checksums).
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return own


def seal(directory: pathlib.Path | None) -> None:
    """Notes that the entries now in the directory are whole.

    JAX writes an entry in place and never replaces it, so a kill can leave
    half of one, which each later start would fail to read and warn about.
    """
    if directory is not None and jax.process_index() == 0:
        text = json.dumps(_entries(directory), indent=0)
        _files.replace(directory / _SEAL, text.encode())


def _entries(directory: pathlib.Path) -> dict[str, int]:
    return {
        path.name: path.stat().st_size
        for path in sorted(directory.iterdir())
        if not path.name.startswith(_SEAL)
    }


def _drop_unsealed(directory: pathlib.Path) -> None:
    try:
        sealed = json.loads((directory / _SEAL).read_text())
    except (OSError, ValueError):
        sealed = {}
    for name, size in _entries(directory).items():
        path = directory / name
        if sealed.get(name) != size and path.is_file():
            path.unlink()
