"""Features of the images of caption data sets, by captions or pixels; exact cosine neighbours, and their files."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from clim.data.images import MIN_SIDE, UnreadableImage, read_image, resize
from clim.data.partners import image_ids_hash
from clim.errors import UserError
from clim.files import write_json
from clim.modeling.backbones.efficientnet import pretrained_lite0
from clim.text import build
from clim_commands.outputs import prefill, write_array

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

    from clim.text.clip import load_clip_visual  # open_clip's own loader may run a file's code

    visual = load_clip_visual(name, pretrained).to(device).eval()
    pixels = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    pixels |= open_clip.get_pretrained_cfg(name, pretrained) or {}
    mean, std = ([255 * value for value in pixels[key]] for key in ("mean", "std"))
    size = visual.image_size
    return Encoder(visual, size[0] if isinstance(size, tuple) else size, mean, std)


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
            options = {"fmt": "RGB", "at_least": square, "min_side": MIN_SIDE}
            image = read_image(self.records[index]["file_name"], **options).image
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
        captions = [records[i]["captions"] for i in range(start, min(start + BATCH, len(records)))]
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
            tower = build.CaptionCache(tower, args.cache)
            prefill(tower, (text for record in records for text in record["captions"]))
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


@torch.no_grad()
def nearest(features: torch.Tensor | np.ndarray, k: int, chunk: int = 1024) -> np.ndarray:
    """The ``k`` rows of highest cosine for each row, computed on the device of ``features``.

    Products are summed in float64 and compared as float32: so equal features tie, in whatever order a machine sums,
    and ties go to the lower index. A row of zeros has no feature: it comes last in every list.

    Args:
        features: (N, D) float32, unit rows or zero rows.
        chunk: rows handled at once.

    Returns int32 (N, K), K = min(k, N − 1), best first; (0, 0) for no images. Raises ValueError for NaN.
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
    """int64 keys (n, m), all different in a row, ordered by similarity, then by lower column.

    The upper half is the float's bit pattern made monotone. The lower half counts columns downwards from ``offset``.
    """
    bits = (similarity + 0.0).view(torch.int32)  # + 0.0: −0 and 0 tie
    bits ^= (bits >> 31) & 0x7FFFFFFF  # negative floats sort downwards: turn them round
    columns = torch.arange(offset, offset + similarity.shape[1], device=similarity.device)
    return bits.long().bitwise_left_shift_(32).add_(_LOW - columns)


def save_neighbours(
    path: str | os.PathLike, rows: np.ndarray, *, records: Sequence[dict], by: str, dataset: str
) -> None:
    """Write ``rows`` (N, K) to ``path`` (``.npy``) and what they are for to the ``.json`` beside it."""
    path, rows = Path(path), np.ascontiguousarray(rows, np.int32)
    facts = {"dataset": dataset, "by": by, "images": len(rows), "neighbours": rows.shape[1]}
    facts |= {"image_ids_sha256": image_ids_hash(records), "rows_crc32": crc32(rows)}
    # The facts go first and come last: an interrupted run leaves no pair that would load.
    path.with_suffix(".json").unlink(missing_ok=True)
    write_array(path, rows)
    write_json(path.with_suffix(".json"), facts, indent=1)
