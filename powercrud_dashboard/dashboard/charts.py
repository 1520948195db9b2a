"""Charts as SVG, without scripts and style attributes: their colours are in the stylesheet, by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any

from django.utils.formats import number_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from powercrud_dashboard.dashboard.formatting import precise_duration

#: The size of a chart, and of the area in it that is drawn on, in units that are pixels at the usual width.
WIDTH, HEIGHT = 290, 130
LEFT, RIGHT, TOP, BOTTOM = 46, 287, 16, 110
#: The size of a sparkline.
SPARK_WIDTH, SPARK_HEIGHT = 68, 20

#: Durations at which a scale of times has its lines, in seconds.
TIME_LINES = (0.01, 0.1, 1, 10, 60, 600, 3_600, 36_000, 86_400, 864_000)


@dataclass(frozen=True)
class Scale:
    """Where values are on the vertical axis, and the lines across it: (value, label)."""

    least: float
    most: float
    lines: Sequence[tuple[float, str]]
    is_logarithmic: bool = False

    @classmethod
    def of_counts(cls, most: float) -> Scale:
        """Return a scale from 0 to a round number of at least ``most``."""
        size = 10 ** math.floor(math.log10(most)) if most >= 1 else 1
        top = next(factor * size for factor in (1, 2, 4, 5, 10) if factor * size >= most)
        middle = [(top // 2, number_format(top // 2, force_grouping=True))] if top > 1 else []
        return cls(0, top, [(0, "0"), *middle, (top, number_format(int(top), force_grouping=True))])

    @classmethod
    def of_times(cls, seconds: Sequence[float]) -> Scale:
        """Return a scale on which each of its lines is about ten times the one below."""
        least, most = min(seconds, default=1.0), max(seconds, default=1.0)
        last = len(TIME_LINES) - 1
        first = max((number for number, line in enumerate(TIME_LINES) if line <= least), default=0)
        top = min((number for number, line in enumerate(TIME_LINES) if line >= most), default=last)
        first = min(first, max(0, top - 1))
        shown = TIME_LINES[first : max(top, first + 1) + 1]
        lines = [(line, precise_duration(timedelta(seconds=line))) for line in shown]
        return cls(shown[0], shown[-1], lines, is_logarithmic=True)

    def y(self, value: float, top: float = TOP, bottom: float = BOTTOM) -> float:
        """Return the vertical position of a value."""
        if self.is_logarithmic:
            least, most = math.log(self.least), math.log(self.most)
            share = (math.log(max(value, self.least)) - least) / (most - least)
        else:
            share = (value - self.least) / (self.most - self.least)
        return bottom - min(max(share, 0.0), 1.0) * (bottom - top)


@dataclass(frozen=True)
class Series:
    """Values of one kind, one for each step of the horizontal axis; None where there is none."""

    css_class: str
    label: str
    values: Sequence[float | None]


@dataclass(frozen=True)
class Mark:
    """A line upwards at the beginning of a step, with a label, such as a release."""

    step: float
    label: str


@dataclass(frozen=True)
class Point:
    """A dot, or a cross for a failure, at a place of the horizontal axis from 0 to 1."""

    place: float
    value: float
    hint: str
    is_failure: bool = False


@dataclass
class Chart:
    """A chart with a heading, and the table behind it."""

    key: str
    title: str
    #: Says in a sentence what the chart shows, for those who do not see it.
    description: str
    scale: Scale
    #: What the pointer shows at each step.
    hints: Sequence[str]
    #: Labels of the horizontal axis: position from 0 to 1, and text.
    labels: Sequence[tuple[float, str]]
    bars: Sequence[Series] = ()
    lines: Sequence[Series] = ()
    points: Sequence[Point] = ()
    marks: Sequence[Mark] = ()
    #: The table behind it.
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = field(default_factory=list)

    @property
    def legend(self) -> list[Series]:
        """The kinds of values, without those of which there are none."""
        return [series for series in (*self.bars, *self.lines) if series.label]

    @property
    def svg(self) -> SafeString:
        """Return what is inside of the SVG element."""
        step = (RIGHT - LEFT) / max(1, len(self.hints))
        grid = format_html_join(
            "",
            '<path class="pcrud-chart-grid" d="M{} {}H{}"/><text class="pcrud-chart-y" x="{}" y="{}">{}</text>',
            (
                (LEFT, _number(self.scale.y(value)), RIGHT, LEFT - 5, _number(self.scale.y(value) + 3.5), label)
                for value, label in self.scale.lines
            ),
        )
        bars = format_html_join(
            "",
            '<path class="{}" d="{}"/>',
            (
                (series.css_class, path)
                for series, path in zip(self.bars, stacked_bars(self.bars, self.scale, LEFT, step), strict=True)
            ),
        )
        lines = format_html_join(
            "",
            '<path class="{}" d="{}"/>',
            ((series.css_class, _line(series.values, self.scale, step)) for series in self.lines),
        )
        return grid + bars + lines + self._points() + self._marks(step) + self._labels() + self._hints(step)

    def _points(self) -> SafeString:
        return format_html_join(
            "",
            '<path class="{}" d="{}"><title>{}</title></path>',
            (
                (
                    "pcrud-chart-cross" if point.is_failure else "pcrud-chart-dot",
                    _place(LEFT + point.place * (RIGHT - LEFT), self.scale.y(point.value), point.is_failure),
                    point.hint,
                )
                for point in self.points
            ),
        )

    def _marks(self, step: float) -> SafeString:
        return format_html_join(
            "",
            '<path class="pcrud-chart-mark" d="M{} {}V{}"/><text class="pcrud-chart-{}" x="{}" y="{}">{}</text>',
            (
                (
                    _number(LEFT + mark.step * step),
                    TOP - 4,
                    BOTTOM,
                    # A label at the right of the line would not fit.
                    "end" if mark.step * step > (RIGHT - LEFT) * 0.6 else "start",
                    _number(LEFT + mark.step * step + (-3 if mark.step * step > (RIGHT - LEFT) * 0.6 else 3)),
                    TOP - 6,
                    mark.label,
                )
                for mark in self.marks
            ),
        )

    def _labels(self) -> SafeString:
        return format_html_join(
            "",
            '<text class="pcrud-chart-{}" x="{}" y="{}">{}</text>',
            (
                (
                    "start" if position == 0 else "end" if position == 1 else "middle",
                    _number(LEFT + position * (RIGHT - LEFT)),
                    HEIGHT - 6,
                    label,
                )
                for position, label in self.labels
            ),
        )

    def _hints(self, step: float) -> SafeString:
        """Return what the pointer finds: a transparent column for each step, as high as the chart."""
        shape = f"v{BOTTOM - TOP}h{-step:.1f}z"
        return format_html_join(
            "",
            '<path class="pcrud-chart-hint" d="M{} {}h{}{}"><title>{}</title></path>',
            (
                (_number(LEFT + number * step), TOP, _number(step), shape, hint)
                for number, hint in enumerate(self.hints)
            ),
        )


def sparkline(series: Sequence[Series], description: str) -> SafeString:
    """Return a small chart of bars on top of each other."""
    totals = [sum(value or 0 for value in values) for values in zip(*(item.values for item in series), strict=True)]
    scale = Scale(0, max(totals, default=0) or 1, ())
    step = SPARK_WIDTH / max(1, len(totals))
    paths = format_html_join(
        "",
        '<path class="{}" d="{}"/>',
        (
            (item.css_class, path)
            for item, path in zip(series, stacked_bars(series, scale, 0, step, top=0, bottom=SPARK_HEIGHT), strict=True)
        ),
    )
    return format_html(
        '<svg class="pcrud-spark" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>',
        SPARK_WIDTH,
        SPARK_HEIGHT,
        description,
        paths,
    )


def stacked_bars(
    series: Sequence[Series], scale: Scale, left: float, step: float, *, top: float = TOP, bottom: float = BOTTOM
) -> list[str]:
    """Return a path for each series, the bars of the later ones on top of those of the earlier ones."""
    below = [0.0] * max((len(item.values) for item in series), default=0)
    paths = []
    width = _number(max(step * 0.8, 1))
    for item in series:
        path = []
        for number, value in enumerate(item.values):
            if not value:
                continue
            start, end = scale.y(below[number], top, bottom), scale.y(below[number] + value, top, bottom)
            below[number] += value
            # However few they are among the others, they are seen.
            height = max(start - end, 1)
            path.append(f"M{left + number * step + step * 0.1:.1f} {start:.1f}v{-height:.1f}h{width}v{height:.1f}z")
        paths.append("".join(path))
    return paths


def _line(values: Sequence[float | None], scale: Scale, step: float) -> str:
    """Return the path of a line with gaps; a value between two gaps is a dot."""
    points = [
        (number, f"{LEFT + (number + 0.5) * step:.1f} {scale.y(value):.1f}")
        for number, value in enumerate(values)
        if value is not None
    ]
    if not points:
        return ""
    path = f"M{points[0][1]}h0"
    for (before, _), (number, point) in pairwise(points):
        path += f"L{point}" if number == before + 1 else f"M{point}h0"
    return path


def _place(x: float, y: float, is_cross: bool) -> str:
    return f"M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6" if is_cross else f"M{x:.1f} {y:.1f}h0"


def _number(value: float) -> str:
    """Return a coordinate, whatever the language writes numbers like."""
    return f"{value:.1f}".removesuffix(".0")
