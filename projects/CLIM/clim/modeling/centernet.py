"""CenterNet's proposals: a class-agnostic heat map of box centres, and distances to the sides of boxes (detic §3.1).

Shapes: B images, M locations of one image, level by level and row by row, n boxes of one image. N = B · M locations of
a batch: by level, by image, by row. Boxes are x0, y0, x1, y1 in px of the input; distances left, top, right, bottom.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.config import configurable
from detectron2.layers import get_norm
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms

from clim.losses import heat_map_losses, ltrb_giou_loss

MIN_HEAT = 1e-4  # smaller values of the heat map are 0
MIN_SIDE = 0.01  # px, of a proposal
Sizes = Sequence[tuple[int, int]]  # height, width


class Targets(NamedTuple):
    """What the locations of a batch, or of one image, learn."""

    positives: Tensor  # (P,) int64: location of each box's centre, once for each of its levels
    distances: Tensor  # (N, 4) to the sides of the box that a location learns, in strides; -1 without such a box
    heat_map: Tensor  # (N,) in [0, 1]


@PROPOSAL_GENERATOR_REGISTRY.register()
class CenterNet(nn.Module):
    """Proposal generator. Weights and losses have official Detic's names.

    Proposals have ``proposal_boxes``, not clipped to the image, and ``objectness_logits``, which holds √probability.
    """

    @configurable
    def __init__(self, *, head: nn.Module, in_features, strides, target_rule, focal_rule, weights, choice):
        """``target_rule``, ``focal_rule`` and ``choice[training]`` are keyword arguments of :func:`centernet_targets`,
        :func:`clim.losses.heat_map_losses` and :func:`choose_proposals`; ``weights`` has a factor for each loss.
        """
        super().__init__()
        self.centernet_head, self.in_features, self.strides = head, in_features, strides
        self.target_rule, self.focal_rule, self.weights, self.choice = target_rule, focal_rule, weights, choice

    @classmethod
    def from_config(cls, cfg, input_shape):
        node = cfg.MODEL.CENTERNET
        shapes = [input_shape[name] for name in node.IN_FEATURES]
        layers = {"num_levels": len(shapes), "num_convs": node.NUM_BOX_CONVS, "norm": node.NORM}
        delta = (1 - node.HM_MIN_OVERLAP) / (1 + node.HM_MIN_OVERLAP)
        choice = {
            training: {
                "min_probability": node.INFERENCE_TH, "level_topk": node["PRE_NMS_TOPK_" + mode],
                "topk": node["POST_NMS_TOPK_" + mode], "nms_threshold": node["NMS_TH_" + mode],
            } for training, mode in ((True, "TRAIN"), (False, "TEST"))
        }  # fmt: skip
        return {
            "head": CenterNetHead(shapes[0].channels, prior=node.PRIOR_PROB, **layers),
            "in_features": node.IN_FEATURES,
            "strides": [shape.stride for shape in shapes],
            "target_rule": {"ranges": node.SOI, "delta": delta, "min_radius": node.MIN_RADIUS},
            "focal_rule": {
                "alpha": node.HM_FOCAL_ALPHA, "beta": node.HM_FOCAL_BETA, "gamma": node.LOSS_GAMMA,
                "clamp": node.SIGMOID_CLAMP, "ignore_above": node.IGNORE_HIGH_FP,
            },
            "weights": {"loc": node.REG_WEIGHT, "agn_pos": node.POS_WEIGHT, "agn_neg": node.NEG_WEIGHT},
            "choice": choice,
        }  # fmt: skip

    def forward(self, images: ImageList, features: dict[str, Tensor], gt_instances: list[Instances] | None = None):
        """Proposals of each image, best first, and {loss name: scalar}, which is empty outside training."""
        heat, distances = self.centernet_head([features[name] for name in self.in_features])
        losses = self.losses(heat, distances, [x.gt_boxes.tensor for x in gt_instances]) if self.training else {}
        return self.predict(heat, distances, images.image_sizes), losses

    @torch.no_grad()
    def propose(self, images: ImageList, features: dict[str, Tensor]) -> list[Instances]:
        """Proposals of each image without ground truth; their number depends on the module's mode."""
        maps = self.centernet_head([features[name] for name in self.in_features])
        return self.predict(*maps, images.image_sizes)

    def losses(self, heat: list[Tensor], distances: list[Tensor], boxes: list[Tensor]) -> dict[str, Tensor]:
        """The three losses from maps (B, 1, H, W) and (B, 4, H, W) of each level, and boxes (n, 4) of each image."""
        sizes = [tuple(x.shape[2:]) for x in heat]
        locations = level_locations(sizes, self.strides, device=heat[0].device)
        targets = centernet_targets(locations, sizes, self.strides, boxes, **self.target_rule)
        (learns,) = (targets.distances[:, 0] >= 0).nonzero(as_tuple=True)
        counts = locations.new_tensor([len(targets.positives), len(learns)])
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(counts)
        num_positives, num_learning = (counts / comm.get_world_size()).clamp(min=1)  # means over processes
        logits = flatten_maps(heat)[:, 0]
        positive, negative = heat_map_losses(logits, targets.heat_map, targets.positives, **self.focal_rule)
        giou = ltrb_giou_loss(flatten_maps(distances)[learns], targets.distances[learns]).sum()
        losses = {"loc": giou / num_learning, "agn_pos": positive / num_positives, "agn_neg": negative / num_positives}
        return {f"loss_centernet_{name}": self.weights[name] * loss for name, loss in losses.items()}

    @torch.no_grad()
    def predict(self, heat: list[Tensor], distances: list[Tensor], image_sizes: Sizes) -> list[Instances]:
        """Proposals of each image from maps (B, 1, H, W) and (B, 4, H, W) of each level."""
        sizes = [tuple(x.shape[2:]) for x in heat]
        locations = level_locations(sizes, self.strides, device=heat[0].device).split([h * w for h, w in sizes])
        sides = [x.flatten(2).transpose(1, 2) * stride for x, stride in zip(distances, self.strides, strict=True)]
        probabilities, proposals = [x.flatten(1).sigmoid() for x in heat], []
        for i, size in enumerate(image_sizes):
            of_image = [x[i] for x in sides], [p[i] for p in probabilities]
            boxes, scores = choose_proposals(locations, *of_image, **self.choice[self.training])
            proposals.append(Instances(size, proposal_boxes=Boxes(boxes), objectness_logits=scores))
        return proposals


class CenterNetHead(nn.Module):
    """The network on maps (B, ``channels``, H, W) of ``num_levels`` levels; ``prior``: probability at the start."""

    def __init__(self, channels: int, *, num_levels: int, num_convs: int, norm: str, prior: float):
        super().__init__()
        self.bbox_tower = nn.Sequential()
        for _ in range(num_convs):
            norm_layer = get_norm(norm, channels) or nn.Identity()  # "" is no norm
            self.bbox_tower.extend([nn.Conv2d(channels, channels, 3, padding=1), norm_layer, nn.ReLU()])
        self.bbox_pred = nn.Conv2d(channels, 4, 3, padding=1)
        self.agn_hm = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.ModuleList(nn.ParameterDict({"scale": torch.ones(1)}) for _ in range(num_levels))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        nn.init.constant_(self.bbox_pred.bias, 8.0)
        nn.init.constant_(self.agn_hm.bias, -math.log((1 - prior) / prior))

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (B, 1, H, W) and distances (B, 4, H, W) in strides of each level; float32, also inside autocast."""
        with torch.autocast(maps[0].device.type, enabled=False):
            towers = [self.bbox_tower(x.float()) for x in maps]
            distances = [F.relu(level.scale * self.bbox_pred(x)) for level, x in zip(self.scales, towers, strict=True)]
            return [self.agn_hm(x) for x in towers], distances


def level_locations(sizes: Sizes, strides: Sequence[int], *, device=None) -> Tensor:
    """(M, 2) x, y in px of the centre of each cell, (column + 1/2, row + 1/2) · stride, from sizes in cells."""
    levels = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        y, x = ((torch.arange(side, device=device) + 0.5) * stride for side in (height, width))
        levels.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=2).flatten(0, 1))
    return torch.cat(levels)


def flatten_maps(maps: list[Tensor]) -> Tensor:
    """Maps (B, C, H, W) of all levels as rows (N, C)."""
    return torch.cat([x.permute(0, 2, 3, 1).flatten(0, 2) for x in maps])


def centernet_targets(
    locations: Tensor, sizes: Sizes, strides: Sequence[int], boxes: list[Tensor], *, ranges: Sequence[Sequence[float]],
    delta: float, min_radius: float,
) -> Targets:  # fmt: skip
    """What the head learns from the boxes (n, 4) of each image, at ``locations`` (M, 2) of :func:`level_locations`.

    A box belongs to the levels whose range (low, high) in px, ends included, holds half of its diagonal. ``delta`` and
    ``min_radius`` (px) set the radius of a peak.
    """
    total, counts = len(boxes) * len(locations), [height * width for height, width in sizes]
    level = torch.arange(len(sizes)).repeat_interleave(torch.tensor(counts)).to(locations.device)
    rule = {"strides": locations.new_tensor(strides)[level], "ranges": locations.new_tensor(ranges)[level]}
    rule |= {"delta": delta, "min_radius": min_radius}
    parts = torch.arange(total, device=locations.device).split([len(boxes) * count for count in counts])
    rows = torch.cat([part.view(len(boxes), -1) for part in parts], dim=1)  # (B, M): where the batch has a location
    positives, distances, heat_map = [], locations.new_empty(total, 4), locations.new_empty(total)
    for row, of_image in zip(rows, boxes, strict=True):
        centres, distances[row], heat_map[row] = image_targets(locations, of_image, **rule)
        positives.append(row[centres])
    return Targets(torch.cat(positives), distances, heat_map)


def image_targets(
    locations: Tensor, boxes: Tensor, *, strides: Tensor, ranges: Tensor, delta: float, min_radius: float
) -> Targets:
    """Targets of one image with M locations, whose levels have ``strides`` (M,) and ``ranges`` (M, 2)."""
    if len(boxes) == 0:
        nothing = locations.new_full((len(locations), 4), -1.0)
        return Targets(nothing.new_zeros(0, dtype=torch.int64), nothing, nothing.new_zeros(len(locations)))
    lower, upper, strides = boxes[:, None, :2], boxes[:, None, 2:], strides[:, None]  # (n, 1, 2) twice, (M, 1)
    centres, sides = (lower + upper) / 2, upper - lower
    offsets = (locations - ((centres / strides).floor() + 0.5) * strides).abs()  # (n, M, 2) from the centre's cell
    is_centre = (offsets == 0).all(2)
    half_diagonals = sides.square().sum(2).sqrt() / 2  # (n, 1)
    belongs = (half_diagonals >= ranges[:, 0]) & (half_diagonals <= ranges[:, 1])  # (n, M)

    squares = (locations - centres).square().sum(2).masked_fill(is_centre, 0)
    weighted = squares / (2 * delta**2 * sides.prod(2)).clamp(min=min_radius**2)
    heat = (-weighted.amin(0)).exp()

    distances = torch.cat([locations - lower, upper - locations], dim=2)  # (n, M, 4)
    learns = belongs & (offsets <= strides).all(2) & (distances.amin(2) > 0)
    nearest, box = weighted.masked_fill(~learns, torch.inf).min(0)
    chosen = distances[box, torch.arange(len(box), device=box.device)] / strides
    chosen = chosen.masked_fill(nearest.isinf()[:, None], -1)
    return Targets((is_centre & belongs).nonzero()[:, 1], chosen, heat.masked_fill(heat < MIN_HEAT, 0))


def choose_proposals(
    locations: list[Tensor], distances: list[Tensor], probabilities: list[Tensor], *, min_probability: float,
    level_topk: int, topk: int, nms_threshold: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Proposals (P, 4) of one image and scores √p (P,), best first, from (m, 2), (m, 4) in px and p (m,) of each level.

    A level gives its best ``level_topk`` above ``min_probability``; their sides are at least 0.01 px. After NMS over
    all levels the best ``topk`` stay, and all that tie with the last of them.
    """
    boxes, scores = [], []
    for centres, sides, p in zip(locations, distances, probabilities, strict=True):
        (kept,) = (p > min_probability).nonzero(as_tuple=True)
        if torch.jit.is_tracing():  # a graph has no branch that depends on values
            kept = kept[p[kept].argsort(descending=True)[:level_topk]]
        elif len(kept) > level_topk:
            kept = kept[p[kept].topk(level_topk).indices]
        lower = centres[kept] - sides[kept, :2]
        boxes.append(torch.cat([lower, torch.maximum(centres[kept] + sides[kept, 2:], lower + MIN_SIDE)], dim=1))
        scores.append(p[kept].sqrt())
    boxes, scores = torch.cat(boxes), torch.cat(scores)
    kept = nms(boxes, scores, nms_threshold)
    kept = kept[scores[kept] >= scores[kept[:topk][-1:]]]
    return boxes[kept], scores[kept]
