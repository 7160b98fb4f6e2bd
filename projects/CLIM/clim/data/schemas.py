"""The kinds of json that the library reads: ``read_json(path, kind=BoxFile, remedy=…)`` decodes and checks in one step.

Keys that a kind does not list are not read, so they may hold anything. A ``description`` says what a value must be; a
``ValueError`` of ``__post_init__`` continues the name of its place: "images[3] of FILE (id 7) has no file_name".
Other tools write ids and sizes as 3.0, which counts as 3.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Generic, Literal, TypeVar

import numpy as np
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from msgspec.structs import asdict
from pycocotools import mask as mask_util

from clim.files import nfc

A, P = TypeVar("A"), TypeVar("P")

_Integral = Annotated[float, Meta(multiple_of=1, ge=-(2**53), le=2**53)]  # a wider range is not exact
Whole = Annotated[Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | _Integral, Meta(description="a whole number")]
Natural = Annotated[float, Meta(multiple_of=1, ge=0, le=2**31 - 1)]
Side = Annotated[Natural | None, Meta(description="a whole number of pixels")]
Pixels = Annotated[float, Meta(ge=-1e9, le=1e9)]
Length = Annotated[float, Meta(ge=0, le=1e9)]
Box = Annotated[
    tuple[Pixels, Pixels, Length, Length],
    Meta(description="[x, y, width, height] in pixels, four finite numbers, width and height not below 0"),
]
Crowd = Annotated[Annotated[float, Meta(multiple_of=1, ge=0, le=1)] | bool, Meta(description="0 or 1")]
Area = Annotated[Annotated[float, Meta(ge=0, le=1e18)] | None, Meta(description="the square pixels of the object")]
# Half characters from \udc80 on are bytes of names that are not UTF-8.
FileName = Annotated[
    str, Meta(pattern=r"\A[^\0\ud800-\udc7f\udd00-\udfff]*\Z", description="a text without zeros and half characters")
]
Ids = Annotated[list[Whole], Meta(description="a list of category ids")]
Count = Annotated[float, Meta(multiple_of=1, ge=0, le=2**53, description="a number of images")]
Frequency = Annotated[Literal["r", "c", "f"], Meta(description='"r", "c" or "f": rare, common or frequent, as in LVIS')]

_UNREADABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, and halves of a character


class Category(Struct):
    """A class; ``split`` is "base", "novel", "unused" or another word; LVIS's ``frequency`` is "r", "c" or "f"."""

    id: Whole
    name: Annotated[str | int | float, Meta(description="a text")]
    split: str | None = None
    frequency: Frequency | None = None
    image_count: Count | None = None

    def __post_init__(self):
        self.id, self.name = int(self.id), class_name(self.name)


class CategoryInfo(Struct):
    """A row of a cat_info file."""

    id: Whole
    image_count: Count
    name: str | None = None


class OfCategory(Struct, gc=False):
    """What the number of a category's boxes needs of an annotation."""

    category_id: Whole | None = None


class CategoryFile(Struct):
    """The categories of any json of COCO's form."""

    categories: list[Category] = []
    annotations: list[OfCategory] = []

    def __post_init__(self):
        different([c.id for c in self.categories], "categories", [c.name for c in self.categories])


class Image(Struct, gc=False):
    """An image of COCO's or LVIS's form. Sizes that are 0 or null are unknown.

    The lists are LVIS's: classes that the image does not show, and classes that are not all annotated.
    """

    id: Whole
    file_name: FileName = ""
    coco_url: FileName | None = None
    height: Side = None
    width: Side = None
    neg_category_ids: Ids | None = None
    not_exhaustive_category_ids: Ids | None = None

    def __post_init__(self):
        self.id, self.height, self.width = int(self.id), int(self.height or 0), int(self.width or 0)


class Annotation(Struct, gc=False):
    """A box, XYWH."""

    image_id: Whole
    category_id: Whole
    bbox: Box
    iscrowd: Crowd = 0
    id: int | float | str | None = None  # nothing depends on it


class RunLengths(Struct, gc=False):
    """A mask of ``size`` (height, width) as COCO's run lengths, compressed to a text or not."""

    size: Annotated[list[Natural], Meta(min_length=2, max_length=2)]
    counts: str | list[Annotated[int, Meta(ge=0, le=2**32 - 1)]]

    def __post_init__(self):
        from faster_coco_eval.mask_api_new_cpp import toUncompressedRLE  # it refuses what pycocotools takes for a mask

        height, width = self.size = list(map(int, self.size))
        counts = self.counts
        try:
            counts = toUncompressedRLE([asdict(self)])[0]["counts"] if isinstance(counts, str) else counts
        except (ValueError, RuntimeError, OverflowError):
            counts = []
        if sum(counts) != height * width:
            raise ValueError(f"has counts that are no mask of {height} x {width} pixels")


Mask = Annotated[
    list[list[Pixels]] | RunLengths,
    Meta(description="a list of polygons [[x, y, x, y, …], …] in pixels, or run lengths {size, counts}"),
]


class MaskedAnnotation(Annotation, gc=False):
    """A box, and its mask: arrays (2 P,) of polygons, as LVIS's 1.3 million would take gigabytes, or run lengths."""

    segmentation: Mask | UnsetType = UNSET
    precision: ClassVar[type] = np.float32

    def __post_init__(self):
        if isinstance(self.segmentation, list):
            self.segmentation = [np.array(polygon, self.precision) for polygon in self.segmentation]


class TestAnnotation(Annotation, gc=False):
    """A box of a test set."""

    area: Area = None


class MaskedTestAnnotation(MaskedAnnotation, gc=False):
    """A box of a test set, and its mask."""

    area: Area = None
    precision: ClassVar[type] = np.float64


class Segment(Struct, gc=False):
    """A segment of a panoptic image; stuff has no box."""

    id: Whole
    category_id: Whole
    iscrowd: Crowd = 0
    bbox: Box | None = None


class PanopticAnnotation(Struct):
    """The segments of an image, and the PNG that shows them."""

    image_id: Whole
    file_name: Annotated[FileName, Meta(min_length=1, description="the name of a PNG")]
    segments_info: list[Segment]

    id = property(lambda self: self.image_id)  # an image has one PNG

    def __post_init__(self):
        different([segment.id for segment in self.segments_info], "segments_info")


class File(Struct, Generic[A]):
    """Images with annotations of one kind, each with an id of its own."""

    images: list[Image]
    annotations: list[A]
    categories: list[Category] = []

    def __post_init__(self):
        different([i.id for i in self.images], "images", [i.file_name or i.coco_url for i in self.images])
        different([getattr(a, "id", None) for a in self.annotations], "annotations")
        sizes = {image.id: [image.height, image.width] for image in self.images}
        for place, a in enumerate(self.annotations):
            mask = getattr(a, "segmentation", None)
            if isinstance(mask, RunLengths) and mask.size != (size := sizes.get(a.image_id, mask.size)) and all(size):
                said = f"has a mask of {mask.size} pixels (height, width), but its image has {size}"
                raise ValueError(f"has annotations[{place}].segmentation (id {a.id}): it {said}")


BoxFile, MaskFile, PanopticFile = File[Annotation], File[MaskedAnnotation], File[PanopticAnnotation]
TestBoxFile, TestMaskFile = File[TestAnnotation], File[MaskedTestAnnotation]

# ---- image-text pairs

Key = Annotated[int | str | float, Meta(description="a number")]
Text = Annotated[str | None, Meta(description="a text")]


class Pair(Struct, gc=False):
    """An image with captions, as Detic's jsons list it. Sizes that are 0 or null are unknown."""

    id: Key
    file_name: Text = None
    coco_url: Text = None
    height: Side = None
    width: Side = None
    captions: Annotated[list[str] | str | None, Meta(description="a list of texts")] = None
    pos_category_ids: Ids | None = None


class Caption(Struct, gc=False):
    """An annotation of COCO's captions; files of boxes may hold captions, too."""

    image_id: Key
    caption: Text = None


class PairFile(Struct, Generic[P, A]):
    """A json of captions; those of the annotations belong to images that have none of their own."""

    images: list[P]
    annotations: list[A] | None = None
    categories: list[Category] | None = None  # a category's place among all ids is its tag

    def __post_init__(self):
        different([category.id for category in self.categories or ()], "categories")


WholePairFile, RawPairFile = PairFile[Pair, Caption], PairFile[Raw, Raw]  # raw: millions are decoded one by one


def texts_of(captions: Sequence[str] | str | None) -> Sequence[str]:
    """The captions of an image, where a single one may be a text."""
    return (captions,) if isinstance(captions, str) else captions or ()


def class_name(name: str | float) -> str:
    """A class's name in NFC. ValueError for one without a letter, and for control characters and half characters."""
    name = nfc(str(name))
    if not name.strip():
        raise ValueError("has an empty name")
    if found := _UNREADABLE.search(name):
        what = "half a character" if found[0] >= "\ud800" else "a control character, such as a line break"
        raise ValueError(f"has the name {name!r}, which holds {what}")
    return name


def different(ids: Sequence, key: str, names: Sequence[str] = ()) -> None:
    """ValueError if two entries of list ``key`` have one id, with the places of both. None is no id."""
    first: dict = {}
    for place, value in enumerate(ids):
        before = first.setdefault(value, place)
        if before != place and value is not None:
            both = (f"{key}[{i}]" + (f" ({names[i]})" if names and names[i] else "") for i in (before, place))
            raise ValueError(f"has the id {value!r} twice: {' and '.join(both)} need ids of their own")


def coco_mask(mask: list | RunLengths | UnsetType) -> list | dict:
    """A mask as COCO's tools take it: the polygons of 3 points or more, or run lengths. [] for none."""
    if isinstance(mask, RunLengths):
        return asdict(mask)
    return [polygon for polygon in mask or () if len(polygon) >= 6 and len(polygon) % 2 == 0]


def run_lengths(segmentation: list | Mapping, height: int, width: int) -> Mapping:
    """COCO's polygons or run lengths of an image as compressed run lengths."""
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, height, width)
    return segmentation
