"""Nearest neighbours of images by text or image, for tools/build_neighbours.py."""
