"""Every config key that CLIM adds to Detectron2's, with its default, unit and source."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def add_clim_config(cfg: "CfgNode") -> None:
    """Add CLIM's keys to Detectron2's defaults, in place. Call before ``merge_from_file``."""
    from detectron2.config import CfgNode as CN  # Detectron2 imports torch, which takes seconds

    import clim.data.builtin  # noqa: F401  registers the data sets
    import clim.modeling  # noqa: F401  registers meta-architectures, heads, backbones and methods

    # ---- Weights --------------------------------------------------------------------------------
    # True: also load weight files that hold more than tensors and arrays; that can run code from them.
    cfg.MODEL.TRUST_WEIGHTS = False

    # ---- Open-vocabulary classifier -------------------------------------------------------------
    cfg.MODEL.OPEN_VOCAB = ov = CN()
    ov.TEMPERATURE = 25.0  # scale of the cosine; official Detic 50, CLIM release 25
    ov.TRAIN_BIAS = []  # [-20.0]: learnable bias added to the logits in training only (CLIM); []: none (Detic)
    # "cosine": linear · text embedding (Detic). "pseudo_words": the text tower reads a region (baron §3), and
    # MODEL.VOCABULARY holds hidden features of class names (tools/build_text_embeddings.py --features hidden).
    ov.CLASSIFIER = "cosine"
    ov.WORDS = 4  # pseudo words of a region
    ov.WORD_DROPOUT = 0.5  # probability that training removes a pseudo word from what the classifier reads
    # False: the background of OpenVocabOutputLayers is a learned direction with a column in the loss, not zeros.
    ov.ZERO_BACKGROUND = True
    # Classes with boxes, the others are masked: "ovcoco", a data set with base classes, a cat_info json; "": all.
    ov.BASE_CLASSES = ""
    ov.FP32_HEADS = False  # True: only the backbone runs in half precision (official Detic)

    cfg.MODEL.VOCABULARY = vocabulary = CN()
    # Names win over embeddings, and both over what a checkpoint holds. "": the checkpoint's, if it has one.
    vocabulary.NAMES = []  # list of class names, read by the text tower
    vocabulary.PROMPT = "ensemble"  # for NAMES: "a" ("a " + name), "ensemble" (63 templates) or "name"
    vocabulary.EMBEDDINGS = ""  # .npy (NUM_CLASSES, D), looked up under DETECTRON2_DATASETS

    # What classifies and refines regions of a C4 head: "OpenVocabOutputLayers" or "OVRCNNOutputLayers".
    cfg.MODEL.ROI_BOX_HEAD.PREDICTOR = "OpenVocabOutputLayers"
    cfg.MODEL.OVRCNN = ovrcnn = CN()  # OVRCNNOutputLayers (ovrcnn §2, §6)
    ovrcnn.BACKGROUND_WEIGHT = 0.2  # of background regions in the classification loss
    # COCO's classes in the softmax at test: "ovcoco", the 65 that are scored (generalized, the published figure),
    # "ovcoco_base", "ovcoco_novel" (base-only and target-only figures); "": all configured.
    ovrcnn.TEST_CLASSES = ""

    # ---- Text tower (frozen) --------------------------------------------------------------------
    cfg.MODEL.TEXT = text = CN()
    text.NAME = "ViT-B-32-quickgelu"  # an open_clip model or a json of one, "minilm", or a folder with a BERT
    text.PRETRAINED = "openai"  # open_clip tag, file or hub name; "": random weights, for tests only
    text.DIM = 512  # width of its embeddings, and of the classifier's projection
    text.WORD_DIM = 512  # width of its word embeddings and of its last layer, for pseudo words
    text.CACHE = ""  # folder of cached caption embeddings; "": the tower runs in every step

    # ---- Method: what is learnt from image-text pairs (clim/methods) ----------------------------
    cfg.MODEL.METHOD = method = CN()
    method.NAME = ""  # "Detic", "Baron", "Grounding"; "": boxes only
    method.DETIC = detic = CN()
    detic.TEMPERATURE = 25.0
    detic.BIAS = [-20.0]  # start of the two learnable biases, one for captions and one for tags; []: none
    detic.CAPTION_WEIGHT = 0.1  # 0: no caption loss
    # The loss is multiplied by regions / this (CLIM release); 0: plain mean over regions (Detic).
    detic.CAPTION_BASE_REGIONS = 4
    detic.CAPTION_NEGATIVES = "queue"  # "queue": batch + memory of this process; "gather": all processes
    detic.NEGATIVE_WEIGHT = 0.125
    detic.QUEUE_LENGTH = 256  # caption embeddings, per process
    detic.TAG_WEIGHT = 0.1 / 3  # 0: no max-size tag loss
    detic.TAG_TARGET = "multi_hot"  # or "per_tag": one-hot for each tag + background column (Detic)
    detic.TAG_MIN_IOF = 0.3  # a proposal belongs to the tile that holds more than this part of it
    detic.TAG_TOPK = 128  # proposals of a tile, by score, among which the largest is taken
    detic.GROUPS = 4  # composition groups a canvas and loss (CLIM release); 0: none (paper)
    cfg.register_renamed_key("INPUT.MOSAIC.GROUPS", "MODEL.METHOD.DETIC.GROUPS")

    # BARON's caption branch: the proposals of a picture or tile are one bag, read like a sentence (baron §5). The
    # part for tiles is unpublished: what tells tiles apart is Detic's, all else happens inside the tile (baron §7).
    method.BARON = baron = CN()
    baron.MIN_IOF = 0.3  # a proposal belongs to the tile that holds more than this part of it (inferred)
    baron.TOPK = 128  # proposals of a tile, by score, that are looked at
    baron.RATIO = [0.25, 4.0]  # width / height of a proposal, between these
    baron.MIN_AREA = 0.01  # part of the tile's area that a proposal is larger than
    baron.MIN_OBJECTNESS = 0.85  # probability; none above it, or of good shape: the best proposal alone
    baron.NMS = 0.2  # IoU of proposals of one bag
    baron.PROPOSALS = 10  # of a bag at most, drawn uniformly; the tile's own box comes on top
    baron.ORDERS = 4  # different random orders in which a bag is read
    baron.WORD_DROPOUT = 0.5  # probability that a word of a bag is removed, drawn for each order
    baron.FREQUENCIES = 128  # sines and cosines of a box coordinate
    baron.FREQUENCY_BASE = 1.2  # ratio of neighbouring frequencies, which are centred at one wave a tile
    baron.TEMPERATURE = 30.0
    baron.QUEUE_LENGTH = 1024  # bags, and as many captions, per process
    baron.WEIGHT = 10.0  # of each source's loss (inferred for mosaics)

    # Image-text contrast of whole pictures and tiles (CLIM paper §3.3, clip_fvlm §2).
    method.CLIP = clip = CN()
    clip.SCALE = 100.0  # start of the learned factor of the cosines: 1 / 0.01, where OpenAI's training ended
    clip.MAX_SCALE = 100.0
    # OV-RCNN's pre-training (ovrcnn §1, §3); official values but for CLIM's, which are unpublished and inferred.
    method.GROUNDING = grounding = CN()
    # Caption against tile: "aligned_local", words choose locations and locations choose words (official); "mean"
    # over all pairs of word and location (CLIM's paper, with "cosine" and TEMPERATURE .01).
    grounding.GLOBAL_METRIC = "aligned_local"
    grounding.LOCAL_METRIC = "dot"  # word against location; or "cosine"
    grounding.TEMPERATURE = 10.0  # divides it; for "cosine" .01
    # Tiles contrasted with each other, a GPU's batch officially; 0: all of a GPU.
    grounding.CONTRAST_GROUP = 8
    # Plain pictures and mosaics in one contrast; False: each has its losses (as Detic's).
    grounding.JOINT = True
    grounding.MAX_CELLS = 100  # locations of a tile, drawn at random in training; 0: all
    grounding.LAYERS = 6  # of the multimodal transformer, for plain pictures; 0: no matching, no hidden words
    grounding.HEADS = 8
    grounding.DROPOUT = 0.1  # of the transformer
    # Of the transformer's attention. False: padding is read, and all else e times as much (official).
    grounding.MASK_PADDING = False
    grounding.MLM_PROBABILITY = 0.15  # of a word to be predicted
    # Part of the words to be predicted that is hidden, from grounding too; the others stay as they are.
    grounding.MLM_HIDDEN = 0.9
    grounding.TEXT_DROPOUT = True  # the frozen BERT reads with its own dropout in training
    method.REGION_CLIP = region_clip = CN()  # comparator: boxes with pseudo-labels (clip_fvlm §5)
    region_clip.SCALE = 100.0  # factor of the cosines, not learned
    region_clip.CLASSES = 100  # a loss looks at this many: those present, and random ones
    region_clip.EMBEDDINGS = ""  # .npy (nouns, D), unit rows, looked up under DETECTRON2_DATASETS

    # ---- Image encoder of an image-text model (ImageTextModel, GridTextModel, FVLM) ---------------
    cfg.MODEL.IMAGE_ENCODER = encoder = CN()
    encoder.NAME = "ClipViT"  # or "ClipResNet", "EfficientNetLite0", "ResNetGrid" (OV-RCNN)
    encoder.ARCHITECTURE = "ViT-B-16-quickgelu"  # an open_clip model, or a json in the format of its configs
    # Tag of open_clip, hub name or file (OpenAI, open_clip, CLIM); "": random weights.
    encoder.PRETRAINED = "openai"
    # Last blocks that learn, of a ViT's 12; ClipResNet: 1, layer4 and q, k, positions.
    encoder.UNLOCKED_BLOCKS = 6
    # How ClipResNet and EfficientNetLite0 embed boxes: "v2", RoIAlign and then the rest of the network with its
    # pooling; "v1", RoIAlign of the dense map, which is the only way of a ViT.
    encoder.REGIONS = "v2"

    # ---- F-VLM detector (clip_fvlm §4) ----------------------------------------------------------
    cfg.MODEL.FVLM = fvlm = CN()
    fvlm.ALPHA = 0.1  # weight of the VLM score, base classes and background
    fvlm.BETA = 0.8  # the same, classes without boxes
    fvlm.TEMPERATURE = 75.0  # of the VLM score
    fvlm.DETECTOR_TEMPERATURE = 50.0  # start of the learned one of the detection score
    fvlm.BACKGROUND_WEIGHT = 0.6  # of background regions in the classification loss
    # How ViT maps get strides 4 and 8: "deconvolution", learned (release), or "interpolation" (paper).
    fvlm.UPSCALING = "deconvolution"
    # Colour of what pads a picture to a square, in INPUT.FORMAT's order. Here RGB: the release gives the RGB
    # mean to BGR pixels, so that padding is not zero after normalisation.
    fvlm.PAD_PIXEL = [104.09373615, 116.7460125, 122.7709383]

    # ---- Input ----------------------------------------------------------------------------------
    cfg.INPUT.CAPTION = caption = CN()
    caption.SHORT_SIDE = 400  # px
    caption.LONG_SIDE = 667  # px, at most
    caption.FLIP = 0.5  # probability of a horizontal flip
    # In px; above 0: a random crop, resized to this square (CLIP), in place of the whole picture.
    caption.CROP = 0
    caption.CROP_SCALE = [0.9, 1.0]  # part of the picture's area
    caption.CROP_RATIO = [3 / 4, 4 / 3]  # width / height
    cfg.INPUT.MOSAIC = mosaic = CN()
    mosaic.GRIDS = [2, 3, 4]  # n of the n x n tiles, drawn uniformly for every canvas
    mosaic.SIZE = 800  # px, side of the canvas
    mosaic.FLIP = 0.5
    mosaic.FILLING = "fit"  # "fit": keep ratio, pad, pack inwards (release); "crop": fill the cell (paper)
    mosaic.CROP_SCALE = [0.9, 1.0]  # for "crop": part of the picture's area
    mosaic.CROP_RATIO = [3 / 4, 4 / 3]  # width / height of the crop, which is resized to the cell
    mosaic.PAD_VALUE = 114  # grey of the gaps
    # "device": the model lays every 4 + 9 + 16 single crops of a batch on three canvases (CLIP release).
    mosaic.COMPOSE = "loader"
    mosaic.PARTNERS = "random"  # or an index made by tools/build_neighbours.py (Table 2c)
    # Control: True gives every tile of a mosaic the texts of another tile of its canvas, drawn at random.
    mosaic.PERMUTE_TEXTS = False
    cfg.INPUT.REGIONS = regions = CN()  # pictures with boxes to be classified
    regions.SIZE = 1024  # px, longest side; padded to a square
    # In px, cells that masks of regions are made of: the stride of the encoder's dense map.
    regions.MASK_STRIDE = 16
    regions.CROP_SIZE = 224  # px, side of a region's crop: what the encoder was trained on
    regions.MIN_AREA = 64  # px² of the original picture; smaller and larger boxes are left out
    regions.MAX_AREA = 1024 * 1024
    regions.MAX_BOXES = 100  # annotations of a picture, in their order, of which sizes are then looked at
    regions.CROWDS = True  # crowds are regions like others (release); False: they are left out beforehand

    cfg.INPUT.LSJ = lsj = CN()  # large-scale jittering of detection pictures in training
    lsj.SIZE = 0  # px, side of the square that FVLM pads to at test too; 0: Detectron2's resizing
    lsj.SCALE = [0.1, 2.0]  # a picture is scaled to fit a square of a random part of SIZE

    # ---- Data: sizes are per GPU ----------------------------------------------------------------
    cfg.DATASETS.CAPTIONS = ()  # registered sets of image-text pairs
    cfg.DATASETS.REGIONS = ()  # registered sets of pictures with pseudo-labelled boxes
    # Your own sets: [[name, "captions" | "boxes" | "regions", json, image folder], …], see datasets/README.md.
    cfg.DATASETS.OWN = []
    cfg.DATALOADER.DETECTION_PER_GPU = 2
    cfg.DATALOADER.CAPTIONS_PER_GPU = 0
    cfg.DATALOADER.MOSAICS_PER_GPU = 0
    cfg.DATALOADER.REGIONS_PER_GPU = 0
    # (): every source in every iteration. (1, 1): official Detic, an iteration holds detection *or* pairs,
    # drawn with these weights, the same on every process.
    cfg.DATALOADER.ALTERNATE = ()

    # ---- Solver ---------------------------------------------------------------------------------
    cfg.SOLVER.EPOCHS = 0.0  # above 0: passes over the pairs (or boxes' pictures); sets MAX_ITER
    cfg.SOLVER.OPTIMIZER = "SGD"  # or "ADAMW"
    cfg.SOLVER.BETAS = [0.9, 0.999]  # of "ADAMW"; CLIP's ViTs 0.9, 0.98
    cfg.SOLVER.EPS = 1e-8  # of "ADAMW"; CLIP's ViTs 1e-6
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0  # for "ADAMW": learning rate of backbone and res5, relative
    # Detectron2's CLIP_GRADIENTS "norm" clips each parameter alone; this is the norm of all together.
    cfg.SOLVER.CLIP_GLOBAL_NORM = 0.0  # 0: off; CLIM 35, OV-RCNN 5
    # Part of the trained weights in what is saved as clip.pt and evaluated, the rest being the start's (CLIM: 0.7).
    cfg.SOLVER.WEIGHT_ENSEMBLE = 1.0
    cfg.SOLVER.KEEP_CHECKPOINTS = 3  # newest ones kept on disk, beside model_final
    cfg.SOLVER.LOG_PERIOD = 20  # iterations between two lines of the log

    # ---- Evaluation -----------------------------------------------------------------------------
    cfg.TEST.PROTOCOL = "generalized"  # Detic: one run, 80 predicted and 65 scored; "two_run": CLIM; "both"
    # How regions are classified, one or more of: by "boxes" or "masks" on the picture, by "crops" of it.
    cfg.TEST.REGIONS = ["boxes"]
