"""Detect objects of any names in images, by default with the model that ``make demo`` has trained.

    python tools/predict.py --input photo.jpg folder "more/*.png" --vocabulary "dog, fire hydrant"
    python tools/predict.py --config-file configs/Detic_CLIM_C4.yaml --weights model_final.pth --input photos

This is ``clim predict``, whose --help describes the scores and predictions.json.
"""

from pathlib import Path

from arguments import new_parser
from clim.errors import UserError, run_cleanly
from clim_commands.predict import add_predict_options, predict

DEMO_WEIGHTS = Path("output/demo/detic_clim/model_final.pth")
DEMO_CONFIG = Path("configs/mini/detic_clim.yaml")


def main(arguments: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    add_predict_options(parser, config_file=DEMO_CONFIG)
    args = parser.parse_args(arguments)
    if args.weights is None and args.config_file == DEMO_CONFIG and "MODEL.WEIGHTS" not in args.opts:
        if not DEMO_WEIGHTS.is_file():
            raise UserError(f"{DEMO_WEIGHTS} does not exist: train it with `make demo`, or name --weights.")
        args.weights = str(DEMO_WEIGHTS)
    predict(args)


if __name__ == "__main__":
    run_cleanly(main)
