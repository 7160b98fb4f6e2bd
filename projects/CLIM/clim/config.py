"""Every config key that CLIM adds to Detectron2's, with its default, unit and source."""

from detectron2.config import CfgNode as CN


def add_clim_config(cfg: CN) -> None:
    """Add CLIM's keys to Detectron2's defaults, in place. Call before ``merge_from_file``."""
    import clim.data.builtin  # noqa: F401  registers the data sets
    import clim.modeling  # noqa: F401  registers meta-architectures, heads, backbones and methods

    # ---- Weights --------------------------------------------------------------------------------
    # True: also load weight files that hold more than tensors and arrays; that can run code from them.
    cfg.MODEL.TRUST_WEIGHTS = False

    # ---- Open-vocabulary classifier -------------------------------------------------------------
    cfg.MODEL.OPEN_VOCAB = ov = CN()
    ov.TEMPERATURE = 25.0  # scale of the cosine; official Detic 50, CLIM release 25
    ov.TRAIN_BIAS = []  # [-20.0]: learnable bias added to the logits in training only (CLIM); []: none (Detic)
    ov.BASE_CLASSES = (
        ""  # classes with boxes, the others are masked: "ovcoco", "mini", cat_info json; "": all
    )
    ov.FP32_HEADS = False  # True: only the backbone runs in half precision (official Detic)

    cfg.MODEL.VOCABULARY = vocabulary = CN()
    # Names win over embeddings, and both over what a checkpoint holds. "": the checkpoint's, if it has one.
    vocabulary.NAMES = []  # list of class names, read by the text tower
    vocabulary.PROMPT = "ensemble"  # for NAMES: "a" ("a " + name), "ensemble" (63 templates) or "name"
    vocabulary.EMBEDDINGS = ""  # .npy (NUM_CLASSES, D), looked up under DETECTRON2_DATASETS

    # ---- Text tower (frozen) --------------------------------------------------------------------
    cfg.MODEL.TEXT = text = CN()
    text.NAME = "ViT-B-32-quickgelu"  # an open_clip model, "minilm", or a folder with a BERT
    text.PRETRAINED = "openai"  # open_clip tag, file or hub name; "": random weights, for tests only
    text.DIM = 512  # width of its embeddings, and of the classifier's projection
    text.CACHE = ""  # folder of cached caption embeddings; "": the tower runs in every step

    # ---- Method: what is learnt from image-text pairs (clim/methods) ----------------------------
    cfg.MODEL.METHOD = method = CN()
    method.NAME = ""  # "Detic"; "": boxes only
    method.DETIC = detic = CN()
    detic.TEMPERATURE = 25.0
    detic.BIAS = [-20.0]  # start of the two learnable biases, one for captions and one for tags; []: none
    detic.CAPTION_WEIGHT = 0.1  # 0: no caption loss
    detic.CAPTION_BASE_REGIONS = (
        4  # loss x (regions / this), CLIM release; 0: plain mean over regions (Detic)
    )
    detic.CAPTION_NEGATIVES = "queue"  # "queue": batch + memory of this process; "gather": all processes
    detic.NEGATIVE_WEIGHT = 0.125
    detic.QUEUE_LENGTH = 256  # caption embeddings, per process
    detic.TAG_WEIGHT = 0.1 / 3  # 0: no max-size tag loss
    detic.TAG_TARGET = "multi_hot"  # or "per_tag": one-hot for each tag + background column (Detic)
    detic.TAG_MIN_IOF = 0.3  # a proposal belongs to the tile that holds more than this part of it
    detic.TAG_TOPK = 128  # proposals of a tile, by score, among which the largest is taken

    # ---- Input ----------------------------------------------------------------------------------
    cfg.INPUT.CAPTION = caption = CN()
    caption.SHORT_SIDE = 400  # px
    caption.LONG_SIDE = 667  # px, at most
    caption.FLIP = 0.5  # probability of a horizontal flip
    cfg.INPUT.MOSAIC = mosaic = CN()
    mosaic.GRIDS = [2, 3, 4]  # n of the n x n tiles, drawn uniformly for every canvas
    mosaic.SIZE = 800  # px, side of the canvas
    mosaic.FLIP = 0.5
    mosaic.FILLING = "fit"  # "fit": keep ratio, pad, pack inwards (release); "crop": fill the cell (paper)
    mosaic.CROP_SCALE = [0.9, 1.0]  # for "crop": part of the picture's area
    mosaic.PAD_VALUE = 114  # grey of the gaps
    mosaic.GROUPS = 4  # composition groups a canvas and loss (CLIM release); 0: none (paper)
    mosaic.PARTNERS = "random"  # or an index made by tools/build_neighbours.py (Table 2c)

    # ---- Data: sizes are per GPU ----------------------------------------------------------------
    cfg.DATASETS.CAPTIONS = ()  # registered sets of image-text pairs
    cfg.DATALOADER.DETECTION_PER_GPU = 2
    cfg.DATALOADER.CAPTIONS_PER_GPU = 0
    cfg.DATALOADER.MOSAICS_PER_GPU = 0
    # (): every source in every iteration. (1, 1): official Detic, an iteration holds detection *or* pairs,
    # drawn with these weights, the same on every process.
    cfg.DATALOADER.ALTERNATE = ()

    # ---- Solver ---------------------------------------------------------------------------------
    cfg.SOLVER.OPTIMIZER = "SGD"  # or "ADAMW"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0  # for "ADAMW": learning rate of backbone and res5, relative
    # Detectron2's CLIP_GRADIENTS "norm" clips each parameter alone; this is the norm of all together.
    cfg.SOLVER.CLIP_GLOBAL_NORM = 0.0  # 0: off; CLIM 35, OV-RCNN 5
    cfg.SOLVER.KEEP_CHECKPOINTS = 3  # newest ones kept on disk, beside model_final
    cfg.SOLVER.LOG_PERIOD = 20  # iterations between two lines of the log

    # ---- Evaluation -----------------------------------------------------------------------------
    cfg.TEST.PROTOCOL = "generalized"  # Detic: one run, 80 predicted and 65 scored; "two_run": CLIM; "both"
