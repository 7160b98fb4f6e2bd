"""Letters on pictures: a font for every text, and texts cut to the room they have."""

from functools import lru_cache
from pathlib import Path

from PIL import ImageFont


@lru_cache(maxsize=64)
def font(size: int, *, text: str = ""):
    """A font of ``size`` px that has the letters of ``text``: Pillow's own knows ASCII and little more."""
    if text.translate(_IN_PILLOWS_FONT).isascii():
        return ImageFont.load_default(size)
    import matplotlib  # comes with Detectron2, and brings a font with most alphabets

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def shortened(text: str, *, width: float, font) -> str:
    """``text``, cut with an ellipsis where it is longer than ``width`` px."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


_IN_PILLOWS_FONT = dict.fromkeys(map(ord, "“”…·"))
