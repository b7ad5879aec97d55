"""One job per workdir; one configuration: seqjax.training.binding."""

import errno
import fcntl
import json
import os
import pathlib
import socket
import time

from absl import logging

from seqjax.training import _processes

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
# A file on a network file system may be seen some seconds late elsewhere.
_SECONDS_TO_APPEAR = 15
_held: set[pathlib.Path] = set()


class WorkdirError(RuntimeError):
    """The workdir cannot be used; the message says why and the way out."""


class WorkdirLocked(WorkdirError):
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
          WorkdirError: if it cannot be made or written to.
        """
        if not _processes.is_first():
            if _processes.where_true(False):
                raise WorkdirError(
                    f"process 0 could not take workdir {self.workdir}; its "
                    "output says why"
                )
            self._require_one_folder()
            return self
        try:
            entered = self._enter()
        except OSError as error:
            _processes.where_true(True)
            raise WorkdirError(_unusable(self.workdir, error)) from error
        except WorkdirError:
            _processes.where_true(True)
            raise
        _processes.where_true(False)
        try:
            self._require_one_folder()
        except BaseException:
            self.__exit__()
            raise
        return entered

    def _require_one_folder(self) -> None:
        """All processes find in the lock file what the first one wrote."""
        if _processes.count() == 1:
            return
        first = _processes.is_first()
        mine = self._owner() if first else None
        owner = _processes.gather_json({"owner": mine})[0]["owner"]
        deadline = time.monotonic() + _SECONDS_TO_APPEAR
        while not (same := first or self._seen() == owner):
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
        blind = _processes.where_true(not same)
        if blind:
            raise WorkdirError(
                f"workdir {self.workdir} must be one folder for all processes, "
                f"but processes {', '.join(map(str, blind))} do not find there "
                f"what process 0 on host {owner['host']} has written (this "
                f"is host {socket.gethostname()}); put it on a file system "
                "that all machines share, and give each the same --workdir"
            )

    def _enter(self) -> "WorkdirLock":
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
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        try:
            self._acquire()
            self._write(json.dumps(owner))
        except BaseException:
            os.close(self._descriptor)
            self._descriptor = -1
            raise
        _held.add(key)
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
        return _parse(os.pread(self._descriptor, 4096, 0))

    def _seen(self) -> dict | None:
        """The same in a process that does not hold the lock."""
        try:
            return _parse(self._path.read_bytes())
        except OSError:
            return None

    def _write(self, text: str) -> None:
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)
        os.fsync(self._descriptor)


def _parse(text: bytes) -> dict | None:
    try:
        owner = json.loads(text)
        return {name: owner[name] for name in ("host", "pid", "since")}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _unusable(workdir: pathlib.Path, error: OSError) -> str:
    for path in (workdir, *workdir.parents):
        if path.exists() and not path.is_dir():
            return (
                f"workdir {workdir} cannot be made: {path} is a file; "
                "choose a directory"
            )
    return (
        f"workdir {workdir} cannot be written to ({error.strerror}); check "
        "permissions and free space there, or choose another workdir"
    )


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
