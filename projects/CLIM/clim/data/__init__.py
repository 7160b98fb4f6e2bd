"""Data: records, decoding, mosaics, mappers and the joint loader."""
