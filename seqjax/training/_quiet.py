"""Keeps the commentary of libraries out of a user's log."""

import os

from absl import logging


def hush_orbax() -> None:
    """Drops Orbax's INFO lines, dozens a save, and its error tracebacks.

    The errors themselves are raised again by the caller with a remedy.
    """
    logger = logging.get_absl_logger()
    if _worth_reading not in logger.filters:
        logger.addFilter(_worth_reading)


def _worth_reading(record) -> bool:
    if f"{os.sep}orbax{os.sep}" not in record.pathname:
        return True
    loud = record.levelname in ("WARNING", "ERROR", "CRITICAL")
    return loud and record.exc_info is None
