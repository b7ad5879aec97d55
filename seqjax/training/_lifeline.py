"""A connection to process 0, whose end tells that a process has ended.

JAX notices a dead process by its missing heartbeats, a minute or two later;
meanwhile the others wait in a collective.  A connection ends with its process
at once.  Each process holds one to process 0, which tells the others who died;
a process that means to end says so first.  A machine that loses its power
closes nothing: there the heartbeats remain.
"""

from collections.abc import Callable
import socket
import struct
import threading

_SECONDS = 60
_ENDS = -1  # in place of the id of a process that died
_ID = struct.Struct("!i")


class Lifeline:
    """One process's end; ``died(id)`` is called from a thread, at most once."""

    def __init__(self, process_id: int, died: Callable[[int], None]):
        """Connects nothing yet."""
        self._id, self._died = process_id, died
        self._peers: dict[int, socket.socket] = {}
        self._lock = threading.Lock()
        self._over = False

    def listen(self, others: int) -> int:
        """In process 0: waits in a thread for the others; returns the port."""
        server = socket.create_server(("", 0), backlog=others)
        server.settimeout(_SECONDS)
        threading.Thread(
            target=self._accept, args=(server, others), daemon=True
        ).start()
        return server.getsockname()[1]

    def connect(self, host: str, port: int) -> None:
        """In the others: connects to process 0.

        Raises:
          OSError: it cannot be reached.
        """
        link = socket.create_connection((host, port), _SECONDS)
        link.settimeout(None)
        link.sendall(_ID.pack(self._id))
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

    def _accept(self, server: socket.socket, others: int) -> None:
        with server:
            for _ in range(others):
                try:
                    link, _ = server.accept()
                except OSError:
                    return  # one that cannot connect says so itself
                link.settimeout(None)
                who = self._read(link)
                if who is not None:
                    self._watch(who, link)

    def _watch(self, who: int, link: socket.socket) -> None:
        with self._lock:
            self._peers[who] = link
        threading.Thread(
            target=self._follow, args=(who, link), daemon=True
        ).start()

    def _follow(self, who: int, link: socket.socket) -> None:
        said = self._read(link)
        with self._lock:
            if said == _ENDS or self._over:
                self._peers.pop(who, None)
                return
            self._over = True
            dead = who if said is None else said
            for other in self._peers.values():
                if other is not link:
                    try:
                        other.sendall(_ID.pack(dead))
                    except OSError:
                        pass  # dead as well
        self._died(dead)

    @staticmethod
    def _read(link: socket.socket) -> int | None:
        """The next number, None where the connection has ended."""
        data = b""
        try:
            while len(data) < _ID.size:
                piece = link.recv(_ID.size - len(data))
                if not piece:
                    return None
                data += piece
        except OSError:
            return None
        return _ID.unpack(data)[0]
