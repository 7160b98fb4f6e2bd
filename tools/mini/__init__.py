"""The mini benchmarks: OV-COCO and OV-LVIS in miniature, drawn by a program (tools/make_mini.py)."""
