"""Official projects' files in our names: what ``tools/convert_checkpoint.py`` does.

| file | what |
|---|---|
| ``kind.py`` | ``Kind``: a table {official name: our name and layout}; ``find_kind``, ``convert`` |
| ``ovrcnn_pretrain.py``, ``ovrcnn.py`` | OVR-CNN, first and second stage |
| ``clim_detic.py``, ``ovdet_baron.py`` | CLIM's Detic and ovdet's BARON, on ``mmdet_c4.py`` |
| ``clim_fvlm.py`` | CLIM's F-VLM on ViT-B/16 |
| ``resnet.py``, ``tensors.py`` | names of ResNet's layers; what changes in a tensor |
| ``official_file.py`` | reading, without running what a file holds |
"""

from .clim_detic import CLIM_DETIC
from .clim_fvlm import CLIM_FVLM
from .kind import Converted, Kind, convert, find_kind, listed, without_wrapper
from .official_file import read_official
from .ovdet_baron import OVDET_BARON
from .ovrcnn import OVRCNN
from .ovrcnn_pretrain import OVRCNN_PRETRAIN

KINDS = {kind.name: kind for kind in (OVRCNN_PRETRAIN, OVRCNN, CLIM_DETIC, OVDET_BARON, CLIM_FVLM)}

__all__ = ["KINDS", "Converted", "Kind", "convert", "find_kind", "listed", "read_official", "without_wrapper"]
