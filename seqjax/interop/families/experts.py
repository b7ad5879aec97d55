"""Experts of a mixture, one tensor each on their side, stacked on ours."""

from seqjax.interop import tables

NAMES = ("gate_proj", "up_proj", "down_proj")


def separate(
    t: tables.Table,
    theirs: str = "experts.{}",
    names: tuple[str, ...] = NAMES,
) -> None:
    """Tensors [out, in] of each expert.

    Args:
      t: table of the mixture.
      theirs: prefix of an expert, with {} in the place of its index.
      names: of the gate, the map in and the map out; without the gate where
        experts have none.
    """
    ours = ("gate", "up", "down")[-len(names) :]
    for name, module in zip(ours, names, strict=True):
        experts, inputs, outputs = t.size(f"{name}/kernel")
        for expert in range(experts):
            t.link(
                f"{theirs.format(expert)}.{module}.weight",
                (outputs, inputs),
                f"{name}/kernel",
                order=(1, 0),
                index=(expert, 0, 0),
                region=(1, inputs, outputs),
            )


def joined(t: tables.Table, into: str, out: str) -> None:
    """All experts in two tensors: [E, gate and in, D] and [E, D, out]."""
    experts, inputs, width = t.size("up/kernel")
    for name, start in (("gate", 0), ("up", width)):
        t.link(
            into,
            (experts, 2 * width, inputs),
            f"{name}/kernel",
            part=tables.Part(1, start, start + width),
            order=(0, 2, 1),
        )
    t.link(out, (experts, inputs, width), "down/kernel", order=(0, 2, 1))
