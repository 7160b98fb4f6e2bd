"""Boxes named by an image encoder: what tools/pseudo_label.py makes, and the folder that keeps it."""
