"""EfficientNet-Lite0 as an image encoder: the detector's blocks, with a projection."""

import pytest
import torch
from detectron2.structures import Boxes
from torchvision.ops import roi_align

from clim.errors import UserError
from clim.modeling.efficientnet import EfficientNetC4, folded_lite0
from clim.modeling.efficientnet_encoder import EfficientNetLite0


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return EfficientNetLite0(dim=10, unlocked_blocks=4).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def last_blocks(x):
    for block in folded_lite0()._blocks[11:]:
        x = block(x)
    return x


def test_the_map_is_the_detectors(encoder, images):
    with torch.no_grad():
        expected = EfficientNetC4(folded_lite0(), freeze_at=0)(images)["res4"]
        torch.testing.assert_close(encoder.features(images)["dense"], expected, rtol=1e-4, atol=1e-4)


def test_pictures_regions_and_cells_share_the_last_blocks_and_the_projection(encoder, images):
    boxes = [
        Boxes(torch.tensor([[0.0, 0, 50, 60]])),
        Boxes(torch.tensor([[10.0, 5, 90, 60], [0, 0, 96, 64]])),
    ]
    with torch.no_grad():
        features = encoder.features(images)
        whole = last_blocks(features["dense"])
        tensors = [b.tensor for b in boxes]
        pooled = roi_align(
            features["dense"], tensors, 7, spatial_scale=1 / 16, sampling_ratio=-1, aligned=True
        )
        close = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(
            encoder.embed_images(images), encoder.projection(whole.mean((2, 3))), **close
        )
        (regions,) = encoder.embed_stages(features, boxes)
        expected = encoder.projection(last_blocks(pooled).mean((2, 3)))
        torch.testing.assert_close(regions, expected, **close)
        cell = encoder.projection(whole[1, :, 0, 2])
        torch.testing.assert_close(encoder.dense(features)[1, :, 0, 2], cell / cell.norm(), **close)


@pytest.mark.parametrize("unlocked", [0, 4, 16])
def test_the_last_blocks_and_the_projection_learn(images, unlocked):
    encoder = EfficientNetLite0(dim=10, unlocked_blocks=unlocked).train()
    encoder.embed_images(images).sum().backward()
    touched = {n for n, p in encoder.named_parameters() if p.grad is not None}
    blocks = {int(n.split(".")[1]) for n in touched if n.startswith("blocks.")}
    assert blocks == set(range(16 - unlocked, 16))
    assert {n for n in touched if not n.startswith("blocks.")} == {"projection.weight", "projection.bias"}


def test_weights_of_a_trained_model_are_taken_and_others_refused(tmp_path):
    torch.manual_seed(3)
    trained = EfficientNetLite0(dim=12, unlocked_blocks=4)
    state = trained.state_dict()
    torch.save({"epoch": 0, "name": "mini", "state_dict": state}, tmp_path / "clip.pt")
    torch.save({"model": {f"image_encoder.{k}": v for k, v in state.items()}}, tmp_path / "model_final.pth")
    for name in ("clip.pt", "model_final.pth"):
        loaded = EfficientNetLite0(dim=12, unlocked_blocks=4, pretrained=str(tmp_path / name))
        assert all(torch.equal(v, state[k]) for k, v in loaded.state_dict().items())
    with pytest.raises(UserError, match=r"MODEL\.TEXT\.DIM 8 \(size mismatch for projection"):
        EfficientNetLite0(dim=8, unlocked_blocks=4, pretrained=str(tmp_path / "clip.pt"))
    with pytest.raises(UserError, match=r"nowhere\.pt does not exist"):
        EfficientNetLite0(dim=8, unlocked_blocks=4, pretrained=str(tmp_path / "nowhere.pt"))


def test_regions_v1_are_pooled_from_the_dense_map():
    torch.manual_seed(4)
    encoder = EfficientNetLite0(dim=6, unlocked_blocks=0, regions="v1").eval()
    features = encoder.features(torch.randn(2, 3, 128, 96))
    boxes = [
        Boxes(torch.tensor([[0.0, 0, 96, 128], [10, 20, 60, 90]])),
        Boxes(torch.tensor([[32.0, 32, 64, 64]])),
    ]
    (rows,) = encoder.embed_stages(features, boxes)
    dense = encoder.dense(features)
    torch.testing.assert_close(rows[0], dense[0].mean((1, 2)))  # the whole picture: all cells alike
    rois = torch.tensor([[0.0, 10, 20, 60, 90]])
    expected = roi_align(dense, rois, 1, spatial_scale=1 / 32, sampling_ratio=-1, aligned=True).flatten(1)
    torch.testing.assert_close(rows[1:2], expected)
    with pytest.raises(UserError, match=r'REGIONS is "v3"'):
        EfficientNetLite0(dim=6, unlocked_blocks=0, regions="v3")
