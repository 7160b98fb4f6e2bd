"""AdamW: weight decay spares biases, norms and factors, whatever Detectron2 calls them."""

import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from clim.config import add_clim_config
from clim.engine.optimizer import build_optimizer


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm(8)
        self.logit_scale = nn.Parameter(torch.zeros(()))


@pytest.mark.parametrize("bias_decay", [0.0, None])
def test_weight_decay_of_every_parameter(bias_decay):
    cfg = get_cfg()
    add_clim_config(cfg)
    cfg.merge_from_list(["SOLVER.OPTIMIZER", "ADAMW", "SOLVER.WEIGHT_DECAY", 0.1])
    cfg.SOLVER.WEIGHT_DECAY_BIAS = bias_decay
    net = Net()
    decay = {id(p): g["weight_decay"] for g in build_optimizer(cfg, net).param_groups for p in g["params"]}
    found = {name: decay[id(p)] for name, p in net.named_parameters()}
    of_bias = 0.1 if bias_decay is None else bias_decay
    assert found == {
        "attn.in_proj_weight": 0.1, "attn.in_proj_bias": of_bias, "attn.out_proj.weight": 0.1,
        "attn.out_proj.bias": of_bias, "norm.weight": 0.0, "norm.bias": 0.0 if bias_decay is None else of_bias,
        "logit_scale": 0.0,
    }  # fmt: skip
