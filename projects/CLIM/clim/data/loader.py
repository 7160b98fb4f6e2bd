"""Joint batches of every iteration: {"detection": […], "captions": […], "mosaics": […], "regions": […]}.

CLIM's detectors: 2 + 2 + 2 + 0 a GPU.
"""

from collections.abc import Iterator

import cv2
import torch
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from clim.errors import UserError

from .sources import STREAMS, batch_sizes, build_mappers
from .streams import Key, alternating_batches, batches, draws, joint_batches


class MappedSources(Dataset):
    """(source, epoch, index) → that source's mapped sample."""

    def __init__(self, mappers: dict):
        self.mappers = mappers

    def __getitem__(self, key: Key) -> tuple[str, dict]:
        source, epoch, index = key
        return source, self.mappers[source](epoch=epoch, index=index)


def collate(samples: list[tuple[str, dict]]) -> dict:
    """Samples by source, and the pictures that had to be replaced under ``skipped``."""
    batch: dict = {name: [] for name in STREAMS} | {"skipped": []}
    for source, sample in samples:
        batch["skipped"] += sample.pop("skipped")
        batch[source].append(sample)
    return batch


def start_worker(_) -> None:
    """OpenCV keeps to one thread in each worker, as torch does; many workers would fight for the cores."""
    cv2.setNumThreads(0)


def build_train_loader(cfg, *, seed: int, start_iter: int = 0) -> Iterator[dict]:
    """Iterator over joint batches from iteration ``start_iter`` on, this rank's share of them.

    The same (seed, start_iter, world size) gives the same batches, whatever DATALOADER.NUM_WORKERS is.
    """
    loader = cfg.DATALOADER
    sizes = batch_sizes(cfg)
    mappers = build_mappers(cfg, sizes, seed=seed)
    streams = {}
    for name, size in sizes.items():
        records = mappers[name].records
        # Squares need no padding; other pictures need less of it beside those that lie the same way.
        grouped = loader.ASPECT_RATIO_GROUPING and not mappers[name].square
        landscape = [r["width"] > r["height"] for r in records] if grouped else None
        drawn = draws(len(records), seed=seed, stream=STREAMS[name], rank=comm.get_rank(), world=comm.get_world_size())
        streams[name] = batches(drawn, size, landscape=landscape)

    if loader.ALTERNATE:
        if len(loader.ALTERNATE) != len(streams):
            raise UserError(
                f"DATALOADER.ALTERNATE has {len(loader.ALTERNATE)} weights for {len(streams)} sources "
                f"({', '.join(streams)}): give one weight for each."
            )
        keys = alternating_batches(streams, weights=loader.ALTERNATE, seed=seed, start=start_iter)
    else:
        keys = joint_batches(streams, start=start_iter)
    return iter(
        DataLoader(
            MappedSources(mappers),
            batch_sampler=keys,
            num_workers=loader.NUM_WORKERS,
            collate_fn=collate,
            worker_init_fn=start_worker,
            # Its own generator: the loader must not consume the random state that training resumes from.
            generator=torch.Generator().manual_seed(seed),
            persistent_workers=loader.NUM_WORKERS > 0,
        )
    )
