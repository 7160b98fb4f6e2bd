"""The mini benchmark: OV-COCO in miniature, drawn by a program (tools/make_mini.py)."""
