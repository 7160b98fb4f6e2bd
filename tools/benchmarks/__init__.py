"""Speed and memory, measured side by side by tools/benchmark.py.

| file | what |
|---|---|
| ``stopwatch.py`` | stages, rounds in turn, medians, peak memory |
| ``settings.py``, ``photos.py`` | what the user has chosen; photos, synthetic ones too |
| ``mosaics.py`` | canvases per second, against the release's order of work |
| ``steps.py``, ``memory.py`` | joint training steps: seconds by part; peak memory |
| ``texts.py`` | captions per second, by the tower and from the cache |
"""
