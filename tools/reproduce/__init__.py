"""The tables that ``clim reproduce`` trains: the paper's at full size and on the mini benchmark, and our own.

A module declares the tables of one subject. :data:`TABLES` lists them all, in the order in which they are trained.
"""

from experiments.tables import Table

from . import clip, factor, ov_coco, ov_lvis, own_boxes, photos

TABLES: tuple[Table, ...] = tuple(
    table for module in (ov_coco, clip, ov_lvis, own_boxes, factor, photos) for table in module.TABLES
)
