"""What a config.json says, read with every fault at once.

A family asks for each of its settings by name.  What it asks for must be there
(or have a default) and be of its kind; what it never asks for is refused, so
that no option is ignored in silence.
"""

from collections.abc import Mapping
import json
from typing import Any

_MISSING = object()
# These change nothing in what a model computes from its parameters.
WITHOUT_EFFECT = (
    "_name_or_path",
    "architectures",
    "attn_mode",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "fuse_cross_entropy",
    "fuse_linear_cross_entropy",
    "fuse_norm",
    "fuse_swiglu",
    "initializer_range",
    "max_position_embeddings",
    "model_type",
    "pad_token_id",
    "rescale_prenorm_residual",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)


class Settings:
    """The settings of one checkpoint.

    Args:
      values: of config.json.
      shapes: of the tensors, by name: where config.json leaves a size open,
        they say it.
      path: what stands before the names, such as "attn.".
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        path: str = "",
    ):
        self._values, self._shapes, self._path = values, shapes, path
        # Sizes that the tensors told, by the names of the settings.
        self.found: dict[str, int] = {}
        self._asked: set[str] = set(WITHOUT_EFFECT)
        self._faults: list[str] = []

    def get(self, name: str, default: Any = _MISSING) -> Any:
        """A value as it is."""
        self._asked.add(name)
        if name not in self._values and default is _MISSING:
            self.fault(f"{self._path}{name} is missing")
            return None
        return self._values.get(name, default)

    def whole(self, name: str, default: Any = _MISSING) -> int:
        """A whole number of at least 1; null stands for a given default."""
        value = self.get(name, default)
        if value is None and default is not _MISSING:
            value = default
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or value < 1:
            self._kind(name, value, "a whole number of at least 1")
            return 1
        return value

    def whole_or_none(self, name: str) -> int | None:
        """A whole number of at least 1, or null."""
        return None if self.get(name, None) is None else self.whole(name)

    def number(self, name: str, default: Any = _MISSING) -> float:
        """A number; null stands for a given default."""
        value = self.get(name, default)
        if value is None and default is not _MISSING:
            value = default
        if value is None or type(value) not in (int, float):
            self._kind(name, value, "a number")
            return 1.0
        return value

    def positive(self, name: str, default: Any = _MISSING) -> float:
        """A number above 0; null stands for a given default."""
        value = self.number(name, default)
        if not value > 0:
            self._kind(name, value, "a number above 0")
            return 1.0
        return value

    def count(self, name: str, default: int) -> int:
        """A whole number of at least 0."""
        value = self.get(name, default)
        if type(value) is not int or value < 0:
            self._kind(name, value, "a whole number of at least 0")
            return 0
        return value

    def places(self, name: str, depth: int, default: Any = _MISSING) -> Any:
        """A list of layers out of `depth`; null stands for a given default."""
        value = self.get(name, default)
        if value is None and default is not _MISSING:
            return default
        if value is not default and (
            not isinstance(value, list)
            or not all(type(i) is int and 0 <= i < depth for i in value)
        ):
            self.fault(
                f"{self._path}{name} = {json.dumps(value)} is not supported; "
                f"it must list layers from 0 to {depth - 1}"
            )
            return []
        return value

    def listed(self, name: str, accepted: list[Any], size: int) -> list[Any]:
        """A list of so many out of `accepted`."""
        value = self.get(name)
        if (
            not isinstance(value, list)
            or len(value) != size
            or any(type(x) is not type(accepted[0]) for x in value)
            or any(x not in accepted for x in value)
        ):
            said = f"a list of {size} out of {json.dumps(accepted)}"
            self._kind(name, value, said)
            return accepted[:1] * size
        return value

    def group(self, name: str) -> "Settings | None":
        """Settings inside a setting; None where it is null or missing."""
        value = self.get(name, None)
        if value is not None and not isinstance(value, dict):
            self._kind(name, value, "an object or null")
        if not isinstance(value, dict):
            return None
        return Settings(value, {}, f"{self._path}{name}.")

    def fill(self, values: Mapping[str, Any]) -> None:
        """Settings that count where they are not said."""
        self._values = {**values, **self._values}

    def flag(self, name: str, default: Any = _MISSING) -> bool:
        """True or false."""
        value = self.get(name, default)
        if type(value) is not bool:
            self._kind(name, value, "true or false")
            return False
        return value

    def only(self, name: str, *accepted: Any) -> Any:
        """One of a few values, the first of them where it is missing."""
        value = self.get(name, accepted[0])
        # 1 is not True here.
        if not any(type(value) is type(a) and value == a for a in accepted):
            said = " or ".join(json.dumps(a) for a in accepted)
            self._kind(name, value, said)
            return accepted[0]
        return value

    def ignored(self, *names: str) -> None:
        """These do not matter for what the model computes."""
        self._asked.update(names)

    def whole_or_axis(self, name: str, tensor: str, axis: int) -> int:
        """A whole number; where it is null, the size of a tensor's axis.

        What the tensor says is noted in `found`.
        """
        if self.get(name, None) is not None:
            return self.whole(name)
        shape = self._shapes.get(tensor, ())
        if len(shape) <= axis:
            self.fault(
                f"{self._path}{name} is open, and {tensor}, which would tell, "
                + (f"is {list(shape)}" if shape else "is missing")
            )
            return 1
        self.found[name] = shape[axis]
        return shape[axis]

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """Of one of the checkpoint's tensors; None where it has none."""
        return self._shapes.get(tensor)

    def include(self, inner: "Settings") -> None:
        """Takes over the faults of a group of settings."""
        for text in inner.faults():
            self.fault(text)

    def fault(self, text: str) -> None:
        """Notes a fault, for `finish` to raise."""
        if text not in self._faults:
            self._faults.append(text)

    def faults(self) -> list[str]:
        """All that was wrong, and what was not asked for."""
        known = ", ".join(sorted(self._asked - set(WITHOUT_EFFECT)))
        for name in self._values:
            if name not in self._asked:
                self.fault(
                    f"{self._path}{name} = {json.dumps(self._values[name])} "
                    f"is not supported; known are {known}"
                )
        return self._faults

    def finish(self, family: str) -> None:
        """Raises ValueError naming all `faults`, if there are any."""
        faults = self.faults()
        if faults:
            raise ValueError(
                f"config.json of {family} cannot be followed:\n  "
                + "\n  ".join(faults)
            )

    def _kind(self, name: str, value: Any, wanted: str) -> None:
        if name in self._values or value is not None:
            self.fault(
                f"{self._path}{name} = {json.dumps(value)} is not supported; "
                f"it must be {wanted}"
            )
