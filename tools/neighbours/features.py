"""Unit feature vectors of the images of caption data sets, by their captions or their pixels."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from clim.data.images import UnreadableImage, read_image, resize
from clim.errors import UserError
from clim.modeling.backbones.efficientnet import pretrained_lite0
from clim.text import build, cache

BATCH = 64  # images


class Encoder(NamedTuple):
    """``encode``: float (B, 3, ``size``, ``size``) → (B, D), of RGB images as (pixel − mean) / std."""

    encode: Callable[[torch.Tensor], torch.Tensor]
    size: int
    mean: Sequence[float]  # in 0…255
    std: Sequence[float]


def lite0_encoder(device: str) -> Encoder:
    """EfficientNet-Lite0, ImageNet weights, globally pooled: D = 1280."""
    net = pretrained_lite0().to(device)
    return Encoder(lambda x: net.extract_features(x).mean(dim=(2, 3)), 224, (127.0,) * 3, (128.0,) * 3)


def open_clip_encoder(name: str, pretrained: str, device: str) -> Encoder:
    """The image tower of an open_clip model; ``pretrained`` is a tag, a file or a hub name."""
    import open_clip

    model = open_clip.create_model(name, pretrained=pretrained, device=device).eval()
    size = model.visual.image_size
    mean, std = ([255 * value for value in stats] for stats in (model.visual.image_mean, model.visual.image_std))
    return Encoder(model.encode_image, size[0] if isinstance(size, tuple) else size, mean, std)


class Images(Dataset):
    """Record index → (float (3, size, size), ""), or (zeros, why it is unreadable)."""

    def __init__(self, records: list[dict], encoder: Encoder):
        self.records, self.size = records, encoder.size
        self.mean, self.std = np.float32(encoder.mean), np.float32(encoder.std)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        square = (self.size, self.size)
        try:
            image = read_image(self.records[index]["file_name"], fmt="RGB", at_least=square).image
        except UnreadableImage as error:
            return torch.zeros(3, *square), str(error)
        # Stretched, not cropped: a tile shows the whole image.
        pixels = (resize(image, square) - self.mean) / self.std
        return torch.from_numpy(pixels).permute(2, 0, 1), ""


@torch.no_grad()
def image_features(
    records: list[dict], encoder: Encoder, *, device: str, workers: int
) -> tuple[torch.Tensor, list[str]]:
    """((N, D) unit rows, zero rows for unreadable images; one "file: reason" for each of those)."""
    features, unreadable = [], []
    loader = DataLoader(Images(records, encoder), batch_size=BATCH, num_workers=workers)
    for pixels, faults in tqdm(loader, desc="images", unit="batch"):
        rows = normalize(encoder.encode(pixels.to(device)).float(), dim=1)
        readable = torch.tensor([not fault for fault in faults], device=device)
        features.append(torch.where(readable[:, None], rows, 0.0))
        unreadable += [fault for fault in faults if fault]
    return torch.cat(features), unreadable


@torch.no_grad()
def caption_features(records: list[dict], tower) -> torch.Tensor:
    """(N, D) unit rows: the direction of an image's mean caption embedding; zeros without a caption."""
    features = []
    for start in tqdm(range(0, len(records), BATCH), desc="captions", unit="batch"):
        captions = [record["captions"] for record in records[start : start + BATCH]]
        flat = tower.encode([text for texts in captions for text in texts]).float()
        sums = flat.new_zeros(len(captions), flat.shape[1])
        owner = [i for i, texts in enumerate(captions) for _ in texts]
        sums.index_add_(0, torch.tensor(owner, dtype=torch.int64, device=flat.device), flat)
        features.append(normalize(sums, dim=1))  # sum and mean have one direction
    return torch.cat(features)


def compute_features(args, records: list[dict]) -> torch.Tensor:
    """(N, D) of ``records`` as the arguments of tools/build_neighbours.py say; unreadable images are printed."""
    if args.by == "text":
        tower = build.LazyTower(
            name=args.name, pretrained=args.pretrained, device=args.device, directory=args.cache or None
        )
        if args.cache:  # the same that training reads as MODEL.TEXT.CACHE
            tower = cache.CaptionCache(tower, args.cache)
            tower.prefill([text for record in records for text in record["captions"]])
        return caption_features(records, tower)
    if args.name == "lite0":
        encoder = lite0_encoder(args.device)
    else:
        encoder = open_clip_encoder(args.name, args.pretrained, args.device)
    features, unreadable = image_features(records, encoder, device=args.device, workers=args.workers)
    if len(unreadable) == len(records):
        raise UserError(f"None of the {len(records)} images could be read, the first: {unreadable[0]}")
    if unreadable:
        print(f"{len(unreadable)} of {len(records)} images are unreadable and come last in every list; the first ones:")
        print("\n".join(f"  {fault}" for fault in unreadable[:10]))
    return features
