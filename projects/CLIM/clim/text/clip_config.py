"""An open_clip model's description: one of its own by name, or a json in the format of its configs."""

import json
from pathlib import Path

import open_clip

from clim.errors import UserError
from clim.files import resolve

_PARTS = ("embed_dim", "vision_cfg", "text_cfg")


def is_clip_name(name: str) -> bool:
    """Whether ``name`` is one of open_clip's models or an existing json file."""
    return name in open_clip.list_models() or _json_file(name) is not None


def clip_config(name: str, key: str) -> dict:
    """{"embed_dim", "vision_cfg", "text_cfg", …} of the model ``name``, which the config's ``key`` holds.

    Raises UserError for an unknown name and for a json that describes no model.
    """
    path = _json_file(name)
    if path is None:
        config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
        if config is None:
            raise UserError(
                f"{key} {name!r} is neither an open_clip model (such as ViT-B-16-quickgelu) nor an existing json "
                "in the format of its configs: correct it."
            )
        return config
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} ({key}) is no readable json: {error}.") from error
    missing = [part for part in _PARTS if part not in config]
    if missing:
        raise UserError(f"{path} ({key}) describes no open_clip model: {', '.join(missing)} is missing.")
    return config


def _json_file(name: str) -> Path | None:
    path = resolve(name)
    return path if path.suffix == ".json" and path.is_file() else None
