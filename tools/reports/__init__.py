"""Pages and figures: the report of tools/demo.py, response maps and class maps."""

TITLES = {"base": "Base stage", "detic": "Detic", "detic_clim": "Detic + CLIM"}  # runs of the demo
COMPARED = ("detic", "detic_clim")
