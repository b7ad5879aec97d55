"""What every test runs under: set before JAX is imported."""

import gc
import itertools
import os
import pathlib

from tests import xla_flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Compiled programs are kept between runs. JAX writes a cache file in place,
# so another process could read half of one: each worker has its own folder,
# and so have the processes that tests start (some of them to be killed).
_CACHE = ROOT / ".cache" / "jax" / os.environ.get("PYTEST_XDIST_WORKER", "main")

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = xla_flags.flags(devices=8)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_CACHE / "children")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
# Plots and reports must not look for a display.
os.environ["MPLBACKEND"] = "Agg"

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_compilation_cache_dir", str(_CACHE / "own"))
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing makes many objects and few cycles: at the default of 700 objects the
# collector takes a fourteenth of the suite's time.
gc.set_threshold(50_000, 20, 10)

# The same examples in every run; no deadline, since the first example of a
# jitted function pays for its compilation.
hypothesis.settings.register_profile(
    "seqjax", deadline=None, derandomize=True, database=None
)
hypothesis.settings.load_profile("seqjax")


def pytest_addoption(parser):
    """`--full` runs the crosses too, of which the default takes a part."""
    parser.addoption(
        "--full",
        action="store_true",
        help="also run the tests marked full",
    )


def pytest_collection_modifyitems(config, items):
    """Leaves the tests marked full out, and counts them as deselected."""
    if config.option.full:
        return
    left = [item for item in items if item.get_closest_marker("full")]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [i for i in items if not i.get_closest_marker("full")]


# Each compiled program maps some sixty pieces of memory, and Linux allows a
# process 65530 of them: beyond that XLA crashes.
_MAPS = pathlib.Path("/proc/self/maps")
_MOST_MAPS = 40_000
_CHECKED_EVERY = 20
_tests = itertools.count(1)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown():
    """Drops compiled programs before they are too many for the process."""
    if next(_tests) % _CHECKED_EVERY or not _MAPS.exists():
        return
    with _MAPS.open("rb") as lines:
        count = sum(1 for _ in lines)
    if count > _MOST_MAPS:
        jax.clear_caches()
