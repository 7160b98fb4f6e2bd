"""OV-RCNN's pre-training: an image-text model whose regions are locations of a feature map (ovrcnn §1, §3)."""

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from torch import Tensor

from clim.data.tiles import Tiles
from clim.errors import UserError
from clim.methods.ovrcnn import FeatureGrid, Locations

from .image_text import ImageTextModel


@META_ARCH_REGISTRY.register()
class GridTextModel(ImageTextModel):
    """Encoder and method, no detector. Trains on plain images of any size ("captions") and on "mosaics".

    Each source is one batch of the encoder, padded on the right and below.
    """

    pools = "locations"
    sources = ("captions", "mosaics")
    evaluated_on = ()
    publishes_clip = False

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(cfg)
        if not hasattr(ret["image_encoder"], "feature_map"):
            raise UserError(
                f"MODEL.IMAGE_ENCODER.NAME {cfg.MODEL.IMAGE_ENCODER.NAME} has no feature map to ground words in: "
                "choose ResNetGrid or EfficientNetLite0."
            )
        mosaic, stride = cfg.INPUT.MOSAIC, ret["image_encoder"].dense_stride
        if cfg.DATALOADER.MOSAICS_PER_GPU and mosaic.SIZE < stride * max(mosaic.GRIDS):
            raise UserError(
                f"INPUT.MOSAIC.SIZE {mosaic.SIZE} gives a tile of INPUT.MOSAIC.GRIDS {mosaic.GRIDS} less than one "
                f"location of {stride} px: make it at least {stride * max(mosaic.GRIDS)}."
            )
        return ret

    def forward(self, batch):
        """Losses of a joint batch in training; without a joint contrast, mosaics have losses of their own."""
        if not self.training:
            return self.inference(batch)
        plain, mosaics = batch["captions"], batch["mosaics"]
        if self.method.joint:
            return self.align(plain, mosaics)
        losses = self.align(plain) if plain else {}
        if mosaics:
            losses |= {f"{name}_mosaic": loss for name, loss in self.align(mosaics).items()}
        return losses

    def align(self, *sources: list[dict]) -> dict[str, Tensor]:
        """Mosaic → pool → align: the losses of canvases from one or two sources."""
        tiles = Tiles.cat([c["tiles"] for source in sources for c in source]).to(self.device)
        texts = self.texts(tiles)
        maps, grids = [], []
        for source in filter(None, sources):
            images = self.padded([c["image"] for c in source])
            maps.append(self.image_encoder.feature_map(images.tensor))
            sizes = {"padded": images.tensor.shape[-2:], "map_size": maps[-1].shape[-2:]}
            grids += [FeatureGrid(size, **sizes) for size in images.image_sizes]
        regions = self.method.select(tiles, grids)
        projections = {role: self.image_encoder.project(read_locations(maps, r)) for role, r in regions.items()}
        embeddings = self.method.read(projections, regions, texts)
        losses = self.method.losses(embeddings, regions, texts)
        self.method.update_queues(embeddings, texts)
        return losses

    def padded(self, images: list[Tensor]) -> ImageList:
        """Images (3, H, W) as one normalised batch, padded with the mean colour."""
        pixels = (image.to(self.device, torch.float32) for image in images)
        return ImageList.from_tensors([(image - self.pixel_mean) / self.pixel_std for image in pixels])


def read_locations(maps: list[Tensor], locations: Locations) -> Tensor:
    """The vectors (R, C) of ``locations`` in maps (B_i, C, h_i, w_i); canvas numbers count across all maps."""
    rows, first = [], 0
    for features in maps:
        on = locations[(locations.canvas >= first) & (locations.canvas < first + len(features))]
        rows.append(features[on.canvas - first, :, on.row, on.column])
        first += len(features)
    return torch.cat(rows)
