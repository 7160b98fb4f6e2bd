"""Pictures and reports for people.

| file | what |
|---|---|
| ``draw.py`` | boxes with names on a picture, mosaics with their tiles, panels side by side |
| ``curves.py`` | line charts as SVG text |
| ``report.py``, ``style.py`` | one HTML file with tables, curves and pictures inside |
| ``comparison.py`` | detectors beside the ground truth, example mosaics |
| ``response.py``, ``class_map.py`` | cosine maps of texts, a class for every pixel, over pictures |
| ``sheet.py``, ``lettering.py`` | panels in rows and columns with a legend; fonts |
"""

from clim.visualization.comparison import compare, mosaic_of_each_grid, most_novel
from clim.visualization.curves import line_chart, smooth
from clim.visualization.draw import class_colours, draw_boxes, draw_canvas, draw_objects, side_by_side
from clim.visualization.report import Example, Report, Run, render_report

__all__ = [
    "Example",
    "Report",
    "Run",
    "class_colours",
    "compare",
    "draw_boxes",
    "draw_canvas",
    "draw_objects",
    "line_chart",
    "mosaic_of_each_grid",
    "most_novel",
    "render_report",
    "side_by_side",
    "smooth",
]
