"""Train or evaluate: python train_net.py --config-file configs/Detic_CLIM_C4.yaml --num-gpus 8

--resume continues OUTPUT_DIR's last checkpoint; --eval-only scores MODEL.WEIGHTS, or with --resume that
checkpoint; KEY VALUE pairs override the config; --num-machines, --machine-rank and --dist-url train on
several machines, as in Detectron2. Without CUDA it runs on the CPU; --num-gpus then counts processes.
"""

from detectron2.engine import default_argument_parser

from clim.engine import SafeCheckpointer, Trainer, WeightEnsemble, build, launch, setup, together
from clim.evaluation import evaluate


def main(args):
    with together():
        cfg = setup(args)
    if args.eval_only:
        with together():
            model = build(cfg)
            checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, trusted=cfg.MODEL.TRUST_WEIGHTS)
            loaded = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
            resumed = args.resume and checkpointer.has_checkpoint()
            path = checkpointer.get_checkpoint_file() if resumed else cfg.MODEL.WEIGHTS
            checkpointer.require_whole(path)
            ensemble = WeightEnsemble.of_checkpoint(model, path, loaded, alpha=cfg.SOLVER.WEIGHT_ENSEMBLE)
        with ensemble.mixed():
            return evaluate(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    launch(main, default_argument_parser().parse_args())
