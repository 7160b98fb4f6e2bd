"""Official Detic under a cascade: all proposals of an image and its own box go through all stages (detic §3.1)."""

from dataclasses import replace

from detectron2.structures import Boxes

from .base import METHOD_REGISTRY
from .detic import Detic
from .tile_assignment import boxes_of_images, last_and_largest


@METHOD_REGISTRY.register()
class OfficialDetic(Detic):
    """Losses, arguments and keys as in :class:`Detic`; TAG_MIN_IOF and GROUPS are not read.

    In each stage the captions belong to an image's last box and the tags to the largest of the others; a single box has
    both. The image's own box starts as the last one. It is regressed like the others, and empty boxes are left out of
    the next stage, so that it may not stay the last. An image without boxes adds 0 to the sum and counts in the mean.
    """

    sources = ("captions",)
    redraws_captions = False
    needs_proposals = True

    def select(self, tiles, proposals):
        """box: the TAG_TOPK best proposals of each image, then the image's box if there is a caption loss."""
        return {"box": boxes_of_images(tiles, proposals, topk=self.tag_topk, image_box="caption" in self.roles)}

    def refine(self, tiles, regions, boxes):
        kept = Boxes(boxes["box"]).nonempty()
        return {"box": replace(regions["box"], boxes=boxes["box"])[kept]}

    def losses(self, embeddings, regions, texts):
        rows = dict(zip(("caption", "tag"), last_and_largest(regions["box"]), strict=True))
        picked = {role: regions["box"][rows[role]] for role in self.roles}
        return super().losses({role: embeddings["box"][rows[role]] for role in picked}, picked, texts)

    def average(self, per_region, texts):
        return per_region.sum() / len(texts.tiles)
