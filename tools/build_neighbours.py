"""Find each image's nearest neighbours by text or image: similar mosaic partners (CLIM paper, Table 2c).

    python tools/build_neighbours.py --dataset coco_caption_train_tags --by text --output neighbours_text.npy

Then train with INPUT.MOSAIC.PARTNERS neighbours_text.npy. Several data sets: name them in the config's order.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import clim.data.datasets  # noqa: F401  registers the data sets
from arguments import add_device
from clim.cli import count
from clim.data.images import UnreadableImage, read_image, resize
from clim.data.loader import caption_records
from clim.data.partners import image_ids_hash
from clim.errors import UserError, run_cleanly
from clim.files import write_array, write_json
from clim.modeling.backbones.efficientnet import pretrained_lite0
from clim.text import build, cache

BATCH = 64  # images
COLUMNS = 16384  # neighbours compared at once: bounds the memory at ``chunk`` × COLUMNS similarities
_LOW = 0xFFFFFFFF


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
        features.append(normalize(sums, dim=1))  # of the mean too: the count drops out
    return torch.cat(features)


def text_encoder(args: argparse.Namespace, records: list[dict]):
    """The text tower, behind the cache where one is given: training with MODEL.TEXT.CACHE shares it."""
    settings = {"name": args.name, "pretrained": args.pretrained, "device": args.device}
    tower = build.LazyTower(**settings, directory=args.cache or None)
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
        raise UserError(f"None of the {len(records)} images could be read, the first: {unreadable[0]}")
    if unreadable:
        print(f"{len(unreadable)} of {len(records)} images are unreadable and come last in every list; the first ones:")
        print("\n".join(f"  {fault}" for fault in unreadable[:10]))
    return features


@torch.no_grad()
def build_neighbours(features: torch.Tensor | np.ndarray, k: int, chunk: int = 1024) -> np.ndarray:
    """Exact cosine nearest neighbours, computed on the device of ``features`` with a progress bar.

    Products are summed in float64 and compared as float32: however a block or a machine orders the sum, equal
    features tie, and ties go to the lower index. A row of zeros stands for an image without a feature: it
    comes after all others in everybody's list.

    Args:
        features: (N, D) float32, unit rows or zero rows.
        k: neighbours wanted.
        chunk: images handled at once.

    Returns:
        int32 (N, K), K = min(k, N − 1), best first; (0, 0) for no images.
    """
    features = torch.as_tensor(features)
    if not torch.isfinite(features).all():
        raise ValueError("features hold NaN or infinity")
    total = len(features)
    k = max(0, min(k, total - 1))
    rows = np.empty((total, k), dtype=np.int32)
    if k == 0:
        return rows
    absent = ~features.any(dim=1)
    for start in tqdm(range(0, total, chunk), desc="neighbours", unit="chunk"):
        queries = features[start : start + chunk].double()
        best = torch.empty((len(queries), 0), dtype=torch.int64, device=features.device)
        for left in range(0, total, COLUMNS):
            block = slice(left, left + COLUMNS)
            cosine = (queries @ features[block].double().T).float()
            cosine[:, absent[block]] = -2.0
            keys = _sortable(cosine, left)
            own = torch.arange(start, start + len(queries), device=features.device) - left
            inside = (own >= 0) & (own < keys.shape[1])
            keys[inside.nonzero()[:, 0], own[inside]] = torch.iinfo(torch.int64).min
            best = torch.cat([best, keys], dim=1)
            best = best.topk(min(k, best.shape[1]), dim=1).values
        rows[start : start + len(queries)] = (_LOW - (best & _LOW)).cpu().numpy()
    return rows


def _sortable(similarity: torch.Tensor, offset: int) -> torch.Tensor:
    """int64 keys (n, m), all different in a row, ordered as (similarity, then the lower column first).

    The upper half is the float's bit pattern made monotone, the lower half counts columns from ``offset`` on,
    downwards.
    """
    bits = (similarity + 0.0).view(torch.int32)  # + 0.0: −0 and 0 tie
    bits ^= (bits >> 31) & 0x7FFFFFFF  # negative floats sort downwards: turn them round
    columns = torch.arange(offset, offset + similarity.shape[1], device=similarity.device)
    return bits.long().bitwise_left_shift_(32).add_(_LOW - columns)


def save_neighbours(
    path: str | os.PathLike, rows: np.ndarray, *, records: Sequence[dict], by: str, dataset: str
) -> None:
    """Write ``rows`` (N, K) to ``path`` (``.npy``) and what it is for to the ``.json`` beside it."""
    path = Path(path)
    facts = {"dataset": dataset, "by": by, "images": len(rows), "neighbours": rows.shape[1]}
    facts["image_ids_sha256"] = image_ids_hash(records)
    # The facts go first and come last: an interrupted run leaves no pair that would load.
    path.with_suffix(".json").unlink(missing_ok=True)
    write_array(path, rows.astype(np.int32))
    write_json(path.with_suffix(".json"), facts, indent=1)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", nargs="+", required=True, help="caption data sets, as DATASETS.CAPTIONS")
    add("--by", choices=("text", "image"), required=True)
    add("--output", required=True, help="the .npy to write; a .json appears beside it")
    add("--k", type=count, default=64, help="neighbours an image (%(default)s)")
    name_help = "the tower: an open_clip model; for text also as MODEL.TEXT.NAME, for images also lite0 (%(default)s)"
    add("--name", default="ViT-B-32-quickgelu", help=name_help)
    add("--pretrained", default="openai", help="its weights: open_clip tag, file or hub name (%(default)s)")
    add("--cache", default="", help="for text: folder of caption embeddings, as MODEL.TEXT.CACHE")
    add_device(parser)
    add("--workers", type=int, default=2, help="processes that decode images")
    args = parser.parse_args(argv)
    if not args.output.endswith(".npy"):
        parser.error(f"--output {args.output}: give a name that ends in .npy")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    started = time.time()
    unknown = [name for name in args.dataset if name not in DatasetCatalog]
    if unknown:
        raise UserError(f"--dataset {unknown[0]} is not registered; clim/data/datasets.py lists the names")
    records = caption_records(args.dataset)
    if len(records) < 2:
        raise UserError(f"{', '.join(args.dataset)} holds one image: neighbours need two or more")
    rows = build_neighbours(compute_features(args, records).to(args.device), args.k)
    save_neighbours(args.output, rows, records=records, by=args.by, dataset=" + ".join(args.dataset))
    print(
        f"{args.output}: {rows.shape[1]} neighbours by {args.by} for {len(rows)} images, {time.time() - started:.0f} s"
    )


if __name__ == "__main__":
    run_cleanly(main)
