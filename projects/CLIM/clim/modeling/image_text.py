"""Image-text models, which have no detector: CLIP's encoder, and OV-RCNN's pre-training by locations of a map."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from clim.data.mosaic import compose, grid_cells
from clim.data.tiles import Tiles
from clim.errors import UserError
from clim.methods import Method, Regions, Texts, build_method
from clim.methods.ovrcnn import FeatureGrid, Locations
from clim.text import HasTextEncoder, build_text_encoder, require_width

from .backbones.encoder import ImageEncoder, build_image_encoder
from .region_pooling import embed_regions, pool_masks
from .vocabulary import is_configured, vocabulary_embeddings


class Canvases(NamedTuple):
    """Network inputs of one size, and the tiles on each."""

    pixels: Tensor  # (B, 3, H, W), normalised
    tiles: list[Tiles]  # one for each canvas


@META_ARCH_REGISTRY.register()
class ImageTextModel(HasTextEncoder, nn.Module):
    """CLIP's image half and a method that contrasts its embeddings with texts (CLIM paper §3.3; clip_fvlm §2).

    Training takes a joint batch (data/loader.py). Single images ("captions") are embedded as a whole; tiles of
    "mosaics" and boxes of "regions" are pooled from dense features. The method sees one set, the single images first.

    Inference takes dicts {"image": (3, H, W), "boxes": Boxes, "masks": (R, H, W) bool, "crops": (R, 3, S, S)}; all
    but the image are optional. It returns dicts {"region_scores": {"boxes" | "masks" | "crops": (R, K) cosines}}
    with the K classes of the configured vocabulary.
    """

    pools = "boxes"  # what its method must pool
    sources = ("captions", "mosaics", "regions")
    evaluated_on: tuple[str, ...] = ("regions",)  # types of test sets
    publishes_clip = True  # a run also writes clip.pt

    @configurable
    def __init__(
        self, *, image_encoder: ImageEncoder, method: Method | None, text_encoder, class_embeddings: Tensor,
        compose: Callable | None, pixel_mean: list[float], pixel_std: list[float],
    ):  # fmt: skip
        """``class_embeddings``: (K, D), (0, D) where no vocabulary is configured.

        ``compose``: :func:`compose_groups` of single images, if it makes the canvases.
        """
        super().__init__()
        self.image_encoder = image_encoder
        if method is not None:
            self.method = method
        self.text_encoder = text_encoder
        self.register_buffer("class_embeddings", F.normalize(class_embeddings, dim=-1), False)
        self.compose = compose
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.register_load_state_dict_pre_hook(_accept_clip_keys)

    @classmethod
    def from_config(cls, cfg):
        encoder, image_encoder = build_text_encoder(cfg), build_image_encoder(cfg)
        architecture, mosaic = cfg.MODEL.IMAGE_ENCODER.ARCHITECTURE, cfg.INPUT.MOSAIC
        require_width(image_encoder.dim, cfg, what=f"MODEL.IMAGE_ENCODER.ARCHITECTURE {architecture}")
        method = build_method(cfg, pools=cls.pools)
        if method is not None and method.needs_proposals:
            raise UserError(
                f"MODEL.METHOD.NAME {cfg.MODEL.METHOD.NAME} needs proposals, but MODEL.META_ARCHITECTURE "
                f"{cfg.MODEL.META_ARCHITECTURE} has none: use a detector, or a method of whole tiles."
            )
        no_classes = torch.zeros(0, image_encoder.dim)
        options = {"grids": list(mosaic.GRIDS), "size": mosaic.SIZE, "permute_texts": mosaic.PERMUTE_TEXTS}
        return {
            "image_encoder": image_encoder, "method": method, "text_encoder": encoder,
            "class_embeddings": vocabulary_embeddings(cfg, encoder) if is_configured(cfg) else no_classes,
            "compose": partial(compose_groups, **options) if mosaic.COMPOSE == "device" else None,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN, "pixel_std": cfg.MODEL.PIXEL_STD,
        }  # fmt: skip

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batch):
        """Losses of a joint batch in training, otherwise scores of regions."""
        return self.losses(batch) if self.training else self.inference(batch)

    def losses(self, batch: dict) -> dict[str, Tensor]:
        singles, canvases = self._load(batch["captions"]), self._load(batch["mosaics"] + batch["regions"])
        if self.compose:
            singles, canvases = self.compose(singles)
        return self.align(singles.tiles + canvases.tiles, None, partial(self.embed, singles.pixels, canvases.pixels))

    def align(self, tiles: list[Tiles], grids: list[FeatureGrid] | None, embed: Callable) -> dict[str, Tensor]:
        """Mosaic → pool → align: the losses of one batch; ``embed`` gives the projections of the method's regions."""
        joined = Tiles.cat(tiles).to(self.device)
        regions = self.method.select(joined, grids)
        return self.method.align([(regions, embed(regions))], self.texts(joined))

    def texts(self, tiles: Tiles) -> Texts:
        classes = F.pad(self.class_embeddings, (0, 0, 0, 1))  # a row of zeros is the background
        return Texts(tiles, encoder=self.text_encoder, class_embeddings=classes)

    def has_unused_parameters(self, loader) -> bool:
        return self.image_encoder.has_unused_parameters

    def embed(self, singles: Tensor, canvases: Tensor, regions: dict[str, Regions]) -> dict[str, Tensor]:
        """Embeddings (R, D) of every role's regions, not normalised.

        ``singles`` (B, 3, S, S) are regions as a whole; regions are pooled from ``canvases`` (B', 3, H, W), whose
        numbers follow those of ``singles``.
        """
        count, parts = len(singles), []
        if count:
            images = self.image_encoder.embed_images(singles)
            parts.append({role: images[r.canvas[r.canvas < count]] for role, r in regions.items()})
        if len(canvases):
            rest = {role: r[r.canvas >= count] for role, r in regions.items()}
            pooled = {role: replace(r, canvas=r.canvas - count) for role, r in rest.items()}
            ((_, embeddings),) = embed_regions(self.image_encoder, self.image_encoder.features(canvases), pooled)
            parts.append(embeddings)
        # The parts hold the regions of single images first: put them back in order.
        places = {role: (r.canvas >= count).int().argsort(stable=True).argsort() for role, r in regions.items()}
        return {role: torch.cat([part[role] for part in parts])[place] for role, place in places.items()}

    @torch.no_grad()
    def inference(self, batch: list[dict]) -> list[dict]:
        """See the class; UserError where no vocabulary is configured."""
        if len(self.class_embeddings) == 0:
            raise UserError("No class is configured: set MODEL.VOCABULARY.NAMES or MODEL.VOCABULARY.EMBEDDINGS.")
        return [{"region_scores": self.score_regions(sample)} for sample in batch]

    def score_regions(self, sample: dict) -> dict[str, Tensor]:
        """{"boxes" | "masks" | "crops": (R, K) cosines} for those that ``sample`` has."""
        encoder, embeddings = self.image_encoder, {}
        if "boxes" in sample or "masks" in sample:
            features = encoder.features(self.normalised([sample["image"]]))
        if "boxes" in sample:
            (embeddings["boxes"],) = encoder.embed_stages(features, [sample["boxes"].to(self.device)])
        if "masks" in sample:
            (dense,), masks = encoder.dense(features), sample["masks"].to(self.device)
            embeddings["masks"] = pool_masks(dense, masks, stride=encoder.dense_stride)
        if "crops" in sample:
            embeddings["crops"] = encoder.embed_images(self.normalised(sample["crops"]))
        return {kind: F.normalize(rows.float(), dim=-1) @ self.class_embeddings.T for kind, rows in embeddings.items()}

    def _load(self, samples: list[dict]) -> Canvases:
        return Canvases(self.normalised([s["image"] for s in samples]), [s["tiles"] for s in samples])

    def normalised(self, images) -> Tensor:
        """Images (3, H, W) of one size as (B, 3, H, W) on the model's device."""
        if len(images) == 0:
            return self.pixel_mean.new_zeros(0, 3, 1, 1)
        pixels = torch.stack([image.to(self.device, non_blocking=True) for image in images])  # uint8, for fewer bytes
        return (pixels - self.pixel_mean) / self.pixel_std


def compose_groups(
    singles: Canvases, *, grids: Sequence[int], size: int, permute_texts: bool = False
) -> tuple[Canvases, Canvases]:
    """Make canvases of single crops; return the crops that are left over, and the canvases.

    Every Σ n² crops (29 for grids 2, 3 and 4) make one canvas of each grid. The first crops of the batch fill all
    canvases of the first grid row by row, the next crops those of the second, and so on. Crops are laid side by side
    at their own size, and then the canvas is resized to ``size`` x ``size`` px (bicubic, without antialiasing). Boxes
    are the exact cells, so their sides may lie between pixels (CLIM release, clip_fvlm §2).

    ``permute_texts`` as in :class:`clim.data.mappers.CanvasMapper`. UserError if the batch is too small for one group.
    """
    count, needed = len(singles.tiles), sum(n * n for n in grids)
    groups = count // needed
    if groups == 0:
        remedy = f"raise it, lower INPUT.MOSAIC.GRIDS {list(grids)}, or set INPUT.MOSAIC.COMPOSE to loader"
        raise UserError(f"Canvases come from {needed} single crops, but CAPTIONS_PER_GPU is {count}: {remedy}.")
    pixels, tiles, start = [], [], 0
    for n in grids:
        for _ in range(groups):
            members = slice(start, start + n * n)
            whole = (n * singles.pixels.shape[-1],) * 2
            canvas = compose(list(singles.pixels[members]), grid_cells(n, size=whole), size=whole)
            pixels.append(F.interpolate(canvas[None], size=(size, size), mode="bicubic", align_corners=False)[0])
            joined = Tiles.cat(singles.tiles[members])
            # Cells of an n x n px canvas are whole numbers, so the scaled ones are exact.
            joined.boxes = torch.from_numpy(grid_cells(n, size=(n, n))).float() * (size / n)
            joined.canvas = torch.zeros_like(joined.canvas)
            if permute_texts and len(joined) > 1:
                joined = joined.with_rolled_texts(int(torch.randint(1, len(joined), ())))
            tiles.append(joined)
            start += n * n
    return Canvases(singles.pixels[start:], singles.tiles[start:]), Canvases(torch.stack(pixels), tiles)


def _accept_clip_keys(module, state_dict, prefix, *_):
    """Take weights with the names of OpenAI, open_clip and CLIM; drop their text half, which the config defines."""
    if not any(key.startswith(f"{prefix}visual.") for key in state_dict):
        return
    for key in list(state_dict):
        value = state_dict.pop(key)
        if key.startswith(f"{prefix}visual."):
            state_dict[f"{prefix}image_encoder.{key.removeprefix(prefix)}"] = value
        elif key == f"{prefix}logit_scale" and hasattr(module, "method"):
            state_dict[f"{prefix}method.logit_scale"] = value


@META_ARCH_REGISTRY.register()
class GridTextModel(ImageTextModel):
    """OV-RCNN's pre-training (ovrcnn §1, §3): regions are locations of the encoder's feature map.

    Trains on plain images of any size ("captions") and on "mosaics", each one batch, padded on the right and below.
    """

    pools = "locations"
    sources = ("captions", "mosaics")
    evaluated_on = ()
    publishes_clip = False

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(cfg)
        if not hasattr(ret["image_encoder"], "feature_map"):
            remedy = "choose ResNetGrid or EfficientNetLite0"
            raise UserError(f"MODEL.IMAGE_ENCODER.NAME {cfg.MODEL.IMAGE_ENCODER.NAME} has no feature map: {remedy}.")
        mosaic, stride = cfg.INPUT.MOSAIC, ret["image_encoder"].dense_stride
        if cfg.DATALOADER.MOSAICS_PER_GPU and mosaic.SIZE < stride * max(mosaic.GRIDS):
            remedy = f"make it at least {stride * max(mosaic.GRIDS)}"
            raise UserError(f"INPUT.MOSAIC.SIZE {mosaic.SIZE} gives tiles below one location of {stride} px: {remedy}.")
        return ret

    def losses(self, batch):
        """Losses of a joint batch; without a joint contrast, mosaics have losses of their own."""
        plain, mosaics = batch["captions"], batch["mosaics"]
        if self.method.joint:
            return self.ground(plain, mosaics)
        losses = self.ground(plain) if plain else {}
        if mosaics:
            losses |= {f"{name}_mosaic": loss for name, loss in self.ground(mosaics).items()}
        return losses

    def ground(self, *sources: list[dict]) -> dict[str, Tensor]:
        """The losses of canvases from one or two sources."""
        maps, grids = [], []
        for source in filter(None, sources):
            images = self.padded([c["image"] for c in source])
            maps.append(self.image_encoder.feature_map(images.tensor))
            sizes = {"padded": images.tensor.shape[-2:], "map_size": maps[-1].shape[-2:]}
            grids += [FeatureGrid(size, **sizes) for size in images.image_sizes]

        def embed(regions: dict[str, Locations]) -> dict[str, Tensor]:
            return {role: self.image_encoder.project(read_locations(maps, r)) for role, r in regions.items()}

        return self.align([c["tiles"] for source in sources for c in source], grids, embed)

    def padded(self, images: list[Tensor]) -> ImageList:
        """Images (3, H, W) as one normalised batch, padded with the mean colour."""
        pixels = (image.to(self.device, non_blocking=True) for image in images)
        return ImageList.from_tensors([(image - self.pixel_mean) / self.pixel_std for image in pixels])


def read_locations(maps: list[Tensor], locations: Locations) -> Tensor:
    """The vectors (R, C) of ``locations`` in maps (B_i, C, h_i, w_i); canvas numbers count across all maps."""
    rows, first = [], 0
    for features in maps:
        on = locations[(locations.canvas >= first) & (locations.canvas < first + len(features))]
        rows.append(features[on.canvas - first, :, on.row, on.column])
        first += len(features)
    return torch.cat(rows)
