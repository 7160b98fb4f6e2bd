"""Train or evaluate: python train_net.py --config-file configs/Detic_CLIM_C4.yaml --num-gpus 8

--resume continues OUTPUT_DIR's last checkpoint; --eval-only scores MODEL.WEIGHTS, or with --resume that
checkpoint; KEY VALUE pairs override the config; --num-machines, --machine-rank and --dist-url train on
several machines, as in Detectron2. Without CUDA it runs on the CPU; --num-gpus then counts processes.
"""

from detectron2.engine import default_argument_parser

from clim.engine import Trainer, launch, load_ensemble, setup
from clim.errors import raise_on_all_ranks
from clim.evaluation import evaluate


def main(args):
    with raise_on_all_ranks():
        cfg = setup(args)
    if args.eval_only:
        with raise_on_all_ranks():
            ensemble = load_ensemble(cfg, resume=args.resume)
        with ensemble.mixed() as model:
            return evaluate(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    launch(main, default_argument_parser().parse_args())
