"""The lineage drawing: where rows come from and which views they end in, as an SVG without a
library. Columns of boxes from left to right, and a curve for each "feeds".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

# Pixels of the drawing's own grid; the page scales it.
BOX_W, BOX_H, GAP_X, GAP_Y, MARGIN, HEAD_H = 216, 30, 44, 12, 4, 34
STYLE = (
    "text{font:14px system-ui,sans-serif;fill:#1c2733}.head{font-size:13px;fill:#5b6b7b}"
    "rect{fill:#f4f7fa;stroke:#b9c7d3}.table rect{fill:#dff1f7;stroke:#0b6e8f}"
    ".gold rect{fill:#fdf3d7;stroke:#b98900}path{fill:none;stroke:#9fb1bf;stroke-width:1.2}"
    "@media(prefers-color-scheme:dark){text{fill:#dfe8ef}.head{fill:#93a5b5}"
    "rect{fill:#1a232c;stroke:#44525f}.table rect{fill:#123846;stroke:#5cc3e4}"
    ".gold rect{fill:#3a2f10;stroke:#d8a520}path{stroke:#4f6070}}"
)


@dataclass(frozen=True, slots=True)
class Layer:
    """One column of the drawing: its heading, its boxes' class and their names."""

    heading: str
    kind: str
    names: tuple[str, ...]


def drawing(layers: Sequence[Layer], feeds: Mapping[str, Sequence[str]]) -> str:
    """The SVG; `feeds` names, of each box, the boxes it is made from. Names are unique."""
    tallest = max(len(layer.names) for layer in layers)
    width = 2 * MARGIN + len(layers) * BOX_W + (len(layers) - 1) * GAP_X
    height = 2 * MARGIN + HEAD_H + tallest * (BOX_H + GAP_Y)
    places = _places(layers, tallest)
    curves = [
        _curve(places[source], places[name])
        for name, sources in feeds.items()
        for source in sources
    ]
    boxes = [_box(name, layer.kind, places[name]) for layer in layers for name in layer.names]
    heads = [
        f'<text class="head" x="{_left(at)}" y="{MARGIN + 12}">{escape(layer.heading)}</text>'
        for at, layer in enumerate(layers)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">\n<style>{STYLE}</style>\n'
        + "\n".join([*curves, *heads, *boxes])
        + "\n</svg>\n"
    )


def _left(layer: int) -> int:
    return MARGIN + layer * (BOX_W + GAP_X)


def _places(layers: Sequence[Layer], tallest: int) -> dict[str, tuple[int, int]]:
    """The upper left corner of each box; a short column is centred."""
    step = BOX_H + GAP_Y
    return {
        name: (_left(at), MARGIN + HEAD_H + (tallest - len(layer.names)) * step // 2 + row * step)
        for at, layer in enumerate(layers)
        for row, name in enumerate(layer.names)
    }


def _box(name: str, kind: str, place: tuple[int, int]) -> str:
    x, y = place
    return (
        f'<g class="{kind}"><rect x="{x}" y="{y}" width="{BOX_W}" height="{BOX_H}" rx="6"/>'
        f'<text x="{x + 10}" y="{y + 20}">{escape(name)}</text></g>'
    )


def _curve(source: tuple[int, int], target: tuple[int, int]) -> str:
    x1, y1 = source[0] + BOX_W, source[1] + BOX_H // 2
    x2, y2 = target[0], target[1] + BOX_H // 2
    bend = (x2 - x1) // 2
    return f'<path d="M{x1} {y1}C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}"/>'
