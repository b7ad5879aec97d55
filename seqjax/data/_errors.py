"""The one error of the data room."""


class DataError(ValueError):
    """Data or data settings that cannot be used.

    The message names the file and record, or the field and its value, says
    what is accepted and how to get there.
    """
