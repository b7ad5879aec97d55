r"""Figures of the GPU benchmark's results.

    python -m benchmarks.report results.json --out=figures

One PNG file an operator: milliseconds of forward and backward (of forward
alone at decode steps) over the shapes, a bar a contender, on a logarithmic
axis.  What was not measured has no bar.  Needs matplotlib
(`pip install seqjax[figures]`).
"""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

from absl import app
from absl import flags

_HEIGHT, _WIDTH_OF_SHAPE = 3.2, 1.3  # inches


def times(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict]]:
    """{operator: {contender: {shape: milliseconds}}} of what was measured.

    Args:
      rows: of the JSON file of `benchmarks.gpu`.
    """
    found: dict[str, dict[str, dict]] = {}
    for row in rows:
        milliseconds = row["both_ms"] or row["forward_ms"]
        if milliseconds:
            by = found.setdefault(row["operator"], {})
            by.setdefault(row["contender"], {})[row["shape"]] = milliseconds
    return found


def draw(
    operator: str, by: dict[str, dict], title: str, path: pathlib.Path
) -> None:
    """One figure of an operator of `times`."""
    from matplotlib import figure

    shapes = list(dict.fromkeys(s for t in by.values() for s in t))
    shapes.sort(key=lambda shape: int(shape.split("x")[1]))  # by T
    page = figure.Figure(
        figsize=(2 + _WIDTH_OF_SHAPE * len(shapes), _HEIGHT),
        layout="constrained",
    )
    axes = page.subplots()
    width = 0.8 / len(by)
    for number, (contender, measured) in enumerate(by.items()):
        places = [shapes.index(s) + number * width - 0.4 for s in measured]
        axes.bar(
            places,
            list(measured.values()),
            width,
            label=contender,
            align="edge",
        )
    axes.set_yscale("log")
    axes.set_ylabel("ms")
    axes.set_xticks(range(len(shapes)), shapes, fontsize=7)
    axes.set_xlabel("B x T x H x D")
    axes.set_title(f"{operator}, {title}", fontsize=9)
    axes.legend(fontsize=7)
    page.savefig(path, dpi=100, metadata={"Software": None})


def main(argv: Sequence[str]) -> None:
    """Draws all operators of a file."""
    if len(argv) != 2:
        raise app.UsageError("give one JSON file of benchmarks.gpu")
    data = json.loads(pathlib.Path(argv[1]).read_text())
    out = pathlib.Path(flags.FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    for operator, by in times(data["rows"]).items():
        path = out / f"{operator.replace(' ', '_')}.png"
        draw(operator, by, data["about"]["device"], path)
        print(path)


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/figures", "Folder of the PNG files.")
    app.run(main)
