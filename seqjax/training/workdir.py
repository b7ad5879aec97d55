"""One job and one configuration per workdir."""

from collections.abc import Collection
import errno
import fcntl
import json
import os
import pathlib
import socket
import time
from typing import Any

from absl import logging

from seqjax.training import _files
from seqjax.training import _processes

_SHOWN = 8
_ABSENT = "absent"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_held: set[pathlib.Path] = set()


class WorkdirLocked(RuntimeError):
    """Another job is using the workdir; the message names it."""


class WorkdirLock:
    """Context manager: this process alone may write into the workdir.

    The lock is a POSIX record lock on workdir/lock. The system frees it when
    the process ends, however it ends, and on NFS it holds between hosts.
    Forked data workers do not inherit it, so workers that outlive a killed
    job do not keep the next one out. Where the file system has no locks, the
    host and pid in the file decide, and an owner on another host is believed
    to live. In a job of many processes the first one holds it and the others
    pass.
    """

    def __init__(self, workdir: str | os.PathLike):
        """Names the workdir; it is made on entry."""
        self.workdir = pathlib.Path(workdir).absolute()
        self._path = self.workdir / "lock"
        self._descriptor = -1

    def __enter__(self) -> "WorkdirLock":
        """Takes the lock.

        Raises:
          WorkdirLocked: if another job has it, naming host, pid and time.
        """
        if not _processes.is_first():
            return self
        self.workdir.mkdir(parents=True, exist_ok=True)
        key = self.workdir.resolve()
        if key in _held:
            # Record locks do not keep a process out of its own lock, and
            # opening and closing the file a second time would free it.
            raise WorkdirLocked(
                f"{self.workdir} is already locked by this "
                "process; leave the first WorkdirLock before"
            )
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o666)
        try:
            self._acquire()
        except BaseException:
            os.close(self._descriptor)
            self._descriptor = -1
            raise
        _held.add(key)
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        self._write(json.dumps(owner))
        return self

    def __exit__(self, *exception) -> None:
        """Frees the lock; the file stays, empty."""
        if self._descriptor < 0:
            return
        self._write("")
        os.close(self._descriptor)  # closing frees a record lock
        self._descriptor = -1
        _held.discard(self.workdir.resolve())

    def _acquire(self) -> None:
        owner = self._owner()
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise WorkdirLocked(self._refusal(owner)) from None
            if error.errno not in _UNSUPPORTED:
                raise
            logging.warning(
                "%s: the file system has no locks (%s); going by host and pid",
                self._path,
                error.strerror,
            )
            if owner and _may_live(owner):
                raise WorkdirLocked(
                    self._refusal(owner) + f" If that job is gone, delete "
                    f"{self._path}."
                ) from None
        if owner:
            logging.warning(
                "%s was left by process %s on host %s, which ended without "
                "freeing it; taking over",
                self.workdir,
                owner["pid"],
                owner["host"],
            )

    def _refusal(self, owner: dict | None) -> str:
        who = (
            f"process {owner['pid']} on host {owner['host']} since "
            f"{owner['since']}"
            if owner
            else "another process"
        )
        return (
            f"workdir {self.workdir} is in use by {who}; two jobs in one "
            "workdir would overwrite each other. Wait for it to end, stop it, "
            "or choose another workdir."
        )

    def _owner(self) -> dict | None:
        """Who wrote the file, None if it is empty or unreadable."""
        try:
            owner = json.loads(os.pread(self._descriptor, 4096, 0))
            return {name: owner[name] for name in ("host", "pid", "since")}
        except (ValueError, KeyError, TypeError):
            return None

    def _write(self, text: str) -> None:
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)
        os.fsync(self._descriptor)


def _may_live(owner: dict) -> bool:
    if owner["host"] != socket.gethostname():
        return True
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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
    changed = [
        name
        for name in dict.fromkeys([*new, *old])
        if new.get(name, _ABSENT) != old.get(name, _ABSENT)
    ]
    refused = [
        name for name in changed if not any(_covers(a, name) for a in allowed)
    ]
    if refused and not override:
        shown = [
            f"  {name}: {old.get(name, _ABSENT)} in the workdir, "
            f"{new.get(name, _ABSENT)} now"
            for name in refused[:_SHOWN]
        ]
        more = len(refused) - _SHOWN
        raise ValueError(
            f"{workdir} belongs to a run with another configuration; "
            f"{len(refused)} fields differ\n"
            + "\n".join(shown)
            + (f"\n  and {more} more" if more > 0 else "")
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


def _flatten(config: Any, prefix: str = "") -> dict[str, str]:
    """JSON text of each field by dotted name."""
    if isinstance(config, dict) and config:
        flat = {}
        for name, value in config.items():
            flat |= _flatten(value, f"{prefix}.{name}" if prefix else str(name))
        return flat
    try:
        return {prefix: json.dumps(config)}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"config field {prefix} must be JSON-able: {error}"
        ) from None


def _load(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
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
