"""Train or evaluate: python train_net.py --config-file configs/Detic_CLIM_C4.yaml --num-gpus 8

The same command as ``clim train``. torch is imported when the arguments have been read.
"""

import argparse
import inspect
import logging
import multiprocessing
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from urllib.parse import urlparse

from clim.errors import UserError, raise_on_all_ranks, run_cleanly

TORCHRUN = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"}  # what it tells its processes


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of Detectron2's ``default_argument_parser``, with its defaults."""
    # as there: one port for all trainings of a user
    port = 2**15 + 2**14 + hash(os.getuid() if hasattr(os, "getuid") else 1) % 2**14
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="YAML")
    add("--resume", action="store_true", help="continue from OUTPUT_DIR's last checkpoint")
    add("--eval-only", action="store_true", help="evaluate, do not train")
    add("--num-gpus", type=int, default=1, help="GPUs, or processes, of a machine (%(default)s)")
    add("--num-machines", type=int, default=1, help="machines (%(default)s)")
    add("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    add("--dist-url", default=f"tcp://127.0.0.1:{port}", help="address of the processes (%(default)s)")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides, at the end")


def train(args: argparse.Namespace) -> None:
    """Train or evaluate.

        clim train --config-file configs/Detic_CLIM_C4.yaml --num-gpus 8

        torchrun --nproc-per-node 8 train_net.py --config-file configs/Detic_CLIM_C4.yaml

    --resume continues from OUTPUT_DIR's last checkpoint. --eval-only scores MODEL.WEIGHTS, or with --resume that
    checkpoint. KEY VALUE pairs override the config. --num-machines, --machine-rank and --dist-url train on several
    machines, as in Detectron2. Without CUDA it runs on the CPU, and --num-gpus is the number of processes.
    """
    run_cleanly(launch, args)


def launch(args: argparse.Namespace, process: Callable[[argparse.Namespace], object] | None = None) -> None:
    """Run ``process``, by default :func:`train_process`, ``args.num_gpus`` times on each of ``args.num_machines``.

    Without CUDA the processes communicate by Gloo and share the cores (OMP_NUM_THREADS, unless it is set).
    """
    if not args.config_file:
        raise UserError("Name a config: --config-file FILE, such as configs/Detic_CLIM_C4.yaml.")
    quiet_warnings()
    import torch
    from detectron2 import engine

    if TORCHRUN <= os.environ.keys():
        return join_torchrun(args, process or train_process)
    check_processes(args)
    if args.num_gpus > 1 and not torch.cuda.is_available():  # otherwise each process uses all cores
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.num_gpus)))
    machines = {"num_machines": args.num_machines, "machine_rank": args.machine_rank}
    with passing_signals_on() if args.num_gpus * args.num_machines > 1 else nullcontext():
        engine.launch(process or train_process, args.num_gpus, **machines, dist_url=args.dist_url, args=(args,))


def join_torchrun(args: argparse.Namespace, process: Callable[[argparse.Namespace], object]) -> None:
    """Run ``process`` in this process, which torchrun has started, together with the others."""
    import torch
    from detectron2.engine.launch import DEFAULT_TIMEOUT
    from detectron2.utils import comm

    if args.num_gpus * args.num_machines > 1:
        raise UserError("torchrun starts the processes: leave out --num-gpus and --num-machines.")
    on_gpu, local, here = torch.cuda.is_available(), int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if on_gpu:
        if here > torch.cuda.device_count():
            raise UserError(f"--nproc-per-node {here}, but this machine has {torch.cuda.device_count()} GPUs.")
        torch.cuda.set_device(local)
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(here)
    comm.synchronize()
    process(args)
    torch.distributed.destroy_process_group()


@contextmanager
def passing_signals_on():
    """Pass SIGTERM and SIGUSR1 on to the processes of ``launch``; where these stop, so does this one, as they do."""
    from torch.multiprocessing import ProcessExitedException

    from clim.engine.resume import EXIT_CODE, STOP_SIGNALS

    def pass_on(number, _):
        for child in multiprocessing.active_children():
            os.kill(child.pid, number)

    before = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield
    except ProcessExitedException as error:
        if error.exit_code in (EXIT_CODE, *(-number for number in STOP_SIGNALS)):
            sys.exit(EXIT_CODE)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def quiet_warnings() -> None:
    """Hide warnings of torch and others about their own code. Call it before torch is imported, in every process."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # while other processes import torch
    for category in (FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)
    warnings.filterwarnings("ignore", module=r"(torch|torchvision|detectron2|fvcore)\b")
    for name in ("torch.fx", "torch.utils.cpp_extension"):  # the second: CUDA_HOME is set, and there is no GPU
        logging.getLogger(name).setLevel(logging.ERROR)


def check_processes(args) -> None:
    """UserError where the processes cannot start, or would wait for each other forever."""
    import torch

    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        raise UserError(f"--num-gpus {args.num_gpus}, but this machine has {torch.cuda.device_count()}.")
    rank, machines = args.machine_rank, args.num_machines
    if not 0 <= rank < machines:
        raise UserError(f"--machine-rank {rank} of {machines} machines: each needs its own, from 0 to {machines - 1}.")
    url = urlparse(args.dist_url)
    if machines * args.num_gpus == 1 or rank != 0 or url.scheme != "tcp" or not url.port:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:  # otherwise these processes join another training
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", url.port))
        except OSError as error:
            remedy = "perhaps by another training. Use another port, or on a single machine --dist-url auto"
            raise UserError(f"--dist-url: port {url.port} is taken ({error.strerror}), {remedy}.") from error


def train_process(args: argparse.Namespace):
    """Train or evaluate in this process. Returns the results of an evaluation."""
    quiet_warnings()
    from clim.engine import Trainer, load_ensemble, setup
    from clim.evaluation import evaluate

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
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=inspect.getdoc(train), formatter_class=layout)
    add_train_options(parser)
    train(parser.parse_args())
