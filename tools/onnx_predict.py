"""Detect objects with an ONNX file of `clim export`; needs numpy, onnxruntime and Pillow, neither torch nor CLIM.

    python tools/onnx_predict.py model.onnx photo.jpg folder-of-jpg-and-png --output drawings
    python tools/onnx_predict.py model.onnx photo.jpg --embeddings rows.npy --names "dog, fire hydrant"

--embeddings is for a file of --dynamic-classes; by default it is model.npy, which lies beside the file.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str):
        self.exit(2, f"error: {message}\n")


class Detector:
    """A file of `clim export`. Raises ValueError for other files, whose metadata lack names and sizes."""

    def __init__(self, path: str, *, embeddings: str | None = None, names: list[str] | None = None):
        import onnxruntime

        try:
            self.session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
            found = self.session.get_modelmeta().custom_metadata_map
            known, *sides = (json.loads(found[key]) for key in ("names", "min_size", "max_size"))
            self.names, self.sides = names or list(map(str, known)), np.array(sides, float).clip(1, 1e5)
        except Exception as error:  # onnxruntime has many kinds of them
            raise ValueError(f"{path} cannot be used ({error}): write it with `clim export`.") from error
        given = {one.name: one.shape for one in self.session.get_inputs()}.get("class_embeddings")
        rows = given and read_rows(embeddings or Path(path).with_suffix(".npy"), given[1])
        self.inputs = {} if rows is None else {"class_embeddings": rows}
        expected = len(known if rows is None else rows)
        if len(self.names) != expected:
            raise ValueError(f"{path} has {expected} classes, but there are {len(self.names)} names: give as many.")

    def __call__(self, image: Image.Image) -> list[dict]:
        """[{"name", "score", "box": [x0, y0, x1, y1] in the image's pixels}], the highest score first."""
        scale = min(self.sides[0] / min(image.size), self.sides[1] / max(image.size))
        size = [max(int(side * scale + 0.5), 1) for side in image.size]
        resized = image.resize(size, Image.Resampling.BILINEAR)
        inputs = {"image": np.asarray(resized)} | self.inputs
        boxes, scores, classes = self.session.run(["boxes", "scores", "classes"], inputs)
        boxes = (boxes * np.tile(np.divide(image.size, resized.size), 2)).round(2).tolist()
        found = zip(boxes, scores.tolist(), classes, strict=True)
        return [{"name": self.names[k], "score": round(score, 6), "box": box} for box, score, k in found]


def read_rows(path: str | Path, width: int) -> np.ndarray:
    """(K, ``width``) float32 of a .npy file."""
    try:
        rows = np.load(path).astype(np.float32)
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({error}): make it with tools/build_text_embeddings.py.") from error
    if rows.ndim != 2 or rows.shape[1] != width or not np.isfinite(rows).all():
        raise ValueError(f"{path} holds no finite table (classes, {width}): make it with --like MODEL.")
    return rows


def read_image(file: Path) -> Image.Image | None:
    """The upright image, RGB; None, and a line on stderr, for other files."""
    try:
        if not file.is_file():
            raise ValueError("no such file")
        opened = Image.open(file)
        opened.load()  # which turns a TIFF
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16 bits of grey
            image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
        return image.convert("RGB")
    except Exception as error:  # Pillow has many kinds of them
        print(f"{ascii(str(file))} is skipped: {error}", file=sys.stderr)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images", nargs="+", type=Path, help="files, and folders of .jpg and .png")
    parser.add_argument("--output", type=Path, help="folder of drawings")
    parser.add_argument("--embeddings", help=".npy of tools/build_text_embeddings.py classes --like MODEL")
    parser.add_argument("--names", type=lambda text: [name.strip() for name in text.split(",")])
    args = parser.parse_args()
    listed = [sorted(path.rglob("*.[jpJP]*[gG]")) if path.is_dir() else [path] for path in args.images]
    files, read, written = sum(listed, []) or parser.error("there is no .jpg and no .png."), 0, set()
    if args.output and args.output.resolve() in {file.resolve().parent for file in files}:
        parser.error(f"--output {args.output} holds the images, and drawings would replace them: name another one.")
    detector = Detector(args.model, embeddings=args.embeddings, names=args.names)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
    for image, file in ((image, file) for file in files if (image := read_image(file))):
        found, draw, read = detector(image), ImageDraw.Draw(image), read + 1
        print(json.dumps({"file": str(file), "detections": found}), flush=True)
        for one in reversed(found if args.output else []):
            draw.rectangle(one["box"], outline="red", width=3)
            text, ink = f"{one['name']} {one['score']:.2f}", {"fill": "white", "stroke_fill": "black"}
            draw.text(one["box"][:2], text, stroke_width=2, font_size=16, **ink)
        if args.output:
            name = file.stem if file.stem not in written else f"{file.stem}_{read}"  # of another folder
            written.add(name)
            image.save(args.output / f"{name}.jpg")
    if not read:
        raise ValueError("none of the images can be read.")


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # its reader has seen enough
        sys.stdout = None
        sys.exit(1)
    except (OSError, ValueError) as error:  # a full disk, or another file than is needed
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
