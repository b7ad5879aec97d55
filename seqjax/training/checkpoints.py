"""Checkpoints that are verified: state, data position and meta of a step.

A step is written by Orbax in the background and becomes visible by one atomic
rename. Orbax does not check array payload, so each leaf carries a checksum of
its bits (seqjax.training.checksums), and the JSON parts carry one as well. A
restore checks paths, shapes and dtypes first, then every checksum; a damaged
step is named and set aside, and the newest intact one is used.

    <directory>/<step>/{state,data,meta}    an intact step
    <directory>/damaged-<step>              set aside, never deleted here

Directories are on a POSIX file system. Every process of a job makes the same
calls in the same order.
"""

import os
import pathlib
from typing import Any, NamedTuple

from absl import logging
import jax

from seqjax.training import _manifest
from seqjax.training import _orbax
from seqjax.training import _processes
from seqjax.training import _verified_read
from seqjax.training import checksums

CheckpointError = _manifest.CheckpointError
CheckpointMismatch = _manifest.CheckpointMismatch
CheckpointDamaged = _manifest.CheckpointDamaged


class Restored(NamedTuple):
    """A verified step: what was given to save, on the devices asked for."""

    step: int
    state: Any
    data_state: dict
    meta: dict


class CheckpointStore:
    """The checkpoints of one run.

    Hold the workdir's lock while a store that is not read_only is open: it
    removes unfinished saves of earlier jobs when it starts.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep: int,
        keep_every: int | None = None,
        read_only: bool = False,
    ):
        """Opens or creates the directory.

        Args:
          directory: where the steps lie.
          keep: newest steps to keep, at least 1. From 2 on a damaged newest
            step has one to fall back to.
          keep_every: also keep steps that are multiples of this.
          read_only: never write, rename or delete anything.

        Raises:
          ValueError: for keep or keep_every below 1.
          CheckpointError: if the directory cannot be made.
        """
        for name, value in (("keep", keep), ("keep_every", keep_every)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.directory = pathlib.Path(directory).absolute()
        self._read_only = read_only
        self._pending: int | None = None
        self._failed = False
        self._manager = None
        if read_only:
            return
        try:
            self._manager = _orbax.open_manager(
                self.directory, keep, keep_every
            )
        except OSError as error:
            raise CheckpointError(
                f"cannot open checkpoints in {self.directory}: {error}"
            ) from error

    def steps(self) -> list[int]:
        """Finished steps on disk, ascending; not yet verified."""
        if not self.directory.is_dir():
            return []
        names = (path.name for path in self.directory.iterdir())
        return sorted(int(name) for name in names if name.isdecimal())

    def read_meta(self, step: int) -> dict:
        """The meta given to save for this step.

        Raises:
          CheckpointDamaged: if the step's meta cannot be trusted.
          ValueError: if there is no such step.
        """
        self._require(step)
        try:
            return _verified_read.read_manifest(self.directory, step)["meta"]
        except _manifest.Damage as damage:
            raise CheckpointDamaged(
                f"checkpoint step {step} in {self.directory}: {damage}"
            ) from None

    def save(self, step: int, state: Any, data_state: dict, meta: dict) -> None:
        """Starts writing a step; returns once the arrays may be donated.

        A step that is already on disk with the same state is left alone.

        Args:
          step: updates done so far, >= 0.
          state: pytree of jax.Array, typed PRNG keys included.
          data_state: position of this process's data, JSON-able.
          meta: what else belongs to the step, JSON-able, the same in every
            process.

        Raises:
          ValueError: for a negative step, a leaf that is no jax.Array or
            weakly typed, or JSON that is none.
          CheckpointError: if this save could not start, the one before it
            failed, or the step exists with another state.
        """
        if self._manager is None:
            raise CheckpointError(
                f"checkpoints in {self.directory} were opened with "
                "read_only=True; open them without it to save"
            )
        step = int(step)
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        flat = _manifest.flatten(state)
        _manifest.check_arrays(flat)
        raw = {
            name: jax.random.key_data(leaf) if _manifest.is_key(leaf) else leaf
            for name, leaf in flat.items()
        }
        data = _processes.gather_json(_manifest.plain(data_state, "data_state"))
        meta = _manifest.plain(meta, "meta")
        sums = checksums.leaf_checksums(raw)
        manifest = _manifest.build(step, flat, sums, data, meta)
        self.wait()
        if (self.directory / str(step)).exists():
            self._check_same(step, manifest)
            return
        self._pending = step
        try:
            _orbax.start_save(self._manager, step, raw, data, manifest)
        except Exception as error:
            raise self._save_error(error) from error

    def check(self) -> None:
        """Raises CheckpointError if a save in the background has failed."""
        if self._manager is None:
            return
        if self._pending is not None:
            # Asking Orbax for its error would take it from the thread that
            # must see it to leave the older steps alone; joining does not.
            if not self._manager.is_saving_in_progress():
                self.wait()

    def wait(self) -> None:
        """Waits for the save in progress.

        Raises:
          CheckpointError: if it failed.
        """
        if self._manager is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._save_error(error) from error
        self._pending = None

    def close(self) -> None:
        """Waits and releases the background threads; may be called twice.

        Raises:
          CheckpointError: if the last save failed and nothing has said so.
        """
        if self._manager is None:
            return
        manager, told = self._manager, self._failed
        try:
            manager.close()
        except Exception as error:
            if not told:
                raise self._save_error(error) from error
        finally:
            self._manager, self._read_only = None, True

    def __enter__(self) -> "CheckpointStore":
        """Returns itself."""
        return self

    def __exit__(self, kind, *exception) -> None:
        """Closes; a failed save does not hide the exception on its way."""
        try:
            self.close()
        except CheckpointError as error:
            if kind is None:
                raise
            logging.error("%s", error)

    def restore(
        self, abstract_state: Any, *, step: int | None = None
    ) -> Restored | None:
        """The newest intact step, or exactly the one asked for.

        Damaged steps are logged by name and, unless read_only, renamed to
        damaged-<step> once an intact older step has been found.

        Args:
          abstract_state: pytree of jax.ShapeDtypeStruct (or arrays) with the
            shape, dtype and sharding wanted; any mesh will do.
          step: this step and no other.

        Returns:
          The verified step, or None if the directory holds no step.

        Raises:
          CheckpointMismatch: if the newest readable step has other paths,
            shapes or dtypes; nothing is skipped then.
          CheckpointDamaged: if no step is intact, or the one asked for is
            not; nothing is renamed or overwritten then.
          ValueError: if the step asked for does not exist.
        """
        self.wait()
        abstract = _manifest.flatten(abstract_state)
        if step is not None:
            self._require(step)
        candidates = self.steps()[::-1] if step is None else [step]
        damaged: dict[int, str] = {}
        for candidate in candidates:
            try:
                state, data, manifest = _verified_read.read_step(
                    self.directory, candidate, abstract
                )
            except _manifest.Damage as damage:
                damaged[candidate] = str(damage)
                logging.error(
                    "checkpoint step %d is damaged: %s", candidate, damage
                )
                continue
            self._set_aside(damaged)
            structure = jax.tree_util.tree_structure(abstract_state)
            return Restored(
                step=candidate,
                state=structure.unflatten(state[name] for name in abstract),
                data_state=data,
                meta=manifest["meta"],
            )
        if not damaged:
            return None
        raise _manifest.none_intact(self.directory, damaged)

    def _require(self, step: int) -> None:
        if step not in self.steps():
            raise ValueError(
                f"no checkpoint of step {step} in {self.directory}; "
                f"there are {self.steps() or 'none'}"
            )

    def _check_same(self, step: int, manifest: dict) -> None:
        """Raises unless the step on disk holds this very state."""
        try:
            old = _verified_read.read_manifest(self.directory, step)
            same = all(old[k] == manifest[k] for k in ("state", "data_sha256"))
        except _manifest.Damage:
            same = False
        if not same:
            raise CheckpointError(
                f"checkpoint step {step} already exists in {self.directory} "
                "with another state or data position; resume from the newest "
                "step, or move the later steps away or use another workdir"
            )
        logging.info("checkpoint step %d is already on disk", step)

    def _set_aside(self, damaged: dict[int, str]) -> None:
        if self._manager is None or not damaged:
            return
        if _processes.is_first():
            for step in damaged:
                kept = _verified_read.set_aside(self.directory, step)
                logging.error("kept the damaged step %d as %s", step, kept)
        _processes.barrier("seqjax:set_aside")
        self._manager.reload()

    def _save_error(self, error: Exception) -> CheckpointError:
        self._failed = True
        step, self._pending = self._pending, None
        return _manifest.save_failed(self.directory, step, self.steps(), error)
