"""What tools/convert_checkpoint.py does: ``convert.py`` applies the ``rules.py`` of each kind of official file."""
