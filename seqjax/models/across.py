"""What a model must know of the mesh when each device runs its part of it.

The modules hold no mesh.  Inside `jax.shard_map` a model with an `Across` takes
its device's tokens [B/.., T/P] and its shards of the parameters: operators
exchange what crosses the borders of T along `axis_name`, and each layer gathers
its own parameters when it runs, so that no more than one layer's are whole at
a time.  The backward gathers them again and keeps nothing whole.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax

from seqjax.layers import mixer
from seqjax.parallel import shards

P = jax.sharding.PartitionSpec
_LAYERS = "layers"  # where `LanguageModel` keeps what it scans over
_SAME_NUMBERS = ("convert_element_type", "reshape", "squeeze", "transpose")


@dataclasses.dataclass(frozen=True, eq=False)
class Across:
    """How one model lies on a mesh.

    Attributes:
      specs: PartitionSpec of each leaf of the variables, in their tree; None
        where every device has all of them.
      axis_name: mesh axis that shards T, or None.
      exchange: of recurrent mixers, "all_gather", "prefix_scan", "ring" or
        None for the default of each operator.
      attention_exchange: of softmax attention, "all_gather", "ring" or None.
    """

    specs: Any = None
    axis_name: str | None = None
    exchange: str | None = None
    attention_exchange: str | None = None

    def host(self, host: mixer.Host) -> mixer.Host:
        """What layers are told, with the axis that shards T."""
        return host._replace(
            axis_name=self.axis_name,
            exchange=self.exchange,
            attention_exchange=self.attention_exchange,
        )

    def outer(self, variables: Any) -> Any:
        """The variables, whole but for what the layers gather themselves."""
        if self.specs is None:
            return variables
        specs = jax.tree_util.tree_map_with_path(
            lambda path, spec: P() if _in_layer(path, spec) else spec,
            self.specs,
        )
        return shards.gather(variables, specs)

    def layer(self, block: type[nn.Module], name: str) -> type[nn.Module]:
        """A block that gathers its own parameters, those of `layers/name`."""
        if self.specs is None:
            return block
        stacked = {"params": self.specs["params"][_LAYERS][name]}
        # Without the axis of the repeats, which the scan takes away.
        specs = jax.tree.map(
            lambda spec: P(*spec[1:]) if _local(spec) else P(), stacked
        )
        if not any(any(spec) for spec in jax.tree.leaves(specs)):
            return block
        return nn.map_variables(
            block, "params", lambda variables: shards.gather(variables, specs)
        )

    def keeps(self, prim: Any, *_: Any, **params: Any) -> bool:
        """A remat policy: a layer's values, without its gathered parameters.

        Nor what is the same numbers in another dtype or shape, such as the
        parameters in the dtype of the computation.
        """
        if prim.name == "all_gather":
            return self.axis_name in params["axis_name"]
        return prim.name not in _SAME_NUMBERS


def _local(spec: P) -> bool:
    """Whether each repeat lies on all devices, itself split or not."""
    return not spec or spec[0] is None


def _in_layer(path: tuple[Any, ...], spec: P) -> bool:
    return _LAYERS in [key.key for key in path[:2]] and _local(spec)
