"""Checkpoints on disk that tests read, and damage in copies of their own."""

import pathlib
import shutil

import pytest

from tests.training import _states


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with steps 10 and 20 of different states."""
    directory = tmp_path_factory.mktemp("saved")
    with _states.open_store(directory) as store:
        for step in (10, 20):
            store.save(
                step,
                _states.make_state(step),
                {"at": [step, 0.1]},
                {"note": str(step)},
            )
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return pathlib.Path(shutil.copytree(saved, tmp_path / "copy"))
