"""Names by the rules of a source."""

from clim.checkpoints.keys import IMAGE_ENCODER, translate


def test_the_first_rule_that_matches_the_beginning_counts():
    rules = [(r"a\.(\d)", r"b.\1"), (r"a\.", "c."), ("d|dd", lambda match: match[0].upper())]
    assert [translate(name, rules) for name in ("a.1.w", "a.x", "dd.w", "x.a.1")] == ["b.1.w", "c.x", "Dd.w", None]


def test_an_image_encoder_is_cut_into_backbone_and_res5():
    names = {
        "backbone.stem.conv1.weight": "backbone.stem.conv1.weight",
        "backbone.res4.0.conv1.weight": "backbone.res4.0.conv1.weight",
        "backbone.res5.0.conv1.weight": "roi_heads.res5.0.conv1.weight",
        "emb_pred.bias": "roi_heads.box_predictor.emb_pred.bias",
        "stem.0.weight": "backbone.stem.0.weight",
        "blocks.0.w": "backbone.trunk.blocks.0.w",
        "blocks.10.w": "backbone.trunk.blocks.10.w",
        "blocks.11.w": "roi_heads.res5.blocks.0.w",
        "blocks.15.w": "roi_heads.res5.blocks.4.w",
        "projection.weight": "roi_heads.box_predictor.emb_pred.weight",
        "visual.conv1.weight": None,
    }
    assert {name: translate(f"image_encoder.{name}", IMAGE_ENCODER) for name in names} == names
