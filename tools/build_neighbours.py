"""Find each image's nearest neighbours by text or image: similar mosaic partners (CLIM paper, Table 2c).

    python tools/build_neighbours.py --dataset coco_caption_train_tags --by text --output neighbours_text.npy

Then train with INPUT.MOSAIC.PARTNERS neighbours_text.npy. Several data sets: name them in the config's order.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import clim.data.builtin  # noqa: F401  registers the data sets
from clim.arguments import add_device, count
from clim.data.images import UnreadableImage, read_image, resize
from clim.data.neighbours import build_neighbours, save_neighbours
from clim.data.sources import caption_records
from clim.engine import run_cleanly
from clim.errors import UserError
from clim.modeling.backbones.efficientnet import pretrained_lite0
from clim.text import cache

BATCH = 64  # images


class PictureEncoder(NamedTuple):
    """``encode``: float (B, 3, ``size``, ``size``) → (B, D), of RGB pictures as (pixel − mean) / std."""

    encode: Callable[[torch.Tensor], torch.Tensor]
    size: int
    mean: Sequence[float]  # in 0…255
    std: Sequence[float]


def lite0_encoder(device: str) -> PictureEncoder:
    """EfficientNet-Lite0, ImageNet weights, globally pooled: D = 1280."""
    net = pretrained_lite0().to(device)
    return PictureEncoder(lambda x: net.extract_features(x).mean(dim=(2, 3)), 224, (127.0,) * 3, (128.0,) * 3)


def open_clip_encoder(name: str, pretrained: str, device: str) -> PictureEncoder:
    """The image tower of an open_clip model; ``pretrained`` is a tag, a file or a hub name."""
    import open_clip

    try:
        model = open_clip.create_model(name, pretrained=pretrained, device=device).eval()
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(
            f'open_clip cannot make "{name}" with weights "{pretrained}" ({error}); give --name and '
            "--pretrained as open_clip lists them, or a weight file"
        ) from error
    size = model.visual.image_size
    mean, std = (
        [255 * value for value in stats] for stats in (model.visual.image_mean, model.visual.image_std)
    )
    return PictureEncoder(model.encode_image, size[0] if isinstance(size, tuple) else size, mean, std)


class Pictures(Dataset):
    """Record index → (float (3, size, size), ""), or (zeros, why it is unreadable)."""

    def __init__(self, records: list[dict], encoder: PictureEncoder):
        self.records, self.size = records, encoder.size
        self.mean, self.std = np.float32(encoder.mean), np.float32(encoder.std)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        square = (self.size, self.size)
        try:
            picture = read_image(self.records[index]["file_name"], fmt="RGB", at_least=square).image
        except UnreadableImage as error:
            return torch.zeros(3, *square), str(error)
        # Stretched, not cropped: a tile shows the whole picture.
        pixels = (resize(picture, square) - self.mean) / self.std
        return torch.from_numpy(pixels).permute(2, 0, 1), ""


@torch.no_grad()
def image_features(
    records: list[dict], encoder: PictureEncoder, *, device: str, workers: int
) -> tuple[torch.Tensor, list[str]]:
    """((N, D) unit rows, zero rows for unreadable pictures; one "file: reason" for each of those)."""
    features, unreadable = [], []
    loader = DataLoader(Pictures(records, encoder), batch_size=BATCH, num_workers=workers)
    for pixels, faults in tqdm(loader, desc="pictures", unit="batch"):
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
        features.append(normalize(sums, dim=1))  # of the mean too: the count drops out
    return torch.cat(features)


def text_encoder(args: argparse.Namespace, records: list[dict]):
    """The text tower, behind the cache where one is given: training with MODEL.TEXT.CACHE shares it."""
    tower = cache.LazyTower(
        name=args.name, pretrained=args.pretrained, directory=args.cache or None, device=args.device
    )
    if not args.cache:
        return tower
    cached = cache.CaptionCache(tower, args.cache)
    cached.prefill([text for record in records for text in record["captions"]])
    return cached


def compute_features(args: argparse.Namespace, records: list[dict]) -> torch.Tensor:
    if args.by == "text":
        return caption_features(records, text_encoder(args, records))
    if args.name == "lite0":
        encoder = lite0_encoder(args.device)
    else:
        encoder = open_clip_encoder(args.name, args.pretrained, args.device)
    features, unreadable = image_features(records, encoder, device=args.device, workers=args.workers)
    if len(unreadable) == len(records):
        raise UserError(f"None of the {len(records)} pictures could be read, the first: {unreadable[0]}")
    if unreadable:
        print(f"{len(unreadable)} of {len(records)} pictures are unreadable and nobody's first choice:")
        print("\n".join(f"  {fault}" for fault in unreadable[:10]))
        if len(unreadable) > 10:
            print(f"  … and {len(unreadable) - 10} more")
    return features


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", nargs="+", required=True, help="caption data sets, as DATASETS.CAPTIONS")
    parser.add_argument("--by", choices=("text", "image"), required=True)
    parser.add_argument("--output", required=True, help="the .npy to write; a .json appears beside it")
    parser.add_argument("--k", type=count, default=64, help="neighbours an image (default 64)")
    parser.add_argument(
        "--name", default="ViT-B-32-quickgelu",
        help="the tower: an open_clip model; for text also as MODEL.TEXT.NAME, for images also lite0",
    )  # fmt: skip
    parser.add_argument("--pretrained", default="openai", help="its weights: open_clip tag, file or hub name")
    parser.add_argument(
        "--cache", default="", help="for text: folder of caption embeddings, as MODEL.TEXT.CACHE"
    )
    add_device(parser)
    parser.add_argument("--workers", type=int, default=2, help="processes that decode pictures")
    args = parser.parse_args(argv)
    if not args.output.endswith(".npy"):
        parser.error(f"--output {args.output}: give a name that ends in .npy")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    started = time.time()
    unknown = [name for name in args.dataset if name not in DatasetCatalog]
    if unknown:
        raise UserError(f"--dataset {unknown[0]} is not registered; clim/data/builtin.py lists the names")
    records = caption_records(args.dataset)
    if len(records) < 2:
        raise UserError(f"{', '.join(args.dataset)} holds one image: neighbours need two or more")
    rows = build_neighbours(compute_features(args, records).to(args.device), args.k)
    save_neighbours(args.output, rows, records=records, by=args.by, dataset=" + ".join(args.dataset))
    print(
        f"{args.output}: {rows.shape[1]} neighbours by {args.by} for {len(rows)} images, "
        f"{time.time() - started:.0f} s"
    )


if __name__ == "__main__":
    run_cleanly(main)
