"""Line charts as SVG without scripts; the page's CSS colours text and grid (dark mode)."""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 12, 34


def smooth(values: Sequence[float], *, window: int) -> list[float]:
    """The centred moving average over ``window`` values, fewer at both ends."""
    half = window // 2
    out = []
    for i in range(len(values)):
        near = values[max(i - half, 0) : i + half + 1]
        out.append(math.fsum(near) / len(near))
    return out


def ticks(low: float, high: float, *, count: int = 4) -> list[float]:
    """About ``count`` round numbers (1, 2 or 5 times a power of ten apart) inside low … high."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x_label: str,
    colours: Mapping[str, str],
    faint: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> str:
    """An <svg> with one line for each {name: (xs, ys)}; ``faint`` lines are thin and lie behind.

    The y axis starts at 0 or at a negative value. Values that are not finite leave a gap.
    """
    faint = faint or {}
    points = [
        (x, y)
        for xs, ys in (*series.values(), *faint.values())
        for x, y in zip(xs, ys, strict=True)
        if math.isfinite(y)
    ]
    head = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" '
        'xmlns="http://www.w3.org/2000/svg">'
    )
    if not points:
        return f'{head}<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no values</text></svg>'
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low, y_high = min(0.0, *(y for _, y in points)), max(y for _, y in points)
    x_high, y_high = (max(high, low + 1e-9) for low, high in ((x_low, x_high), (y_low, y_high)))

    def place(x: float, y: float) -> str:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return f"{across:.1f},{down:.1f}"

    parts = [head]
    for y in ticks(y_low, y_high):
        across, down = place(x_low, y).split(",")
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down}" y2="{down}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down}" dy=".32em" text-anchor="end">{y:g}</text>')
    for x in ticks(x_low, x_high):
        across, _ = place(x, y_low).split(",")
        parts.append(f'<text x="{across}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_label)}</text>')
    for lines, style in ((faint, 'stroke-width="1" opacity=".25"'), (series, 'stroke-width="2.2"')):
        for name, (xs, ys) in lines.items():
            for run in _runs(xs, ys):
                path = " ".join(place(x, y) for x, y in run)
                parts.append(
                    f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-linejoin="round" '
                    f"{style}><title>{escape(name)}</title></polyline>"
                )
    return "".join(parts) + "</svg>"


def _runs(xs, ys) -> list[list[tuple[float, float]]]:
    """Stretches of finite values."""
    runs: list[list] = [[]]
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
