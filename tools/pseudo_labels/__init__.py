"""Boxes that an image encoder names, and the folder that keeps them, for tools/pseudo_label.py."""
