"""Official projects' files under our names: what ``tools/convert_checkpoint.py`` does.

| file | what |
|---|---|
| ``rules.py`` | ``KINDS``: for each kind of file, how it is recognised and which rules rename its tensors |
| ``convert.py`` | ``Kind``, ``Rule``; ``find_kind`` and ``convert`` apply them to a file |
| ``tensors.py`` | changes of a tensor's layout |
| ``reading.py`` | reads a file without running what it holds |
"""
