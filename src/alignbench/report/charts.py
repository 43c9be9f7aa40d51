"""The charts of a comparison's page: SVG in the classes of its style sheet, so that both themes and a strict policy hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

TOP, RIGHT, BOTTOM = 12, 18, 44
CURVE, FRONT = (350, 240), (540, 340)  # width and height, near the pixels they get, so that text has the page's size
SHADES = 8  # colours of the style sheet; a ninth method shares the first one's, with other marks
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One method's mean, with a mark at each point, and its seeds as thin lines."""

    shade: int
    name: str
    points: Points
    thin: Sequence[Points] = ()
    dash: str = ""  # "", "dashed" or "dotted"


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One method's point with its interval either way."""

    shade: int
    name: str
    x: tuple[float, float, float]  # low, value, high
    y: tuple[float, float, float]


class Axes:
    """Data to the drawing's units, and the frame around it."""

    def __init__(self, x: Sequence[float], y: Sequence[float], label: str, size: tuple[int, int]) -> None:
        self.label, (self.wide, self.high), self.parts = label, size, list[Markup]()
        (self.x0, self.x1), (self.y0, self.y1) = _limits(x, 0.02), _limits(y, 0.06)
        self.ticks_x, self.ticks_y = _ticks(self.x0, self.x1, 4), _ticks(self.y0, self.y1, 4)
        self.left = 14 + 7 * max(len(_told(tick)) for tick in self.ticks_y)

    def at(self, x: float, y: float) -> tuple[str, str]:
        across = self.left + (x - self.x0) / (self.x1 - self.x0) * (self.wide - self.left - RIGHT)
        down = TOP + (self.y1 - y) / (self.y1 - self.y0) * (self.high - TOP - BOTTOM)
        return f"{across:.1f}", f"{down:.1f}"

    def path(self, points: Points, css: str) -> None:
        if len(points) > 1:
            way = "L".join(" ".join(self.at(*point)) for point in points)
            self.parts.append(Markup('<path class="{}" d="M{}"/>').format(css, way))

    def mark(self, x: float, y: float, shade: int, name: str, size: float = 3.4) -> None:
        across, down = self.at(x, y)
        drawn = Markup('<path class="mark s{}" transform="translate({} {})" d="{}"><title>{}</title></path>')
        self.parts.append(drawn.format(shade % SHADES, across, down, shape(shade, size), f"{name}: {_told(x)}, {_told(y)}"))

    def svg(self, spoken: str) -> Markup:
        frame = []
        for tick in self.ticks_y:
            x, y = self.at(self.x0, tick)
            css = "zero" if tick == 0 else "rule"
            frame.append(Markup('<path class="{}" d="M{} {}H{}"/>').format(css, x, y, self.wide - RIGHT))
            frame.append(Markup('<text class="end" x="{}" y="{}">{}</text>').format(self.left - 7, float(y) + 4, _told(tick)))
        for tick in self.ticks_x:
            x, _ = self.at(tick, self.y0)
            frame.append(Markup('<path class="rule" d="M{} {}V{}"/>').format(x, self.high - BOTTOM, self.high - BOTTOM + 4))
            frame.append(Markup('<text class="middle" x="{}" y="{}">{}</text>').format(x, self.high - BOTTOM + 18, _told(tick)))
        middle = (self.left + self.wide - RIGHT) / 2
        frame.append(Markup('<text class="middle axis" x="{}" y="{}">{}</text>').format(middle, self.high - 6, self.label))
        start = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(self.wide, self.high, spoken)
        return start + Markup("").join(frame + self.parts) + Markup("</svg>")


def lines(drawn: Sequence[Line], label: str, spoken: str, y: Sequence[float] = ()) -> Markup:
    """Curves over one axis. y: values that the upright axis holds too, so that charts side by side share it."""
    every = [point for line in drawn for points in (line.points, *line.thin) for point in points]
    axes = Axes([x for x, _ in every], [*(height for _, height in every), *y], label, CURVE)
    for line in drawn:
        for points in line.thin:
            axes.path(points, f"thin s{line.shade % SHADES}")
    for line in drawn:
        axes.path(line.points, f"line s{line.shade % SHADES} {line.dash}".strip())
        for point in line.points:
            axes.mark(*point, line.shade, line.name)
    return axes.svg(spoken)


def front(spots: Sequence[Spot], steps: Sequence[Points], label: str, spoken: str) -> Markup:
    """Points with their intervals, and the lines that lead from the start through those that no other one beats."""
    axes = Axes([0.0, *chain(*(spot.x for spot in spots))], [0.0, *chain(*(spot.y for spot in spots))], label, FRONT)
    for step in steps:
        axes.path(step, "step")
    for spot in spots:
        for ends in ([(spot.x[0], spot.y[1]), (spot.x[2], spot.y[1])], [(spot.x[1], spot.y[0]), (spot.x[1], spot.y[2])]):
            axes.path(ends, f"reach s{spot.shade % SHADES}")
    for spot in spots:
        axes.mark(spot.x[1], spot.y[1], spot.shade, spot.name, 5.0)
    return axes.svg(spoken)


def bar(interval: tuple[float, float, float], reach: tuple[float, float], shade: int) -> Markup:
    """One line of a forest: an interval on an axis that all lines share, with 0 marked."""
    low, high = min(reach[0], 0.0), max(reach[1], 0.0)
    span = (high - low) or 1.0
    left, value, right, zero = (8 + 204 * (each - low) / span for each in (interval[0], interval[1], interval[2], 0.0))
    return Markup(
        '<svg class="bar s{0}" viewBox="0 0 220 24" aria-hidden="true" focusable="false"><path class="zero" d="M{1:.1f} 0V24"/>'
        '<path class="reach s{0}" d="M{2:.1f} 12H{3:.1f}M{2:.1f} 8V16M{3:.1f} 8V16"/>'
        '<path class="mark s{0}" transform="translate({4:.1f} 12)" d="{5}"/></svg>'
    ).format(shade % SHADES, zero, left, right, value, shape(shade, 5.0))


def key(shade: int, dash: str = "") -> Markup:
    """A method's line and mark, for a legend."""
    drawn = '<svg class="key" viewBox="0 0 28 14" aria-hidden="true" focusable="false"><path class="line s{0} {1}" d="M1 7H27"/>'
    return Markup(drawn + '<path class="mark s{0}" transform="translate(14 7)" d="{2}"/></svg>').format(
        shade % SHADES, dash, shape(shade, 4.0)
    )


def shape(shade: int, size: float) -> str:
    """Circle, square, triangle or diamond: who cannot tell two colours apart can tell their marks."""
    s = round(size, 2)
    match (shade + shade // SHADES) % 4:
        case 0:
            return f"M{-s} 0a{s} {s} 0 1 0 {2 * s} 0a{s} {s} 0 1 0 {-2 * s} 0z"
        case 1:
            return f"M{-s} {-s}h{2 * s}v{2 * s}h{-2 * s}z"
        case 2:
            return f"M0 {-s - 1}l{s + 1} {2 * s}h{-2 * s - 2}z"
    return f"M0 {-s - 1}l{s + 1} {s + 1}l{-s - 1} {s + 1}l{-s - 1} {-s - 1}z"


def _limits(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = margin * (high - low) or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _ticks(low: float, high: float, count: int) -> list[float]:
    return [float(tick) + 0.0 for tick in MaxNLocator(count, min_n_ticks=2).tick_values(low, high) if low <= tick <= high]


def _told(value: float) -> str:
    return str(escape(f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}").replace("-", "\N{MINUS SIGN}"))
