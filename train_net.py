"""Train or evaluate: python train_net.py --config-file configs/Detic_CLIM_C4.yaml --num-gpus 8

--resume continues OUTPUT_DIR's last checkpoint; --eval-only scores MODEL.WEIGHTS; KEY VALUE pairs override the
config; --num-machines, --machine-rank and --dist-url train on several machines, as in Detectron2.
"""

from clim.engine import Trainer, evaluate, run_cleanly, setup
from clim.engine.checkpoint import SafeCheckpointer
from clim.engine.trainer import check_weights
from detectron2.engine import default_argument_parser, launch
from detectron2.modeling import build_model


def main(args):
    cfg = setup(args)
    if args.eval_only:
        model = build_model(cfg)
        if not args.resume:
            check_weights(cfg.MODEL.WEIGHTS)
        SafeCheckpointer(model, cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        return evaluate(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def worker(args):
    return run_cleanly(main, args)


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    run_cleanly(
        launch,
        worker,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
