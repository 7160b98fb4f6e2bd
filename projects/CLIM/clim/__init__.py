"""CLIM for Detectron2: contrastive language-image mosaics for open-vocabulary detection (arXiv 2312.11376)."""
