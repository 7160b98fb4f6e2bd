"""Every config key that CLIM adds to Detectron2's, with its default, unit and source."""


def add_clim_config(cfg) -> None:
    """Add CLIM's keys to Detectron2's defaults, in place. Call before ``merge_from_file``."""
    import clim.data.datasets  # noqa: F401  registers the data sets
    import clim.modeling  # noqa: F401  registers meta-architectures, heads, backbones and methods

    node = type(cfg)
    _add_classifier(cfg, node)
    cfg.MODEL.METHOD = method = node()
    method.NAME = ""  # "Detic", "OfficialDetic", "Baron", "VLDet", "Grounding", "ClipContrast", "RegionClip"; "": boxes
    _add_detector_methods(method, node)
    cfg.register_renamed_key("INPUT.MOSAIC.GROUPS", "MODEL.METHOD.DETIC.GROUPS")
    _add_encoders(cfg, node)
    _add_centernet2(cfg, node)
    _add_input(cfg, node)
    _add_training(cfg, node)


def _add_classifier(cfg, node) -> None:
    """Weights, the classifier that compares with texts, its vocabulary, the text tower."""
    cfg.MODEL.TRUST_WEIGHTS = False  # True: also load files of more than tensors and arrays, which can run code
    cfg.MODEL.COMPILE = False  # True: torch.compile translates the backbone or image encoder, for training
    cfg.MODEL.CHANNELS_LAST = False  # True: a training keeps a pixel's channels side by side in memory

    cfg.MODEL.OPEN_VOCAB = ov = node()
    ov.TEMPERATURE = 25.0  # scale of the cosine; official Detic 50, CLIM release 25
    ov.TRAIN_BIAS = []  # [-20.0]: start of a learnable bias on the logits, in training only (CLIM); []: none (Detic)
    # "cosine": linear · text embedding (Detic). "pseudo_words": the text tower reads a region (baron §3);
    # MODEL.VOCABULARY then holds hidden features of class names (tools/build_text_embeddings.py --features hidden).
    ov.CLASSIFIER = "cosine"
    ov.WORDS = 4  # pseudo words of a region
    ov.WORD_DROPOUT = 0.5  # probability that training removes a pseudo word before the classifier reads it
    ov.ZERO_BACKGROUND = True  # True: the background's embedding is zeros; False: learned, with a column in the loss
    # Classes with boxes; the loss masks the others. "ovcoco", a data set with base classes, a cat_info json; "": all.
    ov.BASE_CLASSES = ""
    ov.FP32_HEADS = False  # True: only the backbone runs in half precision (official Detic)

    cfg.MODEL.VOCABULARY = vocabulary = node()
    # The first one that is set counts: names, embeddings, the checkpoint's vocabulary.
    vocabulary.NAMES = []  # list of class names, read by the text tower
    vocabulary.PROMPT = "ensemble"  # for NAMES: "a" ("a " + name), "ensemble" (63), "imagenet" (81), "name"
    vocabulary.STORED = []  # names of the classes that the checkpoint holds; it says them itself
    vocabulary.EMBEDDINGS = ""  # .npy (NUM_CLASSES, D); absolute, or below the data root

    cfg.MODEL.ROI_BOX_HEAD.PREDICTOR = "OpenVocabOutputLayers"  # of a C4 head; or "OVRCNNOutputLayers"
    cfg.MODEL.OVRCNN = ovrcnn = node()  # OVRCNNOutputLayers (ovrcnn §2, §6)
    ovrcnn.BACKGROUND_WEIGHT = 0.2  # weight of background regions in the classification loss
    # Classes of COCO in the softmax at test. "ovcoco": the 65 that are scored (generalized, the published figure);
    # "ovcoco_base", "ovcoco_novel": base-only and target-only figures; "": all classes of the vocabulary.
    ovrcnn.TEST_CLASSES = ""

    cfg.MODEL.TEXT = text = node()  # the frozen text tower
    text.NAME = "ViT-B-32-quickgelu"  # an open_clip model or a json of one, "minilm", or a folder with a BERT
    text.PRETRAINED = "openai"  # tag of open_clip, file or hub name; "": random weights, for tests only
    text.DIM = 512  # width of its embeddings, and of the classifier's projection
    text.WORD_DIM = 512  # width of its word embeddings and its last layer, for pseudo words
    text.CACHE = ""  # folder of cached caption embeddings; "": the tower reads captions in every step


def _add_detector_methods(method, node) -> None:
    """Methods of clim/methods that learn from proposals of a detector."""
    method.DETIC = detic = node()
    detic.TEMPERATURE = 25.0
    detic.BIAS = [-20.0]  # start of two learnable biases, one for captions and one for tags; []: none
    detic.CAPTION_WEIGHT = 0.1  # 0: no caption loss
    detic.CAPTION_BASE_REGIONS = 4  # factor of the caption loss: regions / this number (CLIM release); 0: 1 (Detic)
    detic.CAPTION_NEGATIVES = "queue"  # "queue": batch and queue of this process; "gather": batches of all processes
    detic.NEGATIVE_WEIGHT = 0.125  # of a caption that does not belong to the region
    detic.QUEUE_LENGTH = 256  # caption embeddings, per process
    detic.TAG_WEIGHT = 0.1 / 3  # 0: no max-size tag loss
    detic.TAG_TARGET = "multi_hot"  # or "per_tag": one-hot for each tag, with the background column (Detic)
    detic.TAG_MIN_IOF = 0.3  # a proposal belongs to the tile that contains more than this part of it
    detic.TAG_TOPK = 128  # proposals of a tile, by score, among which the largest is taken
    detic.GROUPS = 4  # composition groups a canvas and loss (CLIM release); 0: none (paper)

    # VLDet: nouns of captions are matched with proposals (vldet §4). All values but those of tiles are official.
    method.VLDET = vldet = node()
    vldet.EMBEDDINGS = ""  # .npy or .pth (nouns, D); absolute, or below the data root. Tags of pairs are its rows.
    vldet.TEMPERATURE = 50.0
    vldet.CAPTION_WEIGHT = 0.1  # 0: no caption loss
    vldet.NOUN_WEIGHT = 0.01  # 0: no noun loss
    # "contrastive": a matched proposal against its noun and the nouns of other images (official). "bce": all proposals
    # against all nouns. "sinkhorn": soft matching with a background, then as "contrastive".
    vldet.NOUN_LOSS = "contrastive"
    vldet.PROPOSALS = 32  # of an image, by score
    vldet.TILE_PROPOSALS = 8  # of a tile of a mosaic, by score
    vldet.TILE_MIN_IOF = 0.3  # a proposal belongs to the tile that contains more than this part of it
    # The box of a tile or image in later stages of a cascade. True: it stays exact (CLIM). False: regressed (official).
    vldet.EXACT_BOX = True

    # BARON's caption branch: the proposals of an image or tile are one bag, which the text tower reads like a sentence
    # (baron §5). There is no published code for tiles: we assign proposals to tiles as Detic does it (baron §7).
    method.BARON = baron = node()
    baron.MIN_IOF = 0.3  # a proposal belongs to the tile that holds more than this part of it (inferred)
    baron.TOPK = 128  # proposals of a tile, by score, that may enter its bag
    baron.RATIO = [0.25, 4.0]  # lowest and highest width / height of a proposal
    baron.MIN_AREA = 0.01  # a proposal is larger than this part of its tile's area
    baron.MIN_OBJECTNESS = 0.85  # probability; if no proposal passes this and the rules above, the best one counts
    baron.NMS = 0.2  # highest IoU of two proposals of one bag
    baron.PROPOSALS = 10  # highest number of proposals in a bag, drawn uniformly; the tile's own box is added
    baron.ORDERS = 4  # random orders in which a bag is read
    baron.WORD_DROPOUT = 0.5  # probability that a word of a bag is removed, drawn again for each order
    baron.FREQUENCIES = 128  # sines and cosines of a box coordinate
    baron.FREQUENCY_BASE = 1.2  # ratio of neighbouring frequencies; the middle one is one wave a tile
    baron.TEMPERATURE = 30.0  # factor of the cosines
    baron.QUEUE_LENGTH = 1024  # bags and captions, 1024 of each, per process
    baron.WEIGHT = 10.0  # factor of each source's loss (inferred for mosaics)


def _add_encoders(cfg, node) -> None:
    """Methods of clim/methods that train an image encoder; the encoders; FVLM, which detects with a frozen one."""
    method = cfg.MODEL.METHOD
    # Image-text contrast of whole images and tiles (CLIM paper §3.3, clip_fvlm §2).
    method.CLIP = clip = node()
    clip.SCALE = 100.0  # start of the learned factor of the cosines: 1 / 0.01, where OpenAI's training ended
    clip.MAX_SCALE = 100.0
    # OV-RCNN's pre-training (ovrcnn §1, §3). Values are official; those for mosaics are ours.
    method.GROUNDING = grounding = node()
    # Score of a caption and a tile. "aligned_local": each word weights the locations of the feature map, and each
    # location the words (official). "mean": over all pairs of both (CLIM's paper, with "cosine" and TEMPERATURE .01).
    grounding.GLOBAL_METRIC = "aligned_local"
    grounding.LOCAL_METRIC = "dot"  # score of a word and a location; or "cosine"
    grounding.TEMPERATURE = 10.0  # divides that score; .01 for "cosine"
    grounding.CONTRAST_GROUP = 8  # number of tiles in one contrast (official: the 8 images of a GPU); 0: all of a GPU
    grounding.JOINT = True  # one contrast for plain images and mosaics; False: one for each source, as in Detic
    grounding.MAX_CELLS = 100  # highest number of locations of a tile, drawn at random in training; 0: all
    grounding.LAYERS = 6  # of the multimodal transformer, which reads plain images; 0: no matching, no hidden words
    grounding.HEADS = 8
    grounding.DROPOUT = 0.1  # of the transformer
    grounding.MASK_PADDING = False  # True: padding is ignored; False: it has 1/e of others' weight (official)
    grounding.MLM_PROBABILITY = 0.15  # that the transformer has to predict a word
    grounding.MLM_HIDDEN = 0.9  # part of these words that is hidden, also from the grounding losses
    grounding.TEXT_DROPOUT = True  # the frozen BERT uses its own dropout in training
    method.REGION_CLIP = region_clip = node()  # comparator: boxes with pseudo-labels (clip_fvlm §5)
    region_clip.SCALE = 100.0  # factor of the cosines, not learned
    region_clip.CLASSES = 100  # nouns in one loss: those of the batch, and random ones
    region_clip.EMBEDDINGS = ""  # .npy (nouns, D), unit rows; absolute, or below the data root

    cfg.MODEL.IMAGE_ENCODER = encoder = node()
    encoder.NAME = "ClipViT"  # or "ClipResNet", "EfficientNetLite0", "ResNetGrid" (OV-RCNN)
    encoder.ARCHITECTURE = "ViT-B-16-quickgelu"  # an open_clip model, or a json in the format of its configs
    encoder.PRETRAINED = "openai"  # tag of open_clip, hub name or file (OpenAI, open_clip, CLIM); "": random weights
    encoder.UNLOCKED_BLOCKS = 6  # last ones that learn; ClipResNet has 1: layer4, the pool's queries, keys, positions
    # How ClipResNet and EfficientNetLite0 embed boxes. "v2": RoIAlign, then the rest of the network with its pooling.
    # "v1": RoIAlign of the dense map; a ViT always does this.
    encoder.REGIONS = "v2"
    encoder.CHECKPOINTING = False  # True: recompute a ViT's blocks in the backward pass, which needs less memory

    cfg.MODEL.FVLM = fvlm = node()  # clip_fvlm §4
    fvlm.ALPHA = 0.1  # weight of the encoder's score for classes with boxes and the background
    fvlm.BETA = 0.8  # its weight for classes without boxes
    fvlm.TEMPERATURE = 75.0  # factor of the cosines in the encoder's score
    fvlm.DETECTOR_TEMPERATURE = 50.0  # start of the learned factor in the detector's score
    fvlm.BACKGROUND_WEIGHT = 0.6  # weight of background regions in the classification loss
    # True: an object's best proposal of IoU >= .5 is its own, even if another object fits it better (MMDetection).
    fvlm.MATCH_BEST = False
    fvlm.UPSCALING = "deconvolution"  # of ViT maps to strides 4 and 8, learned (release); or "interpolation" (paper)
    # Colour that pads an image, in INPUT.FORMAT's order. The release swaps RGB and BGR, so it is not the mean colour.
    fvlm.PAD_PIXEL = [104.09373615, 116.7460125, 122.7709383]
    cfg.MODEL.RPN.NORM = ""  # norm of the RPN's convolutions (F-VLM on RN50x64: "SyncBN")
    cfg.MODEL.FPN.STACKS = 7  # of NAS-FPN ("build_clip_nas_fpn_backbone")


def _add_centernet2(cfg, node) -> None:
    """OV-LVIS: CenterNet proposals under a cascade with masks (detic §3.1). Official Detic has the same names."""
    cfg.MODEL.CENTERNET = centernet = node()
    centernet.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    centernet.NUM_BOX_CONVS = 4  # 3 x 3 convolutions before the two outputs
    centernet.NORM = "GN"
    centernet.PRIOR_PROB = 0.01  # start of the heat map
    # A box belongs to the levels whose range holds half of its diagonal, in px; ranges overlap and include their ends.
    centernet.SOI = [[0, 80], [64, 160], [128, 320], [256, 640], [512, 10000000]]
    centernet.HM_MIN_OVERLAP = 0.8  # IoU that sets the radius of a peak: delta = (1 - this) / (1 + this)
    centernet.MIN_RADIUS = 4  # px, smallest radius of a peak
    centernet.HM_FOCAL_ALPHA = 0.25
    centernet.HM_FOCAL_BETA = 4  # power of 1 - target in the negative loss
    centernet.LOSS_GAMMA = 2.0
    centernet.SIGMOID_CLAMP = 1e-4  # probabilities stay this far from 0 and 1; beyond, there is no gradient
    centernet.IGNORE_HIGH_FP = 0.85  # negatives above this probability are left out, as they may be missing boxes
    centernet.POS_WEIGHT = centernet.NEG_WEIGHT = 0.5
    centernet.REG_WEIGHT = 1.0
    centernet.INFERENCE_TH = 1e-4  # lowest probability of a proposal
    centernet.PRE_NMS_TOPK_TRAIN = 4000  # of a level
    centernet.PRE_NMS_TOPK_TEST = 1000
    centernet.POST_NMS_TOPK_TRAIN = 2000
    centernet.POST_NMS_TOPK_TEST = 256
    centernet.NMS_TH_TRAIN = centernet.NMS_TH_TEST = 0.9

    # The cascade. Loss and boxes of a stage: Detectron2's MODEL.ROI_BOX_HEAD.{BBOX_REG_LOSS_TYPE, SMOOTH_L1_BETA,
    # USE_FED_LOSS, FED_LOSS_*} and MODEL.ROI_BOX_CASCADE_HEAD.{IOUS, BBOX_REG_WEIGHTS}.
    cascade = cfg.MODEL.ROI_BOX_CASCADE_HEAD
    cascade.GRADIENT_SCALE = 1 / 3  # of what a stage sends back to the feature maps; official Detic 1/3, CLIM release 1
    # True: later stages draw BATCH_SIZE_PER_IMAGE refined boxes, with POSITIVE_FRACTION (CLIM release). False: all.
    cascade.RESAMPLE = False
    cascade.KEEP_EMPTY = False  # True: boxes without area stay in training (CLIM release); at test they always stay
    cfg.MODEL.ROI_BOX_HEAD.MULT_PROPOSAL_SCORE = False  # True: a score is sqrt(probability x proposal's score)


def _add_input(cfg, node) -> None:
    """From records to the network's input."""
    cfg.INPUT.COPIES = []  # [[folder of images, folder of their copies]]: small ones for tiles, made by ``clim shrink``
    cfg.INPUT.CAPTION = caption = node()
    caption.SHORT_SIDE = 400  # px
    caption.LONG_SIDE = 667  # px, at most
    caption.SCALES = [1.0]  # factors of both sides; each image takes one at random (not with CROP or JITTER_SIZE)
    caption.FLIP = 0.5  # probability of a horizontal flip
    caption.CROP = 0  # px; above 0: a random crop, resized to a square of this side (CLIP); 0: the whole image
    caption.CROP_SCALE = [0.9, 1.0]  # part of the image's area
    caption.CROP_RATIO = [3 / 4, 4 / 3]  # width / height
    caption.JITTER_SIZE = 0  # px; above 0: single images jitter as INPUT.LSJ, and so do mosaics of "jitter" (detic §3)
    caption.JITTER_SCALE = [0.5, 1.5]
    cfg.INPUT.MOSAIC = mosaic = node()
    mosaic.GRIDS = [2, 3, 4]  # n of the n x n tiles, drawn uniformly for each canvas
    mosaic.SIZE = 800  # px, side of the canvas
    mosaic.FLIP = 0.5  # probability of a horizontal flip, for each tile
    # "fit": keep the ratio, pad, move to the centre (release); "crop": fill the cell (paper); "jitter": cut out by
    # INPUT.CAPTION.JITTER_SIZE and JITTER_SCALE, then as "fit" (release on LVIS).
    mosaic.FILLING = "fit"
    mosaic.CROP_SCALE = [0.9, 1.0]  # for "crop": part of the image's area
    mosaic.CROP_RATIO = [3 / 4, 4 / 3]  # width / height of the crop, which is resized to the cell
    mosaic.PAD_VALUE = 114  # grey of the gaps
    # "loader": the data loader makes canvases. "device": the model makes three of every 4 + 9 + 16 single crops of a
    # batch (CLIM's release for CLIP).
    mosaic.COMPOSE = "loader"
    mosaic.PARTNERS = "random"  # or an index made by tools/build_neighbours.py (Table 2c)
    mosaic.PERMUTE_TEXTS = False  # True, for control experiments: tiles exchange their texts within a canvas
    cfg.INPUT.REGIONS = regions = node()  # images whose boxes a model classifies
    regions.SIZE = 1024  # px, longest side; padded to a square
    regions.MASK_STRIDE = 16  # px, resolution of region masks: the stride of the encoder's dense map
    regions.CROP_SIZE = 224  # px, side of a region's crop: the size that the encoder was trained on
    regions.MIN_AREA = 64  # px² of the original image; smaller boxes and those above MAX_AREA are left out
    regions.MAX_AREA = 1024 * 1024
    regions.MAX_BOXES = 100  # number of annotations that are read of an image, before the rules for area
    regions.CROWDS = True  # crowds are regions like others (release); False: leave them out first

    cfg.INPUT.LSJ = lsj = node()  # large-scale jittering of images with boxes in training
    lsj.SIZE = 0  # px, side of the square, to which FVLM pads at test too; 0: Detectron2's resizing
    lsj.SCALE = [0.1, 2.0]  # an image is scaled to fit a square of SIZE times a random factor between these
    # "detectron2": ResizeScale, FixedSizeCrop (F-VLM). "efficientdet": official Detic. "mmdet": CLIM release on LVIS.
    lsj.STYLE = "detectron2"


def _add_training(cfg, node) -> None:
    """Data sets, the loader (its sizes are per GPU), the solver and the evaluation."""
    cfg.DATASETS.CAPTIONS = ()  # registered sets of image-text pairs
    cfg.DATASETS.REGIONS = ()  # registered sets of images with pseudo-labelled boxes
    # A data.yaml of your own sets and classes (docs/own_data.md). It sets TRAIN, TEST, CAPTIONS, VOCABULARY.NAMES,
    # NUM_CLASSES and BASE_CLASSES, whatever the YAML file says; overrides count.
    cfg.DATASETS.DATA = ""
    # Single sets: [[name, kind, json, image folder], …], kind "captions", "boxes", "lvis", "regions" or
    # "pseudo_labels", or [[name, "shards", index, folder of the shards], …]; see docs/own_data.md.
    cfg.DATASETS.OWN = []
    cfg.DATALOADER.DETECTION_PER_GPU = 2
    cfg.DATALOADER.CAPTIONS_PER_GPU = 0
    cfg.DATALOADER.MOSAICS_PER_GPU = 0
    cfg.DATALOADER.REGIONS_PER_GPU = 0
    # (): every iteration has all sources. (1, 1), official Detic: an iteration has either boxes or pairs, drawn with
    # these weights; all processes draw the same.
    cfg.DATALOADER.ALTERNATE = ()
    cfg.DATALOADER.MIN_SIDE = 0  # px: images with boxes whose shorter side is smaller are left out (CLIM release: 32)
    # Of RepeatFactorTrainingSampler: True rounds factors up (CLIM release); False draws fractions in each epoch.
    cfg.DATALOADER.REPEAT_ROUND_UP = False

    cfg.SOLVER.EPOCHS = 0.0  # above 0: passes over the pairs, or over images with boxes; sets MAX_ITER
    cfg.SOLVER.STEP_EPOCHS = []  # with EPOCHS: passes after which the learning rate drops; sets STEPS
    # Batches of one step of the optimiser: gradients are means over them, so fewer GPUs reach a large batch. The
    # learning rate and the schedule count them as so many GPUs. Statistics of batch norm are those of one batch.
    cfg.SOLVER.ACCUMULATE = 1
    cfg.SOLVER.OPTIMIZER = "SGD"  # or "ADAMW"
    cfg.SOLVER.BETAS = [0.9, 0.999]  # of "ADAMW"; for CLIP's ViTs 0.9, 0.98
    cfg.SOLVER.EPS = 1e-8  # of "ADAMW"; for CLIP's ViTs 1e-6
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0  # of "ADAMW": factor of the learning rate of backbone and res5
    cfg.SOLVER.CLIP_GLOBAL_NORM = 0.0  # highest norm of all gradients together; 0: off; CLIM's Detic 35, OV-RCNN 5
    cfg.SOLVER.WEIGHT_ENSEMBLE = 1.0  # part of the trained weights in clip.pt and evaluation (CLIM: 0.7 beside CLIP's)
    # Above 0: decay of a moving average of the weights, which evaluation uses and checkpoints publish. After step t
    # it is min(EMA, (1 + t) / (10 + t)), so that the average soon forgets the start.
    cfg.SOLVER.EMA = 0.0
    cfg.SOLVER.AMP.DTYPE = "float16"  # of mixed precision; or "bfloat16", which needs no scaling and also runs on CPUs
    cfg.SOLVER.KEEP_CHECKPOINTS = 3  # number of newest checkpoints that stay beside model_final; 0: all
    cfg.SOLVER.LOG_PERIOD = 20  # iterations between two lines of the log
    cfg.SOLVER.WRITERS = ["tensorboard"]  # beside log and metrics.json: "tensorboard", "wandb", "mlflow"

    cfg.DISTRIBUTED = node()
    cfg.DISTRIBUTED.TIMEOUT = 1800.0  # s that a process waits for the others before it gives up

    cfg.TEST.BEST_METRIC = ""  # a figure, "bbox/AP50_novel" for one: where it is highest goes to model_best.pth
    cfg.TEST.PROTOCOL = "generalized"  # Detic: one run, 80 classes predicted, 65 scored; "two_run": CLIM; or "both"
    cfg.TEST.REGIONS = ["boxes"]  # one or more ways to classify: "boxes" or "masks" on the image, "crops" of it
