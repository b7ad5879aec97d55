"""Mapping tables: which numbers of a checkpoint are which of a model.

A family's table is a list of links, made by one pass over the model's layers
and read in both directions.  A link says that a tensor of theirs, or a part of
it, is a region of one of our parameters, up to reshapes and a permutation of
axes; so the way back needs no second table, and saving what was loaded gives
identical bytes.

    their tensor -> reshape to `split` -> part along one axis -> permute by
    `order` -> reshape to the region -> our parameter, at `index`

The repeats of a pattern are stacked in our parameters: a link of layer l fills
row l // len(pattern) of a leaf of place l % len(pattern).
"""

from collections.abc import Callable, Iterator, Mapping
import math
import re
from typing import Any, NamedTuple

from seqjax import models
from seqjax.interop import asides as asides_lib


class Part(NamedTuple):
    """Places start to stop of an axis of a tensor that was reshaped."""

    axis: int
    start: int
    stop: int


class Link(NamedTuple):
    """One correspondence; see the top of the file.

    Attributes:
      theirs: name of the tensor, None where theirs has no such numbers: ours
        are then 0 and are not saved.
      shape: of the whole tensor.
      split: what it is reshaped to.
      part: of that, or None for all.
      order: permutation of the axes.
      ours: path of the parameter, "/" between names.
      index: start of the region in it, and
      region: its shape; both with one number for each axis.
    """

    theirs: str | None
    shape: tuple[int, ...]
    split: tuple[int, ...]
    part: Part | None
    order: tuple[int, ...]
    ours: str
    index: tuple[int, ...]
    region: tuple[int, ...]


class Table:
    """Collects links for the parameters under one prefix of names.

    Args:
      shapes: of our parameters, by path.
      ours: prefix of our paths.
      theirs: prefix of their names.
      row: of stacked parameters; None outside the layers.
      links: where links are collected.
      constants: where constants are collected.
      asides: where what is not loaded is collected.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        ours: str = "",
        theirs: str = "",
        row: int | None = None,
        links: list[Link] | None = None,
        constants: list[asides_lib.Constant] | None = None,
        asides: list[asides_lib.Aside] | None = None,
    ):
        self._shapes, self._row = shapes, row
        self._ours, self._theirs = ours, theirs
        self.links: list[Link] = [] if links is None else links
        self.constants = [] if constants is None else constants
        self.asides = [] if asides is None else asides

    def layers(
        self, config: models.LanguageModelConfig, theirs: str
    ) -> Iterator[tuple[int, str, "Table"]]:
        """The layers of a model: index, name in the pattern, table.

        Args:
          config: of the model.
          theirs: prefix of a layer, with {} in the place of its index.
        """
        size = len(config.pattern)
        for layer in range(config.depth):
            repeat, place = divmod(layer, size)
            yield (
                layer,
                config.pattern[place],
                Table(
                    self._shapes,
                    f"layers/layer_{place}/",
                    theirs.format(layer),
                    repeat,
                    self.links,
                    self.constants,
                    self.asides,
                ),
            )

    def under(self, ours: str, theirs: str) -> "Table":
        """A table with longer prefixes."""
        return Table(
            self._shapes,
            f"{self._ours}{ours}",
            f"{self._theirs}{theirs}",
            self._row,
            self.links,
            self.constants,
            self.asides,
        )

    def size(self, ours: str) -> tuple[int, ...]:
        """Shape of a parameter, of one layer where they are stacked."""
        path = f"{self._ours}{ours}"
        if path not in self._shapes:
            raise KeyError(f"the model has no parameter {path}")
        shape = self._shapes[path]
        return shape if self._row is None else shape[1:]

    def same(
        self, ours: str, theirs: str, shape: tuple[int, ...] | None = None
    ) -> None:
        """A tensor that is a parameter, reshaped where `shape` is given."""
        region = self.size(ours)
        self.link(theirs, shape or region, ours, split=region)

    def flat(self, ours: str, theirs: str) -> None:
        """A vector that is a parameter of several axes."""
        self.same(ours, theirs, (math.prod(self.size(ours)),))

    def norm(self, ours: str, theirs: str, bias: bool = False) -> None:
        """The scale of a norm, and with `bias` its bias, flat on their side."""
        self.flat(f"{ours}/scale", f"{theirs}.weight")
        if bias:
            self.flat(f"{ours}/bias", f"{theirs}.bias")

    def linear(
        self, ours: str, theirs: str, *, inputs: int = 1, bias: bool = False
    ) -> None:
        """A linear map: our kernel [in..., out...], their weight [out, in].

        Args:
          ours: path of the module.
          theirs: name of the module.
          inputs: number of axes of our kernel that are inputs.
          bias: whether it has one, flat on their side.
        """
        shape = self.size(f"{ours}/kernel")
        split = math.prod(shape[inputs:]), math.prod(shape[:inputs])
        self.link(
            f"{theirs}.weight", split, f"{ours}/kernel", split, order=(1, 0)
        )
        if bias:
            self.flat(f"{ours}/bias", f"{theirs}.bias")

    def fused(self, ours: str, parts: Mapping[str, int]) -> None:
        """Linear maps side by side in the columns of one kernel of ours.

        Args:
          ours: path of the module.
          parts: their modules and how many columns each has, in our order.
        """
        inputs, column = self.size(f"{ours}/kernel")[0], 0
        for theirs, width in parts.items():
            self.link(
                f"{theirs}.weight",
                (width, inputs),
                f"{ours}/kernel",
                order=(1, 0),
                index=(0, column),
            )
            column += width

    def convolutions(self, ours: str, parts: Mapping[str, int]) -> None:
        """Depthwise convolutions side by side in one of ours, [W, channels].

        Args:
          ours: path of the module.
          parts: their modules [width, 1, W] and their channels, in our order.
        """
        taps, column = self.size(f"{ours}/weight")[0], 0
        for theirs, width in parts.items():
            self.link(
                f"{theirs}.weight",
                (width, 1, taps),
                f"{ours}/weight",
                (width, taps),
                order=(1, 0),
                index=(0, column),
            )
            column += width

    def absent(self, ours: str) -> None:
        """A parameter of ours that their layer does not have, and needs not."""
        shape = self.size(ours)
        self._add(None, (), (), None, (), ours, (0,) * len(shape), shape)

    def constant(
        self, theirs: str, shape: tuple[int, ...], make: Callable[[], Any]
    ) -> None:
        """A tensor of theirs that `make` computes from the config."""
        name = f"{self._theirs}{theirs}"
        self.constants.append(asides_lib.Constant(name, shape, make))

    def aside(self, theirs: str, what: str) -> None:
        """Tensors under a prefix that the model does not need."""
        name = f"{self._theirs}{theirs}."
        self.asides.append(asides_lib.Aside(f"{re.escape(name)}.*", what))

    def twin(self, theirs: str, other: str) -> None:
        """A tensor that may be there and then equals another one."""
        name, other = f"{self._theirs}{theirs}", f"{self._theirs}{other}"
        self.asides.append(
            asides_lib.Aside(re.escape(name), f"the same as {other}", other)
        )

    def link(
        self,
        theirs: str,
        shape: tuple[int, ...],
        ours: str,
        split: tuple[int, ...] | None = None,
        *,
        order: tuple[int, ...] | None = None,
        part: Part | None = None,
        index: tuple[int, ...] | None = None,
        region: tuple[int, ...] | None = None,
    ) -> None:
        """Any link.

        Args:
          theirs: name of the tensor.
          shape: of it.
          ours: path of our parameter.
          split: what the tensor is reshaped to; None for its shape.
          order: permutation of those axes; None for none.
          part: of an axis of `split`; None for all.
          index: start of the region in our parameter; None for all of it.
          region: shape of the region; None for what comes out of `order` where
            there is an index, else for all of the parameter.
        """
        split = split or shape
        order = order or tuple(range(len(split)))
        if region is None:
            kept = list(split)
            if part is not None:
                kept[part.axis] = part.stop - part.start
            region = tuple(kept[axis] for axis in order)
            if index is None:
                region = self.size(ours)
        index = index or (0,) * len(region)
        self._add(theirs, shape, split, part, order, ours, index, region)

    def _add(self, theirs, shape, split, part, order, ours, index, region):
        if theirs is not None:
            theirs = f"{self._theirs}{theirs}"
        if self._row is not None:
            index, region = (self._row, *index), (1, *region)
        ours = f"{self._ours}{ours}"
        self.links.append(
            Link(theirs, shape, split, part, order, ours, index, region)
        )


def part_of(link: Link, tensor: Any) -> Any:
    """The part of their tensor, already reshaped to `split`, as a view."""
    if link.part is None:
        return tensor
    axis, start, stop = link.part
    return tensor[(slice(None),) * axis + (slice(start, stop),)]


def forward(link: Link, tensor: Any) -> Any:
    """The region of ours from their tensor; any array type."""
    part = part_of(link, tensor.reshape(link.split))
    return part.transpose(link.order).reshape(link.region)


def backward(link: Link, region: Any) -> Any:
    """What `part_of` was of their tensor, from the region of ours."""
    kept = list(link.split)
    if link.part is not None:
        kept[link.part.axis] = link.part.stop - link.part.start
    permuted = tuple(kept[axis] for axis in link.order)
    inverse = sorted(range(len(link.order)), key=link.order.__getitem__)
    return region.reshape(permuted).transpose(tuple(inverse))


def by_tensor(links: list[Link]) -> dict[str, list[Link]]:
    """The links of each tensor of theirs, in the order of the table."""
    found: dict[str, list[Link]] = {}
    for link in links:
        if link.theirs is not None:
            found.setdefault(link.theirs, []).append(link)
    return found


def check_covered(
    links: list[Link], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Requires that every number on both sides is in exactly one link.

    Raises:
      RuntimeError: a table is wrong; what it leaves out or has twice is named.
    """
    ours = dict.fromkeys(shapes, 0)
    theirs: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for link in links:
        count = math.prod(link.region)
        ours[link.ours] += count
        if link.theirs is not None:
            theirs[link.theirs] = theirs.get(link.theirs, 0) + count
            sizes[link.theirs] = math.prod(link.shape)
    faults = [
        f"{name}: {ours[name]} of {math.prod(shape)} numbers"
        for name, shape in shapes.items()
        if ours[name] != math.prod(shape)
    ]
    faults += [
        f"{name}: {theirs[name]} of {sizes[name]} numbers"
        for name in theirs
        if theirs[name] != sizes[name]
    ]
    if faults:
        raise RuntimeError("the mapping table covers\n  " + "\n  ".join(faults))
