"""Jsons of image-text pairs, as commands of tools/ and datasets/ read them."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Generic

from clim.data.schemas import A, Caption, Pair, PairFile, different


class NumberedPairFile(PairFile[Pair, A], Generic[A]):
    """A json of captions whose ids tell its images apart. An image may be listed several times."""

    def __post_init__(self):
        super().__post_init__()
        names, first = [image.file_name or image.coco_url for image in self.images], {}
        again = [first.setdefault((i.id, name), i) is not i for i, name in zip(self.images, names, strict=True)]
        ids = [None if listed else image.id for image, listed in zip(self.images, again, strict=True)]
        different(ids, "images", names)


WholeNumberedPairFile = NumberedPairFile[Caption]


def captions_by_image(content: Mapping) -> dict[int | str, list[str]]:
    """{image id: its captions} of the annotations of COCO's captions."""
    found = defaultdict(list)
    for annotation in content.get("annotations") or ():
        if annotation.get("caption") is not None:
            found[annotation["image_id"]].append(annotation["caption"])
    return found
