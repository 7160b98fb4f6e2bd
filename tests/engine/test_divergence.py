"""A training that diverges ends with the names of its losses and pictures."""

import pytest
import torch

from clim.engine.divergence import check_finite
from clim.errors import UserError


def test_a_gradient_that_is_no_number_stops_the_run():
    batch = {"detection": [{"image_id": 4}], "captions": [], "mosaics": []}
    losses = {"loss_cls": torch.tensor(1.0), "loss_tag": torch.tensor(2.0)}
    check_finite(losses, 3.0, batch, 7)
    with pytest.raises(UserError, match=r"Iteration 7: gradient norm = nan; .*\{'detection': \[4\]\}"):
        check_finite(losses, float("nan"), batch, 7)
    with pytest.raises(UserError, match=r"loss_cls = nan, loss_tag = inf;"):
        check_finite({"loss_cls": torch.tensor(torch.nan), "loss_tag": torch.tensor(torch.inf)}, 1.0, batch, 7)
