"""A JAX function compiled for an H200 without one."""

import functools
import pathlib
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

TARGET = pathlib.Path(__file__).with_name("h200.pbtxt")
# What of a compiled program starts work on the device.
_LAUNCH = re.compile(
    r" = .*? (fusion|custom-call|copy|copy-start|gemm|sort|scatter|gather|"
    r"reduce|reduce-window|select-and-scatter|transpose|convolution|rng|"
    r"concatenate|slice|pad|broadcast|dynamic-slice|dynamic-update-slice|"
    r"iota|convert|while|conditional)\("
)
_KERNEL = 'custom_call_target="triton_kernel_call_ffi"'
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_INSIDE = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)")


class Cost(NamedTuple):
    """Of one compiled program.

    Attributes:
      kernels: launches of Triton kernels.
      launches: all that start work, these included; a loop counts once.
      temporary: bytes beside inputs and outputs.
      arguments: bytes of the inputs.
      outputs: bytes of the outputs.
    """

    kernels: int
    launches: int
    temporary: int
    arguments: int
    outputs: int


@functools.cache
def _mesh() -> jax.sharding.Mesh:
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=TARGET.read_text(), topology="1x1x1"
    )
    return topologies.make_mesh(topology, (1,), ("x",))


def abstract_mesh() -> jax.sharding.AbstractMesh:
    """Under which a program is traced for an H200."""
    device = jax.sharding.AbstractDevice(
        device_kind="NVIDIA H200", num_cores=132, platform="gpu"
    )
    return _mesh().abstract_mesh.update(abstract_device=device)


def compile_for(function, *shapes, **options) -> jax.stages.Compiled:
    """`function` of `jax.ShapeDtypeStruct`s, compiled for an H200."""
    mesh = _mesh()
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    arguments = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
    )
    # A function of its own: a cached trace may be another device's.
    with jax.sharding.use_abstract_mesh(abstract_mesh()):
        traced = jax.jit(lambda *a: function(*a)).trace(*arguments)
        lowered = traced.lower(lowering_platforms=("cuda",))
    return lowered.compile(options or None)


def cost(compiled: jax.stages.Compiled) -> Cost:
    """Reads a program's launches and memory."""
    memory = compiled.memory_analysis()
    kernels, launches = count(compiled.as_text())
    return Cost(
        kernels,
        launches,
        memory.temp_size_in_bytes,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
    )


def count(text: str) -> tuple[int, int]:
    """(Triton launches, all launches) of a program's HLO text."""
    bodies: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        found = _COMPUTATION.match(line)
        if found and " = " not in line.split("(", 1)[0]:
            name = found[2]
            bodies[name] = []
        elif line.startswith("}"):
            name = ""
        elif name:
            bodies[name].append(line)
    # The inside of a fusion or a reduction is one launch; that of a command
    # buffer, which is called too, is many.
    inside = {
        called
        for lines in bodies.values()
        for line in lines
        if not re.search(r" (call|while|conditional)\(", line)
        for called in _INSIDE.findall(line)
    }
    lines = [
        line
        for name, body in bodies.items()
        if name not in inside
        for line in body
        if _LAUNCH.search(line)
    ]
    return sum(_KERNEL in line for line in lines), len(lines)
