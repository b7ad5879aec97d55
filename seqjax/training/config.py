"""The typed configuration of a training run.

Plain, mutable dataclasses until the command line is parsed; ``validate``
finds what is wrong with them before a device is touched.
"""

import dataclasses
import re
from typing import Any

from seqjax import data as data_lib
from seqjax import models
from seqjax.parallel import mesh as mesh_lib
from seqjax.training import flags
from seqjax.training import optimizer as optimizer_lib

# What may change between a run and its resumption without changing its
# results beyond rounding: where it runs, how often it saves, what it shows.
FREE_FIELDS = (
    "mesh",
    "checkpoint",
    "profile",
    "progress_every",
    "compile_cache",
    "data.num_workers",
)


@dataclasses.dataclass
class CheckpointConfig:
    """When checkpoints are written and which are kept.

    Attributes:
      every: a checkpoint after each so many steps, and after the last.
      keep: so many of the newest stay.
      keep_every: those of steps divisible by it stay for good; 0: none.
    """

    every: int = 200
    keep: int = 3
    keep_every: int = 0

    def validate(self) -> None:
        """Raises ValueError naming the field."""
        for name, least in (("every", 1), ("keep", 1), ("keep_every", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"checkpoint.{name} must be at least {least}, got "
                    f"{getattr(self, name)}"
                )


@dataclasses.dataclass
class ProfileConfig:
    """A profiler trace of steps "first:last" into DIR/profile; "" is off."""

    steps: str = ""

    def window(self) -> tuple[int, int] | None:
        """The first and the last profiled step, or None."""
        if not self.steps:
            return None
        found = re.fullmatch(r"(\d+):(\d+)", self.steps)
        if not found or int(found[1]) > int(found[2]):
            raise ValueError(
                f'profile.steps must be "first:last" such as "10:15", or '
                f'"" for none, got {self.steps!r}'
            )
        return int(found[1]), int(found[2])


@dataclasses.dataclass
class TrainConfig:
    """One training run.

    Attributes:
      model: the language model; dtype "auto" is bfloat16 where the hardware
        multiplies it natively and float32 on CPU.
      data: the text; ``batch_size`` is global, over all devices and
        processes.
      optimizer: AdamW and its schedule.
      mesh: sizes of the device mesh.
      checkpoint: when to save.
      steps: number of optimizer updates.
      accumulation: microbatches an update is summed over; divides the batch
        on each device.
      eval_every: validate after each so many steps, and after the last.
      progress_every: a progress line after each so many steps.
      seed: of the initial parameters and of everything drawn in training.
      nonfinite: "stop" ends the run at the first loss or gradient that is
        not finite; "skip" leaves that update out and counts it, and ends the
        run after ten (or half of all) in succession.  A validation that is
        not finite ends it always.
      debug: run without jit, with NaN checks.
      profile: which steps to trace.
      init_from: a checkpoint of another project (`seqjax.interop`), a folder or
        a hub id, to start from; "" starts from random parameters.  The model is
        then the checkpoint's; of `model` only dtype and remat count.
      compile_cache: a directory for compiled programs; "auto" is what
        JAX_COMPILATION_CACHE_DIR names, else DIR/compile_cache; "off".
    """

    model: models.LanguageModelConfig
    data: data_lib.DataConfig
    optimizer: optimizer_lib.OptimizerConfig = dataclasses.field(
        default_factory=optimizer_lib.OptimizerConfig
    )
    mesh: mesh_lib.MeshConfig = dataclasses.field(
        default_factory=mesh_lib.MeshConfig
    )
    checkpoint: CheckpointConfig = dataclasses.field(
        default_factory=CheckpointConfig
    )
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)
    steps: int = 1000
    accumulation: int = 1
    eval_every: int = 500
    progress_every: int = 20
    seed: int = 0
    nonfinite: str = "stop"
    debug: bool = False
    init_from: str = ""
    compile_cache: str = "auto"

    def validate(self) -> None:
        """Raises ConfigError naming the field, its value and the remedy."""
        for name in ("steps", "accumulation", "eval_every", "progress_every"):
            if getattr(self, name) < 1:
                raise flags.ConfigError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if self.seed < 0 or self.seed >= 2**31:
            raise flags.ConfigError(
                f"seed must be in [0, 2**31), got {self.seed}"
            )
        if self.nonfinite not in ("stop", "skip"):
            raise flags.ConfigError(
                f'nonfinite must be "stop" or "skip", got {self.nonfinite!r}'
            )
        try:
            self.resolved_model("float32").validate("model.")
            for part in (self.optimizer, self.mesh, self.checkpoint):
                part.validate()
            self.profile.window()
            self.data.validate()
        except data_lib.DataError as error:
            raise flags.ConfigError(
                flags.with_paths(str(error), "data", self.data)
            ) from error
        except ValueError as error:
            raise flags.ConfigError(
                flags.with_paths(str(error), "model", self.model)
            ) from error
        if not (self.data.validation_fraction or self.data.validation_path):
            raise flags.ConfigError(
                "data.validation_fraction is 0 and data.validation_path is "
                "empty: there is nothing to validate on; set one of them"
            )
        # A model that init_from will replace says nothing yet.
        known = not self.init_from or hasattr(self.model, "source")
        if known and self.model.vocab_size < self.data.vocab_size:
            raise flags.ConfigError(
                f"model.vocab_size must be at least data.vocab_size = "
                f"{self.data.vocab_size}, got {self.model.vocab_size}"
            )
        if self.optimizer.warmup_steps >= self.steps:
            raise flags.ConfigError(
                f"optimizer.warmup_steps must be less than steps = "
                f"{self.steps}, got {self.optimizer.warmup_steps}; lower it, "
                f"or raise steps"
            )
        try:
            self.resolved_model("float32").check_sharded(
                self.data.sequence_length, self.mesh.seq, "model."
            )
        except ValueError as error:
            raise flags.ConfigError(str(error)) from error
        if self.debug and self.mesh.seq > 1:
            raise flags.ConfigError(
                f"debug runs without jit, on whole sequences: mesh.seq must "
                f"be 1, got {self.mesh.seq}; leave debug or mesh.seq out"
            )
        # Also where mesh.data is -1: that takes one device or more.
        self.check_devices(max(self.mesh.data, 1) * self.mesh.fsdp)

    def check_devices(self, shards: int) -> None:
        """Raises ConfigError unless the batch splits over the devices."""
        rows = shards * self.accumulation
        batch = self.data.batch_size
        if batch % rows:
            down, up = batch // rows * rows, -(-batch // rows) * rows
            usable = " or ".join(str(n) for n in (down, up) if n)
            raise flags.ConfigError(
                f"data.batch_size = {batch} (global) is not divisible by "
                f"{rows} = {shards} devices (mesh.data * mesh.fsdp) x "
                f"accumulation = {self.accumulation}; set data.batch_size to "
                f"{usable}"
            )

    def resolved_model(self, auto: str) -> models.LanguageModelConfig:
        """The model's config with dtype "auto" replaced."""
        if self.model.dtype != "auto":
            return self.model
        return dataclasses.replace(self.model, dtype=auto)


def to_dict(config: Any) -> dict[str, Any]:
    """A config as a JSON-able nested dict."""
    return dataclasses.asdict(config)
