"""The device mesh of a run: axes data, fsdp and seq.

``data`` and ``fsdp`` both split the batch; ``fsdp`` splits large parameters
as well (see ``seqjax.parallel.sharding``); ``seq`` splits each sequence.
"""

import dataclasses

import jax

AXES = ("data", "fsdp", "seq")
BATCH_AXES = ("data", "fsdp")
SEQUENCE_AXIS = "seq"
EXCHANGES = ("auto", "all_gather", "prefix_scan", "ring")
ATTENTION_EXCHANGES = ("auto", "all_gather", "ring")


@dataclasses.dataclass
class MeshConfig:
    """How many devices each mesh axis takes, and what moves along seq.

    Attributes:
      data: parts of the batch; -1 takes the devices that are left.
      fsdp: further parts of the batch, and parts of large parameters.
      seq: parts of each sequence.
      exchange: how recurrent mixers pass their states along seq; "auto" is the
        default of each operator, by bytes and number of devices.
      attention_exchange: how softmax attention passes keys and values; with a
        window only a halo moves, whatever this says.
    """

    data: int = -1
    fsdp: int = 1
    seq: int = 1
    exchange: str = "auto"
    attention_exchange: str = "auto"

    def validate(self) -> None:
        """Raises ValueError for sizes that no machine can satisfy."""
        if self.data != -1 and self.data < 1:
            raise ValueError(
                f"mesh.data must be -1 (all remaining devices) or at least 1, "
                f"got {self.data}"
            )
        for name in ("fsdp", "seq"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"mesh.{name} must be at least 1, got {getattr(self, name)}"
                )
        for name, accepted in (
            ("exchange", EXCHANGES),
            ("attention_exchange", ATTENTION_EXCHANGES),
        ):
            if getattr(self, name) not in accepted:
                raise ValueError(
                    f"mesh.{name} must be one of {accepted}, got "
                    f"{getattr(self, name)!r}"
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
                f"set mesh.data=-1 and mesh.fsdp * mesh.seq to a divisor of "
                f"{device_count}"
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
