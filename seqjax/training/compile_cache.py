"""Compiled programs that outlive the process, so that a restart is short."""

import os
import pathlib

import jax


def enable(setting: str, workdir: str | os.PathLike[str]) -> str:
    """Turns the persistent cache on; call it before the first array.

    Args:
      setting: "auto" takes the directory that JAX_COMPILATION_CACHE_DIR or
        jax.config names, else WORKDIR/compile_cache; "off" leaves JAX as it
        is; anything else is a directory.
      workdir: of the run.

    Returns:
      The directory in use, or "" for none.
    """
    if setting == "off":
        return ""
    named = jax.config.jax_compilation_cache_dir
    if setting != "auto":
        named = setting
    directory = pathlib.Path(named or pathlib.Path(workdir) / "compile_cache")
    directory.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    # The default leaves out what compiles in under a second; a run has dozens
    # of such programs (initialisation, checksums).
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return str(directory)
