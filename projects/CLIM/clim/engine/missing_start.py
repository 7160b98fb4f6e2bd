"""Weights that a config starts from and that are not there: what to do about it."""

import os
from http.client import HTTPException
from pathlib import Path

import yaml
from detectron2.utils.file_io import Detectron2Handler
from iopath.common.file_io import PathManager

from clim.errors import UserError

CONFIGS = Path(__file__).resolve().parents[4] / "configs"
PUBLISHED = (
    ", or point MODEL.WEIGHTS at Detic's published BoxSup_OVCOCO_CLIP_R50_1x.pth (trained at temperature 50 "
    "without a bias, as configs/Detic_C4_official.yaml has it)"
)


def require_start(path: str, *, save_dir: str | os.PathLike, path_manager: PathManager) -> None:
    """Fetch ``path``, a file or an address, of a run in ``save_dir``. UserError where that fails or it is missing."""
    try:
        local = Path(path_manager.get_local_path(path.partition("?")[0]))
    except (OSError, HTTPException, ValueError) as error:
        url = path.replace("detectron2://", Detectron2Handler.S3_DETECTRON2_PREFIX)
        raise UserError(
            f"MODEL.WEIGHTS: {path} could not be fetched ({error}): download {url} where there is a "
            'network and set MODEL.WEIGHTS to the file, or to "" for random weights.'
        ) from error
    if local.is_file():
        return
    if local.parent.resolve() == Path(save_dir).resolve():
        raise UserError(
            f"{local} is missing, although last_checkpoint beside it names it: correct that file."
        )
    raise UserError(f"MODEL.WEIGHTS: {path} does not exist{_how_to_get(Path(path))}.")


def _how_to_get(weights: Path) -> str:
    """For what one of the configs trains, the base stage above all: that config, and a published file."""
    if weights.name != "model_final.pth":
        return ""
    configs = sorted(CONFIGS.rglob("*.yaml"))
    config = next((path for path in configs if _output_dir(path) == weights.parent), None)
    if config is None:
        return ""
    return (
        ": this config starts from what another one trains; run python train_net.py --config-file "
        f"{config.relative_to(CONFIGS.parent)} first{PUBLISHED if config.name.startswith('BoxSup') else ''}"
    )


def _output_dir(config: Path) -> Path | None:
    """OUTPUT_DIR as this file itself, not its ``_BASE_``, has it; None where it has none or is damaged."""
    try:
        content = yaml.safe_load(config.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    named = content.get("OUTPUT_DIR") if isinstance(content, dict) else None
    return Path(named) if isinstance(named, str) else None
