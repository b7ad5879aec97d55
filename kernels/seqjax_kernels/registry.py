"""Kernels x configurations that are compiled and held to their resources.

A family is a folder here. Its module `cases` says which calls launch its
kernels, with which shapes:

    CASES = (
        registry.Case("forward K128 bf16", run, (shape, shape, None)),
    )

`run` takes arrays and returns anything; it imports kernels when it is called.
It is only traced, so shapes may be those of real models. The kernels that it
launches, with their constants, warps and stages, are what is compiled.

Registers must hold everything. What has no better tiles is named in SPILLS,
{(kind of device, "case: kernel"): bytes}, with the reason.
"""

from collections.abc import Callable
import importlib
from typing import Any, NamedTuple

import jax

from seqjax_kernels import devices
from seqjax_kernels import launch

FAMILIES = ("pointwise", "decay")


class Case(NamedTuple):
    """A call that launches kernels.

    Attributes:
      name: what tells it from the others of its family.
      run: takes the inputs.
      inputs: a `jax.ShapeDtypeStruct` or None each.
    """

    name: str
    run: Callable[..., Any]
    inputs: tuple[jax.ShapeDtypeStruct | None, ...]


def cases(family: str) -> tuple[Case, ...]:
    """The cases of a family."""
    return importlib.import_module(f"seqjax_kernels.{family}.cases").CASES


def spills(family: str) -> dict[tuple[str, str], int]:
    """Bytes that named kernels of a family may spill."""
    module = importlib.import_module(f"seqjax_kernels.{family}.cases")
    return getattr(module, "SPILLS", {})


def abstract_gpu(kind: str) -> jax.sharding.AbstractMesh:
    """A mesh of one device of a kind, under which programs are traced for it.

    Args:
      kind: as in `devices.DEVICES`.
    """
    device = devices.find(kind)
    if device is None:
        raise ValueError(f"kind must be in devices.DEVICES, got {kind!r}")
    return jax.sharding.AbstractMesh(
        (1,),
        ("x",),
        axis_types=(jax.sharding.AxisType.Auto,),
        abstract_device=jax.sharding.AbstractDevice(
            device_kind=f"NVIDIA {device.kind}",
            num_cores=device.multiprocessors,
            platform="gpu",
        ),
    )


def launches(case: Case, kind: str) -> list[launch.Launch]:
    """What a case launches on a kind of device, in order."""
    with (
        jax.sharding.use_abstract_mesh(abstract_gpu(kind)),
        launch.record() as recorded,
    ):
        # A function of its own: a cached trace would launch nothing.
        jax.eval_shape(lambda *inputs: case.run(*inputs), *case.inputs)
    return recorded
