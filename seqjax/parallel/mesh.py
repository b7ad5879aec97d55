"""The device mesh of a run: axes data, fsdp and seq.

``data`` and ``fsdp`` both split the batch; ``fsdp`` splits large parameters
as well (see ``seqjax.parallel.sharding``).  ``seq`` is kept for sequence
parallelism and must be 1 for now.
"""

import dataclasses

import jax

AXES = ("data", "fsdp", "seq")
BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass
class MeshConfig:
    """How many devices each mesh axis takes; data=-1 takes what is left."""

    data: int = -1
    fsdp: int = 1
    seq: int = 1

    def validate(self) -> None:
        """Raises ValueError for sizes that no machine can satisfy."""
        if self.data != -1 and self.data < 1:
            raise ValueError(
                f"mesh.data must be -1 (all remaining devices) or at least 1, "
                f"got {self.data}"
            )
        if self.fsdp < 1:
            raise ValueError(f"mesh.fsdp must be at least 1, got {self.fsdp}")
        if self.seq != 1:
            raise ValueError(
                f"mesh.seq must be 1, got {self.seq}: sharding the sequence "
                f"inside training is not built yet; use mesh.data or mesh.fsdp"
            )

    def sizes(self, device_count: int) -> tuple[int, int, int]:
        """The axis sizes for that many devices, or ValueError with a remedy."""
        rest = self.fsdp * self.seq
        data = self.data
        if data == -1:
            data = max(device_count // rest, 1)
        if data * rest != device_count:
            raise ValueError(
                f"mesh data={self.data}, fsdp={self.fsdp}, seq={self.seq} "
                f"takes {data * rest} devices, but {device_count} are there; "
                f"set mesh.data=-1 and a mesh.fsdp that divides {device_count}"
            )
        return data, self.fsdp, self.seq


def make_mesh(config: MeshConfig) -> jax.sharding.Mesh:
    """Builds the mesh over all devices, with Auto axes.

    The axis types are always passed, since the default of ``jax.make_mesh``
    changed between JAX versions.
    """
    sizes = config.sizes(jax.device_count())
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.make_mesh(sizes, AXES, axis_types=auto)
