"""Files that a kill at any moment leaves whole."""

import os
import pathlib


def replace(path: pathlib.Path, content: bytes) -> None:
    """Writes a whole file so that either the old or the new one is there.

    Raises:
      OSError: with the file's name, which Python leaves out of some; no part
        of a new file is left behind then.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync_directory(path: pathlib.Path) -> None:
    """Makes the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LineFile:
    """A file that grows by whole lines, each handed to the system at once."""

    def __init__(self, path: pathlib.Path):
        """Opens for appending; an unfinished last line is cut off."""
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o666)
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.ftruncate(self._descriptor, content.rfind(b"\n") + 1)

    def append(self, line: str) -> None:
        """Writes a line.

        Raises:
          OSError: if it does not fit; the file is then as before.
        """
        data = line.encode() + b"\n"
        size = os.fstat(self._descriptor).st_size
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise

    def sync(self) -> None:
        """Makes what was written survive a power loss."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Syncs and closes; may be called twice."""
        if self._descriptor >= 0:
            self.sync()
            os.close(self._descriptor)
            self._descriptor = -1
