"""Indices of image-text pairs in tar shards, for tools/index_pairs.py."""
