"""A connection to process 0, whose end tells that a process has ended.

JAX notices a dead process by its missing heartbeats, a minute or two later;
meanwhile the others wait in a collective.  A connection ends with its process
at once.  Each process holds one to process 0, which tells the others who died;
a process that means to end says so first.  A machine that loses its power
closes nothing: there the heartbeats remain.

Whoever connects shows a token that process 0 has drawn for the job, so that a
stray connection is not taken for a process.
"""

from collections.abc import Callable
import secrets
import socket
import struct
import threading
import time

_SECONDS = 60
_ENDS = -1  # in place of the id of a process that died
_ID = struct.Struct("!i")
_HELLO = struct.Struct("!Qi")  # token, id
_SECONDS_TO_SAY_HELLO = 5


class Lifeline:
    """One process's end; ``died(id)`` is called from a thread, at most once."""

    def __init__(self, process_id: int, died: Callable[[int], None]):
        """Connects nothing yet."""
        self._id, self._died = process_id, died
        self._peers: dict[int, socket.socket] = {}
        self._lock = threading.Lock()
        self._over = False

    def listen(self, others: int) -> tuple[int, int]:
        """In process 0: waits in a thread for processes 1 to `others`.

        Returns:
          The port and the token that the others need.
        """
        token = secrets.randbits(64)
        server = socket.create_server(("", 0), backlog=others)
        threading.Thread(
            target=self._accept, args=(server, others, token), daemon=True
        ).start()
        return server.getsockname()[1], token

    def connect(self, host: str, port: int, token: int) -> None:
        """In the others: connects to process 0.

        Raises:
          OSError: it cannot be reached.
        """
        link = socket.create_connection((host, port), _SECONDS)
        link.settimeout(None)
        link.sendall(_HELLO.pack(token, self._id))
        self._watch(0, link)

    def end(self) -> None:
        """This process means to end; nobody else's end matters to it."""
        with self._lock:
            self._over = True
            for link in self._peers.values():
                try:
                    link.sendall(_ID.pack(_ENDS))
                except OSError:
                    pass  # it has ended first

    def _accept(self, server: socket.socket, others: int, token: int) -> None:
        missing = set(range(1, others + 1))
        deadline = time.monotonic() + _SECONDS
        with server:
            while missing and (left := deadline - time.monotonic()) > 0:
                server.settimeout(left)
                try:
                    link, _ = server.accept()
                except OSError:
                    return  # one that cannot connect says so itself
                link.settimeout(_SECONDS_TO_SAY_HELLO)
                said = self._read(link, _HELLO)
                if said is None or said[0] != token or said[1] not in missing:
                    link.close()
                    continue
                missing.remove(said[1])
                link.settimeout(None)
                self._watch(said[1], link)

    def _watch(self, who: int, link: socket.socket) -> None:
        with self._lock:
            self._peers[who] = link
        threading.Thread(
            target=self._follow, args=(who, link), daemon=True
        ).start()

    def _follow(self, who: int, link: socket.socket) -> None:
        said = self._read(link, _ID)
        with self._lock:
            if said == (_ENDS,) or self._over:
                self._peers.pop(who, None)
                return
            self._over = True
            dead = who if said is None else said[0]
            for other in self._peers.values():
                if other is not link:
                    try:
                        other.sendall(_ID.pack(dead))
                    except OSError:
                        pass  # dead as well
        self._died(dead)

    @staticmethod
    def _read(link: socket.socket, what: struct.Struct) -> tuple | None:
        """The next numbers, None where the connection has ended."""
        data = b""
        try:
            while len(data) < what.size:
                piece = link.recv(what.size - len(data))
                if not piece:
                    return None
                data += piece
        except OSError:
            return None
        return what.unpack(data)
