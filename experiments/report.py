"""report.html of a run: one file, no scripts, plots as inline SVG."""

from collections.abc import Sequence
import html
import json
import pathlib
from typing import Any

from seqjax.training import metrics

_LN2 = 0.6931471805599453
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 260, 56, 30

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 760px;
       margin: 2em auto; padding: 0 1em; color: #222; }
pre { background: #f5f5f2; padding: 1em; overflow-x: auto;
      white-space: pre-wrap; }
table { border-collapse: collapse; }
td, th { padding: .2em 1em .2em 0; text-align: left; }
svg text { font: 11px system-ui, sans-serif; fill: #555; }
"""

Points = Sequence[tuple[float, float]]


def write(
    folder: pathlib.Path, config: dict[str, Any], summary: dict[str, Any]
) -> None:
    """Writes DIR/report.html from the run's files, its config and result."""
    rows = metrics.read_rows(folder / "metrics.jsonl")
    timing = metrics.read_timing(folder / "timing.jsonl", print)
    versions = json.loads((folder / "versions.json").read_text())
    train = [(r["step"], r["loss"] / _LN2) for r in rows]
    validation = [
        (r["step"], r["validation_bits_per_token"])
        for r in rows
        if "validation_bits_per_token" in r
    ]
    speed = [
        (r["step"], r["tokens_per_second"])
        for r in timing
        if isinstance(r.get("tokens_per_second"), int | float)
    ]
    level = summary.get("trigram")
    sections = [
        "<h1>Training run</h1>",
        _table([*facts(summary), *_speed(speed)]),
        "<h2>Loss in bits a token</h2>",
        _plot(train, dots=validation, level=level, label="trigram"),
        "<p>Line: training batches. Dots: validation. "
        + ("Dashed: byte trigram.</p>" if level else "</p>"),
        "<h2>Throughput in tokens a second</h2>",
        _plot(speed),
        f"<h2>Sample</h2><pre>{html.escape(summary['sample'])}</pre>",
        "<h2>Configuration</h2>",
        f"<pre>{html.escape(json.dumps(config, indent=2))}</pre>",
        "<h2>Versions</h2>",
        f"<pre>{html.escape(json.dumps(versions, indent=2))}</pre>",
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>Training run</title><style>{_STYLE}</style></head><body>"
        + "\n".join(sections)
        + "</body></html>\n"
    )
    temporary = folder / "report.html.tmp"
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(folder / "report.html")


def facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The numbers of a summary, with their names, as text."""
    shown = [
        ("steps", f"{summary['step']:,}"),
        ("validation bits/token", f"{summary['bits_per_token']:.3f}"),
        ("validation tokens", f"{summary['validation_tokens']:,}"),
    ]
    for name in ("trigram", "zlib"):
        if name in summary:
            shown.append((f"{name} bits/byte", f"{summary[name]:.3f}"))
    return shown


def _speed(speed: Points) -> list[tuple[str, str]]:
    if not speed:
        return []
    middle = sorted(value for _, value in speed)[len(speed) // 2]
    return [("tokens/s, median", f"{middle:,.0f}")]


def _table(facts: list[tuple[str, str]]) -> str:
    lines = [
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in facts
    ]
    return f"<table>{''.join(lines)}</table>"


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    return [low + (high - low) * i / (count - 1) for i in range(count)]


def _plot(
    line: Points,
    *,
    dots: Points = (),
    level: float | None = None,
    label: str = "",
) -> str:
    """A line plot; points that are not finite are left out."""
    line = [p for p in line if abs(p[1]) < float("inf")]
    everything = [*line, *dots]
    if not everything:
        return "<p>No points.</p>"
    ys = [y for _, y in everything] + ([level] if level is not None else [])
    x0, x1 = min(x for x, _ in everything), max(x for x, _ in everything)
    y0, y1 = min(ys), max(ys)
    x1, y1 = (x1 if x1 > x0 else x0 + 1), (y1 if y1 > y0 else y0 + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x0) / (x1 - x0) * (_WIDTH - _LEFT - 10)
        up = (y - y0) / (y1 - y0) * (_HEIGHT - _BOTTOM - 10)
        return _LEFT + across, _HEIGHT - _BOTTOM - up

    parts = []
    for y in _ticks(y0, y1):
        _, v = at(x0, y)
        text = f"{y:,.0f}" if y1 > 100 else f"{y:.2f}"
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{v:.1f}" y2="{v:.1f}" '
            f'stroke="#ddd"/><text x="{_LEFT - 6}" y="{v + 4:.1f}" '
            f'text-anchor="end">{text}</text>'
        )
    for x in _ticks(x0, x1):
        u, _ = at(x, y0)
        parts.append(
            f'<text x="{u:.1f}" y="{_HEIGHT - 10}" text-anchor="middle">'
            f"{x:,.0f}</text>"
        )
    path = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in line)
    parts.append(
        f'<polyline points="{path}" fill="none" stroke="#2a6f97" '
        'stroke-width="1.5"/>'
    )
    for x, y in dots:
        u, v = at(x, y)
        parts.append(
            f'<circle cx="{u:.1f}" cy="{v:.1f}" r="4" fill="#c8553d"/>'
        )
    if level is not None:
        _, v = at(x0, level)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{v:.1f}" y2="{v:.1f}" '
            f'stroke="#555" stroke-dasharray="5 4"/><text x="{_WIDTH - 12}" '
            f'y="{v - 5:.1f}" text-anchor="end">{html.escape(label)}</text>'
        )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="100%">'
        + "".join(parts)
        + "</svg>"
    )
