"""The tables that ``clim reproduce`` trains: the paper's at full size and on the mini benchmark, and our own.

A module declares the tables of one subject. :data:`TABLES` lists them all, in the order in which they are trained.
"""

from experiments.tables import Table

from . import clip, ov_coco, ov_lvis, own_boxes, photos

TABLES: tuple[Table, ...] = (*ov_coco.TABLES, *clip.TABLES, *ov_lvis.TABLES, *own_boxes.TABLES, *photos.TABLES)
