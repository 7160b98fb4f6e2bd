"""Use a trained model in your own Python: detect classes of any names in images, folders, videos (docs/python.md).

from clim import Detector
detector = Detector("model_final.pth")
detector.set_classes(["dog", "fire hydrant"])
results = detector.predict("photos/")
"""

import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import Tensor
from torchvision.ops import nms

from clim.checkpoints.checkpointer import atomic_save, load_model
from clim.checkpoints.reading import DESCRIPTION, read_description
from clim.config_values import check_values
from clim.data.images import ResizeShortestEdge, channels_first
from clim.data.names import vocabulary_names
from clim.engine.setup import load_config, require_device
from clim.errors import UserError, require_packages
from clim.files import nfc
from clim.modeling import OpenVocabRCNN
from clim.results import Result, Results
from clim.sources import Frame, Skipped, find_source, read_source
from clim.text import CLASS_FEATURES

if TYPE_CHECKING:  # it takes a second, so those who make its Detections import it
    import supervision as sv

logger = logging.getLogger(__name__)

_MINI_SETS, _MINI_FOLDERS = ("mini_ov_", "mini_lvis_"), {"mini", "mini_lvis"}  # that tools/make_mini.py draws

_OPTIONS = {  # of Detector.stream: (words for what it must be, type, least, most, other values)
    "batch": ("a whole number above 0", Integral, 1, math.inf, ()),
    "threshold": ("a number from 0 to 1", Real, 0, 1, ()),
    "top": ("a whole number above 0, or None", Integral, 1, math.inf, (None,)),
    "overlap": ("a number from 0 to 1", Real, 0, 1, ()),
    "slices": ("0, or a whole number of pixels from 32 on", Integral, 32, math.inf, (0,)),
    "frames": ("a whole number above 0, or None", Integral, 1, math.inf, (None,)),
}
Classes = Sequence[str] | Mapping[str, Sequence[str]]  # names, or {name: its synonyms}


class Detector:
    """``Detector("model_final.pth").predict("photos/")`` → :class:`clim.results.Results`.

    Scores are the probabilities of training: they contain CLIM's learnt bias on the logits. Evaluation leaves it out,
    where all scores are nearly 1 and a threshold means nothing. The order of scores is the same.

    A detector serves one thread at a time.

    Attributes:
        names: K class names.
        novel: indices of the classes that had no boxes in training.
        score_threshold: lowest score of a detection, where a call names no other.
        input_format: channel order of :meth:`detect`, "RGB" or "BGR".
        model: the network.
    """

    def __init__(
        self, model, *, config=None, classes: Classes | None = None, score_threshold: float = 0.05,
        device: str | None = None, dtype: torch.dtype | None = None, overrides: Sequence = (),
    ):  # fmt: skip
        """Load a model. UserError where file and config do not fit.

        Args:
            model: path of a checkpoint of our trainer; or a config (CfgNode), whose MODEL.WEIGHTS are loaded.
            config: YAML or CfgNode of an older or a published checkpoint, which does not hold its config.
            classes: as :meth:`set_classes`; by default the checkpoint's, or the configured ones.
            device: "cuda", "cuda:1", "cpu"; by default a GPU where there is one, or the CfgNode's.
            overrides: KEY, VALUE, … of the config; not of a CfgNode.
            dtype: torch.bfloat16 or torch.float16: mixed precision by autocast; scores and boxes stay float32.
        """
        cfg, description, classes = _read(model, config, classes, overrides, device)
        require_device(cfg.MODEL.DEVICE)
        cfg.MODEL.TEXT.CACHE = ""  # the training's, which names of classes would fill
        cfg.MODEL.METHOD.NAME = ""  # of the training alone
        cfg.freeze()
        self.cfg, self.input_format, self.prompt = cfg, cfg.INPUT.FORMAT, cfg.MODEL.VOCABULARY.PROMPT
        self.score_threshold, self.dtype = score_threshold, dtype
        self.names = self._stored_names = list(description["class_names"])
        self.train_sets, base = description["train_sets"], description["base_classes"]
        self._base = None if base is None else frozenset(map(nfc, base))
        self._saw_drawings = bool(self.train_sets) and all(name.startswith(_MINI_SETS) for name in self.train_sets)
        self.novel = self._novel_among(self.names)
        self.resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self.model = load_model(cfg)
        last = self.model.roi_heads.predictors[-1]
        if len(self.names) != (count := last.num_classes if last.synonyms is None else len(last.synonyms)):
            raise UserError(f"{cfg.MODEL.WEIGHTS} has {count} classes, but names {len(self.names)}: take another file.")
        self.features = last.text_features
        for predictor in self.model.roi_heads.predictors:
            predictor.test_score_thresh = score_threshold
            if cfg.MODEL.VOCABULARY.NAMES:
                mask = torch.tensor([float(k not in self.novel) for k in range(len(self.names))])
                predictor.freq_weight = mask.to(predictor.freq_weight)
            for part in predictor.modules():
                if hasattr(part, "cls_bias"):
                    part.register_forward_hook(lambda classifier, _, logits: logits + classifier.cls_bias)
            for part in (predictor, *predictor.children()) if dtype is not None else ():
                # bfloat16 has too few digits for logits and box deltas
                part.forward = torch.autocast(self.model.device.type, enabled=False)(part.forward)
                part.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        if classes is not None:
            self.set_classes(classes)

    def set_classes(self, classes: Classes, embeddings: Tensor | None = None) -> None:
        """Detect K other classes from now on: names, or {name: further words for the same class}.

        The score of a class with synonyms is the highest among those of its name and its synonyms.
        ``embeddings`` (K, D) of names without synonyms; None: the text tower makes them.
        """
        names, groups = _grouped(classes)
        words, novel = [word for group in groups for word in group], self._novel_among(names)
        if not names or (embeddings is not None and len(embeddings) != len(words)):
            count = "" if embeddings is None else f" and {len(embeddings)} embeddings"
            raise UserError(f"There are {len(words)} class names{count}: give one or more names, and as many of both.")
        if embeddings is None:
            embeddings = self.embed(words)
        mask = torch.tensor([float(k not in novel) for k, group in enumerate(groups) for _ in group])
        self.model.roi_heads.set_vocabulary(embeddings, mask, _numbered(groups))
        self.names, self.novel = names, novel

    def embed(self, texts: Sequence[str]) -> Tensor:
        """(Q, D) embeddings of texts, which the model reads like class names."""
        return CLASS_FEATURES[self.features](self.model.text_encoder, list(texts), self.prompt).to(self.model.device)

    def freeze(self, path: str | os.PathLike) -> None:
        """Write the model with its present classes: ``Detector(path)`` finds these without the text tower."""
        cfg = self.cfg.clone()
        cfg.defrost()
        if self.names is not self._stored_names:
            cfg.MODEL.OVRCNN.TEST_CLASSES = ""  # a selection among the classes of the training
        description = {
            "config": cfg.dump(), "class_names": self.names, "train_sets": self.train_sets,
            "rows": self.model.roi_heads.predictors[-1].num_classes,
            "base_classes": None if self._base is None else sorted(self._base),
        }  # fmt: skip
        atomic_save({"model": self.model.state_dict(), DESCRIPTION: description}, Path(path))

    def predict(self, source, **options) -> Results:
        """All results of :meth:`stream`, with the images that were ``skipped``; files' pixels are not kept."""
        items = find_source(source)
        if any(isinstance(item, int) for item in items):
            raise UserError("A webcam never ends: use Detector.stream, which gives one result after another.")
        results = Results(names=self.names, novel=self.novel)
        results += (found.without_image() for found in self.stream(items, skipped=results.skipped, **options))
        return results

    def stream(
        self, source, *, batch: int = 1, threshold: float | None = None, top: int | None = 20, overlap: float = 0.3,
        slices: int = 0, tracks: bool = False, frames: int | None = None, skipped: list[Skipped] | None = None,
    ) -> Iterator[Result]:  # fmt: skip
        """One result for each image of ``source``, as soon as it is there. UserError for no source or a wrong value.

        Args:
            source: a file, folder (with its sub-folders), glob, http(s) address, video, "webcam:0" or its number;
                uint8 arrays (H, W, 3) in RGB order (of OpenCV's: ``image[..., ::-1]``); PIL images; a list of these.
            batch: number of images that are read and given to the network together.
            threshold: lowest score; by default ``score_threshold``.
            top: most detections of an image.
            overlap: of detections with a higher IoU, also of different classes, the best stays; 1: all stay.
            slices: px; above 0 the image is also read in overlapping squares of this side, for small objects.
            tracks: number the objects of a video from their second frame on (``track_ids``; ByteTrack of trackers).
                A track follows boxes whatever their classes.
            frames: most frames of a video or webcam.
            skipped: gets images that cannot be read; None: they are logged.
        """
        from supervision.utils.iterables import create_batches

        threshold = self.score_threshold if threshold is None else threshold
        given = {"batch": batch, "threshold": threshold, "top": top, "overlap": overlap, "slices": slices}
        for name, value in (given | {"frames": frames}).items():
            words, kind, least, most, others = _OPTIONS[name]
            if not (value in others or (isinstance(value, kind) and least <= value <= most)):
                raise UserError(f"{name} is {value!r}: give {words}.")
        follow = _tracker(threshold) if tracks else lambda frame, found: found
        for read in create_batches(read_source(source, frames=frames), batch):
            whole = [item for item in read if isinstance(item, Frame)]
            self._warn_of_photos(whole)
            found = self._find([frame.image for frame in whole], threshold, slices)
            for frame, of_frame in zip(whole, found, strict=True):
                kept = most_confident(of_frame, threshold=threshold, top=top, overlap=overlap)
                yield Result(frame, follow(frame, kept), names=self.names, novel=self.novel)
            for item in (item for item in read if isinstance(item, Skipped)):
                if skipped is None:
                    logger.warning("Image left out: %s (%s)", *item)
                else:
                    skipped.append(item)

    def _find(self, images: Sequence[np.ndarray], threshold: float, slices: int) -> "list[sv.Detections]":
        """Detections in RGB images; with ``slices`` duplicates of squares and whole image are suppressed by class."""
        ordered = [image if self.input_format == "RGB" else image[..., ::-1] for image in images]
        found = [_to_detections(of) for of in self.detect(ordered, threshold=threshold)]
        if slices:
            import supervision as sv

            slicer = sv.InferenceSlicer(
                lambda tiles: self._find(tiles, threshold, 0), slice_wh=slices, overlap_wh=slices // 5, batch_size=4,
                overlap_filter=sv.OverlapFilter.NONE, compact_masks=True,
            )  # fmt: skip
            for i in [i for i, image in enumerate(images) if max(image.shape) > slices]:
                found[i] = sv.Detections.merge([found[i], slicer(images[i])]).with_nms(threshold=0.5)
        return found

    @torch.no_grad()
    def detect(self, images: Sequence[np.ndarray], *, threshold: float | None = None) -> list[Instances]:
        """uint8 images (H, W, 3) in ``input_format`` → Instances in their own pixels, on the CPU.

        They have ``pred_boxes``, ``scores`` (the highest first) and ``pred_classes``, from a detector with masks also
        ``pred_masks`` (N, H, W) bool. Images of one size at the network's input run together; so no image is padded to
        another's size, and its detections do not depend on the others.
        """
        for predictor in self.model.roi_heads.predictors:
            predictor.test_score_thresh = max(self.score_threshold if threshold is None else threshold, 0.0)
        samples, of_shape = [], {}
        for i, image in enumerate(images):
            resized = self.resize.get_transform(image).apply_image(image)
            samples.append({"image": channels_first(resized), "height": image.shape[0], "width": image.shape[1]})
            of_shape.setdefault(resized.shape, []).append(i)
        found: dict[int, Instances] = {}
        with torch.autocast(self.model.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            for numbers in of_shape.values():
                found |= zip(numbers, self.model([samples[i] for i in numbers]), strict=True)
        instances = [found[i]["instances"].to("cpu") for i in range(len(samples))]
        return [of[of.scores.argsort(descending=True, stable=True)] for of in instances]

    def _novel_among(self, names: Sequence[str]) -> frozenset[int]:
        return frozenset(i for i, name in enumerate(names) if self._base and nfc(name) not in self._base)

    def _warn_of_photos(self, frames: Sequence[Frame]) -> None:
        """Say once that a model of the mini benchmark has seen drawings only, when it is used on other images."""
        if self._saw_drawings and any(_MINI_FOLDERS.isdisjoint(Path(frame.name).parts) for frame in frames):
            logger.warning(
                "This model has seen drawings only (%s) and knows little of photos: train on photos, or use a "
                "published checkpoint (docs/checkpoints.md).", ", ".join(self.train_sets),
            )  # fmt: skip
            self._saw_drawings = False


def _tracker(threshold: float) -> Callable[[Frame, "sv.Detections"], "sv.Detections"]:
    """Numbers the objects of each video: ``tracker_id``, -1 for those that no track holds."""
    require_packages("Tracking", ["trackers"])
    from trackers import ByteTrackTracker

    # Novel classes have low scores: every detection that is shown may start a track.
    limits = dict.fromkeys(("track_activation_threshold", "high_conf_det_threshold"), threshold)
    tracker = ByteTrackTracker(minimum_consecutive_frames=1, **limits)

    def follow(frame, found):
        if frame.number == 0:
            tracker.reset()
        return found if frame.number is None else tracker.update(found)

    return follow


def detects(cfg) -> bool:
    """Whether the config's model is an open-vocabulary detector."""
    return issubclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), OpenVocabRCNN)


def most_confident(found, *, threshold: float = 0.0, top: int | None = None, overlap: float = 1.0) -> "sv.Detections":
    """At most ``top`` of the detections ``found`` with a score of ``threshold`` or more, the highest score first.

    Of boxes with an IoU above ``overlap``, also of different classes, only the best stays: one object has one name.
    """
    found = found[(found.confidence >= threshold) & np.isfinite(found.xyxy).all(axis=1)]
    boxes, scores = (torch.from_numpy(of.astype(np.float64)) for of in (found.xyxy, found.confidence))
    return found[nms(boxes, scores, overlap)[:top].numpy()]


def _read(model, config, classes: Classes | None, overrides, device) -> tuple[CfgNode, dict, Classes | None]:
    """The config, not frozen, the checkpoint's description (:func:`clim.checkpoints.read_description`) and classes."""
    given = config if config is not None else model
    cfg = (given if isinstance(given, CfgNode) else load_config(str(given), list(overrides))).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = str(device or cfg.MODEL.DEVICE)
    check_values(cfg)
    if not detects(cfg):
        name = cfg.MODEL.META_ARCHITECTURE
        raise UserError(f"MODEL.META_ARCHITECTURE {name} detects nothing: use the config of a detector.")
    vocabulary, description = cfg.MODEL.VOCABULARY, None
    if not isinstance(model, CfgNode):
        cfg.MODEL.WEIGHTS = str(model)
        description = None if config is not None or vocabulary.EMBEDDINGS else read_description(model)
    if description is not None:  # the file's vocabulary is loaded, and then exchanged
        classes = classes or vocabulary.NAMES or None
        vocabulary.NAMES, cfg.MODEL.ROI_HEADS.NUM_CLASSES = [], description["rows"]
        return cfg, description, classes
    if classes is not None:  # the configured ones may be a file that is not here: one word stands in for a moment
        vocabulary.NAMES = list(classes)[:1]
    sets = cfg.DATASETS.TEST
    base = MetadataCatalog.get(sets[0]).get("base_classes", ()) if sets else ()
    names, train_sets = vocabulary_names(cfg), list(cfg.DATASETS.TRAIN)
    return cfg, {"class_names": names, "base_classes": list(base) or None, "train_sets": train_sets}, classes


def _grouped(classes: Classes) -> tuple[list[str], list[list[str]]]:
    """The names, and the words of each, the name first. UserError for a text that is no list, and for equal names."""
    others = classes if isinstance(classes, Mapping) else {}
    names = [] if isinstance(classes, str) else list(classes)
    texts = [name for name in names if isinstance(name, str) and name.strip()]
    if isinstance(classes, str) or any(isinstance(words, str) for words in others.values()) or texts != names:
        raise UserError(f'The classes are {classes!r}: give ["dog", "cat"], or {{"dog": ["puppy", "hound"]}}.')
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UserError(f"The class {twice[0]!r} is given twice: give each its own name.")
    return names, [list(dict.fromkeys([name, *others.get(name, ())])) for name in names]


def _numbered(groups: Sequence[Sequence[str]]) -> Tensor | None:
    """(C, S): the numbers of each group's words, repeated up to the longest; None for groups of one word."""
    rows, longest = itertools.count(), max(map(len, groups))
    numbers = [[next(rows) for _ in group] for group in groups]
    return torch.tensor([(of * longest)[:longest] for of in numbers]) if longest > 1 else None


def _to_detections(found: Instances) -> "sv.Detections":
    """supervision's Detections of Detectron2's Instances, with masks as run lengths."""
    import supervision as sv

    detections = sv.Detections.from_detectron2({"instances": found})
    if detections.mask is not None:
        whole = np.tile([0, 0, found.image_size[1], found.image_size[0]], (len(found), 1))
        detections.mask = sv.CompactMask.from_dense(detections.mask, whole, found.image_size)
    return detections
