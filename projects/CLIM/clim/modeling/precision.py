"""Official Detic's mixed precision: the backbone alone in half precision, everything after it in float32."""

import torch
from torch import nn


def autocast_backbone(model: nn.Module) -> None:
    """Run ``model.forward`` outside autocast and ``model.backbone`` inside, if autocast is on at all.

    Works on the instance by wrapping two forwards, so that classes and state-dict keys stay as they are.
    """
    backbone_forward, model_forward = model.backbone.forward, model.forward
    enabled = [False]

    def backbone(x):
        if not enabled[0]:
            return backbone_forward(x)
        with torch.autocast(x.device.type):
            features = backbone_forward(x)
        return {name: f.float() for name, f in features.items()}

    def forward(batch):
        enabled[0] = torch.is_autocast_enabled(model.device.type)
        with torch.autocast(model.device.type, enabled=False):
            return model_forward(batch)

    model.backbone.forward, model.forward = backbone, forward
