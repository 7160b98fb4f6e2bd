"""Speed and memory, measured side by side by tools/benchmark.py."""
