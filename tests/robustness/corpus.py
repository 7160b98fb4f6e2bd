"""All cases."""
from .entries import *
from .runner import Case, same
from . import configs, folders, jsons, texts, tools, images, weights
CASES=[Case("twin", e.name, e, lambda f: None, None, same) for e in [*OWN.values(),MASKS,*REGISTERED.values(),TRAIN,EVAL,PREDICT,DETECTOR,CONFIG,INSPECT]]
CASES+=[*jsons.CASES, *texts.CASES, *images.CASES, *configs.CASES, *weights.CASES, *folders.CASES, *tools.CASES]
QUICK=set()
