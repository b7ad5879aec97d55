"""Making batches ahead of the training step, in a thread or in processes.

Grain does it. Its own state is not used: it is tied to the number of workers
and holds nothing but a position, which the caller knows.

Workers take no signals. A scheduler signals the whole process group, and were
workers to die of it, the parent could not go on to its last checkpoint. They
leave when the parent closes the iterator or is gone.
"""

from collections.abc import Callable, Iterator
import contextlib
import multiprocessing
from multiprocessing import resource_tracker
import os
import signal
import threading

from absl import flags
import grain

from seqjax.data import _packing

_ENDLESS = 2**48
_AHEAD = 2
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def was_killed(error: BaseException) -> bool:
    """Whether Grain says with this error that a worker process is gone."""
    return isinstance(error, RuntimeError) and (
        "process was terminated unexpectedly" in str(error)
    )


def start(
    batches: Callable[[int], _packing.Batch], first: int, num_workers: int
) -> tuple[grain.DatasetIterator, _packing.Batch]:
    """An iterator over batches(first + 1), ..., and batches(first)."""
    numbers = grain.MapDataset.range(first, first + _ENDLESS)
    dataset = numbers.map(batches).to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)
    )
    if num_workers == 0:
        running = iter(dataset)
        return running, next(running)
    if not flags.FLAGS.is_parsed():
        # Grain hands flags on to its workers and needs them parsed, which
        # outside of absl's app.run nobody has done.
        flags.FLAGS.mark_as_parsed()
    options = grain.multiprocessing.MultiprocessingOptions(
        num_workers=num_workers, per_worker_buffer_size=_AHEAD
    )
    running = iter(dataset.mp_prefetch(options, worker_init_fn=_start_worker))
    try:
        with _signals_blocked():
            return running, next(running)
    except BaseException:
        running.close()
        raise


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    # Until _start_worker runs, seconds after its birth, a worker would die of
    # a signal. It is born with the mask of the thread that starts it, which
    # has the mask of this one. A signal for this process waits meanwhile.
    # The tracker first: starting it unblocks signals.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(index: int, count: int) -> None:
    del index, count
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    # Without this a worker whose parent was killed would wait for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
