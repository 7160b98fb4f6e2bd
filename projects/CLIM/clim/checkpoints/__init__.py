"""Files of weights: read without running code from them (``reading.py``), their names translated (``keys.py``)."""
