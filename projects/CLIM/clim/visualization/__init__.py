"""Pictures and reports for people.

| file | what |
|---|---|
| ``draw.py`` | boxes with names on a picture, mosaics with their tiles, panels side by side |
| ``curves.py`` | line charts as SVG text |
| ``report.py`` | one HTML file with tables, curves and pictures inside |
"""

from clim.visualization.curves import line_chart, smooth
from clim.visualization.draw import class_colours, draw_boxes, draw_canvas, enlarge, side_by_side
from clim.visualization.report import Example, Report, Run, render_report

__all__ = [
    "Example",
    "Report",
    "Run",
    "class_colours",
    "draw_boxes",
    "draw_canvas",
    "enlarge",
    "line_chart",
    "render_report",
    "side_by_side",
    "smooth",
]
