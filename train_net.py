"""Train or evaluate: python train_net.py --config-file configs/Detic_CLIM_C4.yaml --num-gpus 8

The same command as ``clim train``. torch is imported when the arguments have been read.
"""

import argparse
import inspect
import logging
import os
import re
import signal
import socket
import time
import warnings
from collections.abc import Callable
from datetime import timedelta

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

    from clim.engine import load_config

    process = process or train_process
    torchrun, several = TORCHRUN <= os.environ.keys(), args.num_gpus * args.num_machines > 1
    if not torchrun:
        check_processes(args)
        if not several:
            return process(args)
    options = {"timeout": timedelta(seconds=load_config(args.config_file, args.opts).DISTRIBUTED.TIMEOUT)}
    if torchrun:
        return join_torchrun(args, process, options)
    if args.num_gpus > 1 and not torch.cuda.is_available():  # otherwise each process uses all cores
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.num_gpus)))
    options |= {"init_method": args.dist_url, "world_size": args.num_gpus * args.num_machines}
    if args.dist_url == "auto":
        with socket.socket() as probe:
            probe.bind(("", 0))
            options["init_method"] = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    start_ranks(args, process, options)


def start_ranks(args: argparse.Namespace, process: Callable, options: dict) -> None:
    """Start the processes of this machine and wait for them. Signals to stop reach them all, also while they start."""
    from torch import multiprocessing as mp

    from clim.processes import STOP_SIGNALS, Stopped

    ready = mp.get_context("spawn").RawArray("i", args.num_gpus)
    asked, since, ranks = 0, 0.0, None

    def pass_on(number, _):
        nonlocal asked, since
        again = asked and time.monotonic() > since + STOP_SIGNALS[number]
        asked, since = asked or number, since or time.monotonic()
        for is_ready, rank in zip(ready, ranks.processes if ranks else (), strict=False):
            if rank.is_alive():
                os.kill(rank.pid, number if is_ready and not again else signal.SIGKILL)

    before = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # processes inherit it: no traceback while they import
        ranks = mp.start_processes(run_rank, (args, process, options, ready), args.num_gpus, join=False)
        signal.signal(signal.SIGINT, pass_on)
        if asked:  # while they were started
            pass_on(asked, None)
        while not ranks.join(grace_period=30.0):  # time to save for those that have not ended
            pass
    except mp.ProcessExitedException as error:
        code = error.exit_code
        number = asked or {130: signal.SIGINT, 143: signal.SIGTERM}.get(code, -code)
        if number in STOP_SIGNALS:
            raise Stopped(number) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_rank(local: int, args: argparse.Namespace, process: Callable, options: dict, ready) -> None:
    """Be process ``local`` of this machine; ``ready[local]`` tells the launcher that it takes signals."""
    from clim.processes import die_with_parent

    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    ready[local] = 1
    quiet_warnings()
    options = options | {"rank": args.machine_rank * args.num_gpus + local}
    run_in_group(args, process, options, local=local, here=args.num_gpus)


def join_torchrun(args: argparse.Namespace, process: Callable, options: dict) -> None:
    """Run ``process`` in this process, which torchrun has started, together with the others."""
    import torch

    if args.num_gpus * args.num_machines > 1:
        raise UserError("torchrun starts the processes: leave out --num-gpus and --num-machines.")
    local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.is_available() and here > torch.cuda.device_count():
        raise UserError(f"--nproc-per-node {here}, but this machine has {torch.cuda.device_count()} GPUs.")
    run_in_group(args, process, options, local=local, here=here)


def run_in_group(args: argparse.Namespace, process: Callable, options: dict, *, local: int, here: int) -> None:
    """Join the process group with ``options``, as number ``local`` of ``here`` on this machine, and run ``process``."""
    import torch
    from detectron2.utils import comm

    from clim.processes import Stopped, leave_group

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler does not run while torch waits for other processes
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", **options)
    comm.create_local_process_group(here)
    torch.distributed.set_timeout(options["timeout"], comm._get_global_gloo_group())  # with NCCL a group of its own
    comm.synchronize()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process(args)
        comm.synchronize()
    except Stopped:
        leave_group()
        raise
    except KeyboardInterrupt:  # otherwise torch lets the process end as if all was well
        raise Stopped(signal.SIGINT) from None
    leave_group()


def quiet_warnings() -> None:
    """Hide warnings of torch and others about their own code. Call it before torch is imported, in every process."""
    # While other processes import torch, and where Python cleans up after a killed one.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning,ignore:resource_tracker:UserWarning")
    for category in (FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)
    warnings.filterwarnings("ignore", module=r"(torch|torchvision|detectron2|fvcore)\b")
    for name in ("torch.fx", "torch.utils.cpp_extension"):  # the second: CUDA_HOME is set, and there is no GPU
        logging.getLogger(name).setLevel(logging.ERROR)


def check_processes(args) -> None:
    """UserError where the processes cannot start, or would wait for each other forever."""
    import torch

    rank, machines, on_gpu = args.machine_rank, args.num_machines, torch.cuda.is_available()
    each, number, of = (1, torch.cuda.device_count(), "GPU") if on_gpu else (8, os.cpu_count() or 1, "core")
    if not 0 <= args.num_gpus <= each * number:
        most = f"from 0 to {each * number} processes, {each} for each {of}"
        raise UserError(f"--num-gpus {args.num_gpus}: this machine takes {most}.")
    if not 1 <= machines <= 10_000 or (machines > 1 and not args.num_gpus):
        raise UserError(
            f"--num-machines {machines} with --num-gpus {args.num_gpus}: give numbers above 0, of machines up to 10000."
        )
    if not 0 <= rank < machines:
        raise UserError(f"--machine-rank {rank} of {machines} machines: each needs its own, from 0 to {machines - 1}.")
    if machines > 1 and args.dist_url == "auto":
        raise UserError("--dist-url auto is for one machine: give the first one's address, tcp://HOST:PORT.")
    address = re.fullmatch(
        r"auto|file://(?P<folder>.*)/[^/]+|tcp://(?P<host>[^/]+):(?P<port>[0-9]{1,5})", args.dist_url
    )
    port = int(address["port"] or 1) if address else 0
    if not 0 < port < 2**16 or not os.path.isdir(address["folder"] or "/"):
        raise UserError(f"--dist-url {args.dist_url} is no address: give tcp://HOST:PORT, or auto for one machine.")
    if machines * args.num_gpus <= 1 or rank != 0 or not address["port"]:
        return
    host = address["host"].strip("[]") if machines == 1 else ""  # otherwise its name may lead here from outside only
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:  # these processes would join another training, or wait for each other
            remedy = "give another one, or on a single machine --dist-url auto"
            raise UserError(f"--dist-url {args.dist_url} cannot be opened ({error.strerror}): {remedy}.") from error


def train_process(args: argparse.Namespace):
    """Train or evaluate in this process. Returns the results of an evaluation."""
    quiet_warnings()
    from clim.engine import Trainer, load_ensemble, setup
    from clim.evaluation import evaluate
    from clim.files import naming

    with raise_on_all_ranks():
        cfg = setup(args)
    if args.eval_only:
        with raise_on_all_ranks():
            ensemble = load_ensemble(cfg, resume=args.resume)
        with ensemble.mixed() as model:
            return evaluate(cfg, model)
    with naming(cfg.OUTPUT_DIR):
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


if __name__ == "__main__":
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=inspect.getdoc(train), formatter_class=layout)
    add_train_options(parser)
    train(parser.parse_args())
