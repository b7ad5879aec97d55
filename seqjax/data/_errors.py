"""The errors of the data room."""


class DataError(ValueError):
    """Data or data settings that cannot be used.

    The message names the file and record, or the field and its value, says
    what is accepted and how to get there.
    """


class WorkerKilled(DataError):
    """A worker process ended without a word; the data may be as good as ever.

    A reader that starts again at its position gives the next batch.
    """
