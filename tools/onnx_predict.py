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


class Detector:
    def __init__(self, path: str, *, embeddings: str | None = None, names: list[str] | None = None):
        import onnxruntime

        self.session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
        about = self.session.get_modelmeta().custom_metadata_map.items()
        self.about = {key: json.loads(value) for key, value in about}
        self.names, self.inputs = names or self.about["names"], {}
        if any(given.name == "class_embeddings" for given in self.session.get_inputs()):
            self.inputs["class_embeddings"] = np.load(embeddings or Path(path).with_suffix(".npy")).astype(np.float32)
            if (count := len(self.inputs["class_embeddings"])) != len(self.names):
                raise SystemExit(f"error: {count} embeddings, but {len(self.names)} names.")

    def __call__(self, image: Image.Image) -> list[dict]:
        """[{"name", "score", "box": [x0, y0, x1, y1] in the image's pixels}], the highest score first."""
        scale = min(self.about["min_size"] / min(image.size), self.about["max_size"] / max(image.size))
        size = [max(1, int(side * scale + 0.5)) for side in image.size]
        resized = image.resize(size, Image.Resampling.BILINEAR)
        inputs = {"image": np.asarray(resized)} | self.inputs
        boxes, scores, classes = self.session.run(["boxes", "scores", "classes"], inputs)
        boxes = (boxes * np.tile(np.divide(image.size, resized.size), 2)).round(2).tolist()
        found = zip(boxes, scores.tolist(), classes, strict=True)
        return [{"name": self.names[k], "score": round(score, 6), "box": box} for box, score, k in found]


def read_image(file: Path) -> Image.Image:
    """Upright RGB. OSError or ValueError for what is no image of 8 or 16 bits."""
    if not file.is_file():
        raise OSError("it is not a file")
    with Image.open(file) as opened:
        opened.load()  # which turns a TIFF
        image = ImageOps.exif_transpose(opened)
    if image.mode == "F":
        raise ValueError("its pixels are floats")
    if image.mode.startswith("I"):  # 16 bits of grey
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images", nargs="+", type=Path, help="files, and folders of .jpg and .png")
    parser.add_argument("--output", type=Path, help="folder of drawings")
    parser.add_argument("--embeddings", help=".npy of tools/build_text_embeddings.py classes --like MODEL")
    parser.add_argument("--names", type=lambda text: [name.strip() for name in text.split(",")])
    args = parser.parse_args()
    detector = Detector(args.model, embeddings=args.embeddings, names=args.names)
    listed = [sorted(path.rglob("*.[jpJP]*[gG]")) if path.is_dir() else [path] for path in args.images]
    files, used = sum(listed, []) or parser.error("there is no .jpg and no .png."), set()
    for file in files if args.output else []:
        if file.resolve().parent == args.output.resolve():
            parser.error(f"{file} lies in --output, where its drawing could replace it.")
    for file in files:
        try:
            image = read_image(file)
        except Exception as error:  # PIL raises many types
            print(f"{file} is left out: {error}", file=sys.stderr)
            continue
        found, draw = detector(image), ImageDraw.Draw(image)
        print(json.dumps({"file": str(file), "detections": found}))
        for one in reversed(found if args.output else []):
            draw.rectangle(one["box"], outline="red", width=3)
            text, ink = f"{one['name']} {one['score']:.2f}", {"fill": "white", "stroke_fill": "black"}
            draw.text(one["box"][:2], text, stroke_width=2, font_size=16, **ink)
        if args.output:
            args.output.mkdir(parents=True, exist_ok=True)
            name = file.stem if file.stem not in used else f"{file.stem}_{len(used)}"
            used |= {file.stem, name}
            image.save(args.output / f"{name}.jpg" if max(image.size) < 65_500 else args.output / f"{name}.png")


if __name__ == "__main__":
    main()
