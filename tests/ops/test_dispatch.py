"""Which implementation runs, and what is said where none can."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import ops
from seqjax.ops import _dispatch
from seqjax_kernels import launch


def implementation(name, refusal=None):
    """Runs as its own name; `refusal` tells (platform, x) why it cannot."""
    refuses = refusal or (lambda platform, x: None)
    return _dispatch.Implementation(lambda x: (name, x), refuses)


def only_on(platform):
    def refuses(where, x):
        del x
        return None if where == platform else f"needs {platform}, not {where}"

    return refuses


def too_long(platform, x):
    del platform
    return f"takes at most 4 tokens, got {len(x)}" if len(x) > 4 else None


@pytest.fixture(autouse=True)
def _table(monkeypatch):
    """Three ways to run "toy", the best first."""
    table = {
        "gpu_kernel": implementation("gpu_kernel", only_on("gpu")),
        "short_kernel": implementation("short_kernel", too_long),
        "xla": implementation("xla"),
    }
    monkeypatch.setitem(_dispatch.IMPLEMENTATIONS, "toy", table)


def ran(implementation, length=2):
    x = np.zeros(length)
    return _dispatch.choose("toy", implementation, x)(x)[0]


def test_the_first_that_can_run():
    assert ran(None) == "short_kernel"
    assert ran(None, 9) == "xla"


def test_a_list_is_an_order():
    assert ran(["xla", "short_kernel"]) == "xla"
    assert ran(("gpu_kernel", "xla")) == "xla"
    assert ran(["short_kernel", "xla"], 9) == "xla"
    assert ran("xla") == "xla"


def test_a_preference_counts_where_nothing_is_named():
    with ops.preferred_implementation("xla"):
        assert ran(None) == "xla"
        assert ran("short_kernel") == "short_kernel"
        with ops.preferred_implementation(["gpu_kernel", "short_kernel"]):
            assert ran(None) == "short_kernel"  # the first cannot run
            assert ran(None, 9) == "xla"
        assert ran(None) == "xla"
        # Others have no short_kernel.
        q = jnp.zeros((1, 5, 2, 4))
        with ops.preferred_implementation("short_kernel"):
            assert ops.linear_attention(q, q, q)[0].shape == q.shape
    assert ran(None) == "short_kernel"
    for names in ("abacus", [], ["xla", "abacus"]):
        with pytest.raises(ValueError, match="names must be one of gpu_kernel"):
            with ops.preferred_implementation(names):
                pass


def test_what_ran_can_be_asked():
    ran(None)
    assert _dispatch.chosen_implementations()["toy"] == "short_kernel"
    ran(None, 9)
    assert _dispatch.chosen_implementations()["toy"] == "xla"


def test_a_name_that_cannot_run_says_why():
    with pytest.raises(ValueError) as caught:
        ran("gpu_kernel")
    assert str(caught.value) == (
        "toy: no implementation can run on cpu: gpu_kernel: needs gpu, not cpu"
    )


def test_a_list_that_cannot_run_says_all_reasons():
    with pytest.raises(ValueError) as caught:
        ran(["short_kernel", "gpu_kernel"], 9)
    assert str(caught.value) == (
        "toy: no implementation can run on cpu: short_kernel: takes at most 4"
        " tokens, got 9; gpu_kernel: needs gpu, not cpu"
    )


@pytest.mark.parametrize("name", ["abacus", ["xla", "abacus"], [], 5, [[]]])
def test_unknown_names(name):
    with pytest.raises(ValueError) as caught:
        ran(name)
    message = str(caught.value)
    assert "must be one of gpu_kernel, short_kernel, xla, an" in message
    assert repr(name) in message


def test_platform_is_that_of_the_abstract_mesh():
    """A program traced here for another machine runs that one's best."""
    device = jax.sharding.AbstractDevice("NVIDIA H100", None, "gpu")
    mesh = jax.sharding.AbstractMesh((2,), ("seq",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert _dispatch.platform() == "gpu"
        assert ran(None) == "gpu_kernel"
        with pytest.raises(ValueError, match="can run on gpu: short_kernel"):
            ran("short_kernel", 9)
    with jax.sharding.use_abstract_mesh(
        jax.sharding.AbstractMesh((2,), ("seq",))
    ):
        assert _dispatch.platform() == "cpu"
    assert _dispatch.platform() == "cpu"


def test_a_gpu_without_kernels_is_told_once(monkeypatch):
    said = []
    monkeypatch.setattr(_dispatch.logging, "warning", lambda *a: said.append(a))
    monkeypatch.setattr(_dispatch, "platform", lambda: "gpu")
    monkeypatch.setattr(_dispatch, "_warned", set())
    del _dispatch.IMPLEMENTATIONS["toy"]["gpu_kernel"]
    # These arguments have no kernel, others may.
    monkeypatch.setattr(launch, "why_not", lambda: None)
    assert ran(None, 9) == "xla" and not said
    monkeypatch.setattr(launch, "why_not", lambda: "Triton is not installed")
    assert ran("xla") == "xla" and not said  # it was asked for
    assert ran(None, 9) == ran(None, 9) == "xla"
    (warning,) = said
    assert warning[1] == "Triton is not installed"


def test_an_operator_names_its_refusals(monkeypatch):
    table = dict(_dispatch.IMPLEMENTATIONS["linear_attention"])
    seen = {}

    def refuses(platform, *, form, q, **inputs):
        seen.update(platform=platform, form=form, q=q.shape)
        return "is not built here"

    table["kernel"] = _dispatch.Implementation(None, refuses)
    monkeypatch.setitem(_dispatch.IMPLEMENTATIONS, "linear_attention", table)
    q = jnp.zeros((1, 5, 2, 4))
    with pytest.raises(ValueError, match="kernel: is not built here"):
        ops.linear_attention(q, q, q, implementation="kernel")
    assert seen == {"platform": "cpu", "form": "chunk", "q": (1, 5, 2, 4)}
    y, _ = ops.linear_attention(q, q, q, implementation=["kernel", "xla"])
    assert y.shape == q.shape
