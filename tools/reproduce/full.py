"""The paper's rows at full size: configs below configs/, what they start from, and the steps that make their files."""

from functools import partial

from experiments.full import Step
from experiments.rows import Row, tuned

BOXSUP, BARON_BOXSUP = Row("BoxSup_C4.yaml"), Row("BARON_BoxSup_C4.yaml")
VLDET_BOXSUP = Row("BoxSup_VLDet_C4_official.yaml")
LVIS_BOXSUP, LVIS_VLDET_BOXSUP = Row("lvis/BoxSup_C2.yaml"), Row("lvis/BoxSup_VLDet_C2.yaml")
DETIC, DETIC_CLIM, CAPTIONS, CAPTIONS_CLIM = (
    tuned(f"{name}.yaml", start=BOXSUP)
    for name in ("Detic_C4", "Detic_CLIM_C4", "Detic_C4_caption", "Detic_CLIM_C4_caption")
)
BARON, BARON_CLIM = (tuned(f"{name}.yaml", start=BARON_BOXSUP) for name in ("BARON_C4", "BARON_CLIM_C4"))
OVRCNN, OVRCNN_CLIM = (
    tuned(f"{name}_C4.yaml", start=Row(f"{name}_pretrain.yaml")) for name in ("OVRCNN", "OVRCNN_CLIM")
)
VLDET, VLDET_CLIM = (tuned(f"{name}.yaml", start=VLDET_BOXSUP) for name in ("VLDet_C4", "VLDet_CLIM_C4"))
ablation = partial(tuned, start=BOXSUP)
CAPTIONS20, CAPTIONS32, GRID2, GRID3, GRID4, PARTNERS_TEXT, PARTNERS_IMAGE = (
    ablation(f"ablations/{name}.yaml")
    for name in ("captions20", "captions32", "grid2", "grid3", "grid4", "partners_text", "partners_image")
)
LVIS_DETIC, LVIS_DETIC_CLIM = (tuned(f"lvis/{name}.yaml", start=LVIS_BOXSUP) for name in ("Detic_C2", "Detic_CLIM_C2"))
LVIS_VLDET, LVIS_VLDET_CLIM = (
    tuned(f"lvis/{name}.yaml", start=LVIS_VLDET_BOXSUP) for name in ("VLDet_C2", "VLDet_CLIM_C2")
)

CLIP_CLIM, REGION_CLIP = Row("CLIP_CLIM_ViTB16_COCO.yaml"), Row("CLIP_RegionCLIP_ViTB16_COCO.yaml")
# CLIP's own weights, evaluated after one step, of which nothing stays.
CLIP = Row(
    "CLIP_CLIM_ViTB16_COCO.yaml",
    ("SOLVER.EPOCHS", 0.0, "SOLVER.MAX_ITER", 1, "SOLVER.WARMUP_ITERS", 0, "SOLVER.WEIGHT_ENSEMBLE", 0.0),
)
CANVAS320, CANVAS640 = Row("ablations/clip_canvas320.yaml"), Row("ablations/clip_canvas640.yaml")
detector = partial(tuned, key="MODEL.IMAGE_ENCODER.PRETRAINED", file="clip.pt")
FVLM_CLIP = Row("FVLM_ViTB16_CLIP_COCO.yaml")
FVLM_CLIM = detector("FVLM_ViTB16_CLIM_COCO.yaml", start=CLIP_CLIM)
FVLM_REGION_CLIP = detector("FVLM_ViTB16_RegionCLIP_COCO.yaml", start=REGION_CLIP)
LVIS_FVLM, LVIS_FVLM_LARGE = Row("lvis/FVLM_ViTB16_CLIP_LVIS.yaml"), Row("lvis/FVLM_RN50x64_CLIP_LVIS.yaml")
LVIS_FVLM_CLIM, LVIS_FVLM_LARGE_CLIM = (
    detector(f"lvis/FVLM_{name}_CLIM_LVIS.yaml", start=Row(f"lvis/CLIP_CLIM_{name}_CC3M.yaml"))
    for name in ("ViTB16", "RN50x64")
)


def embeddings(makes: str, words: str, *reads: str) -> Step:
    """Class embeddings; the data set comes first among the words."""
    return Step(makes, f"tools/build_text_embeddings.py classes --dataset {words}", reads)


VITB16, RN50, RN50X64 = (f"--tower {name}-quickgelu" for name in ("ViT-B-16", "RN50", "RN50x64"))
PAIRS = "--dataset coco_caption_train_tags"
NOUNS, NOUN_EMBEDDINGS = "metadata/coco_nouns.json", "metadata/coco_nouns_vitb16.npy"
COCO_VLDET, CC3M_VLDET = "coco/VLDet/coco_nouns_4764", "cc3m/VLDet/googlecc_nouns_6250"
STEPS = (
    embeddings("metadata/coco_clip_hand_craft.npy", "coco"),
    embeddings("metadata/coco_clip_hand_craft_attn12.npy", "coco --features hidden"),
    embeddings("metadata/coco_openai_vitb16_hand_craft.npy", f"coco {VITB16}"),
    embeddings("metadata/coco_panoptic_clip_hand_craft_ViTB16.npy", f"coco_panoptic {VITB16}"),
    embeddings("metadata/coco_bert_words.npy", "coco --features words --tower bert-base-uncased", "bert-base-uncased"),
    embeddings("metadata/lvis_v1_clip_a+cname.npy", "lvis --prompt a"),
    embeddings("metadata/lvis_openai_vitb16_hand_craft.npy", f"lvis {VITB16}"),
    embeddings("metadata/lvis_openai_rn50x64_hand_craft.npy", f"lvis {RN50X64}"),
    embeddings("metadata/coco_panoptic_clip_hand_craft_RN50x64.npy", f"coco_panoptic {RN50X64}"),
    embeddings("coco/VLDet/coco_65_cls_emb.pth", f"coco_65 {RN50} --prompt imagenet"),
    embeddings("cc3m/VLDet/lvis_1203_cls_emb.pth", f"lvis {RN50} --prompt imagenet"),
    *(
        embeddings(f"{nouns}_emb.pth", f"{{root}}/{nouns}.txt {RN50} --prompt imagenet", f"{nouns}.txt")
        for nouns in (COCO_VLDET, CC3M_VLDET)
    ),
    embeddings(NOUN_EMBEDDINGS, f"{{root}}/{NOUNS} {VITB16}", NOUNS),
    Step(NOUNS, "tools/parse_nouns.py --captions coco_caption_train_tags"),
    Step("metadata/neighbours_text.npy", f"tools/build_neighbours.py {PAIRS} --by text"),
    Step("metadata/neighbours_image.npy", f"tools/build_neighbours.py {PAIRS} --by image"),
    Step(  # of the first seed, for all seeds: the data set coco_pseudo_regions is one file
        "coco/annotations/pseudo_regions.json",
        f"tools/pseudo_label.py {PAIRS} --config-file configs/BoxSup_C4.yaml --weights {{start}}"
        " --encoder configs/CLIP_CLIM_ViTB16_COCO.yaml"
        f" --nouns {{root}}/{NOUNS} --embeddings {{root}}/{NOUN_EMBEDDINGS}",
        reads=(NOUNS, NOUN_EMBEDDINGS, "coco/annotations/captions_train2017_tags_allcaps.json"),
        start=BOXSUP,
    ),
)
