"""Start one process for each GPU, or for each share of a CPU, as Detectron2 does."""

import os
import socket
from urllib.parse import urlparse

import torch
from detectron2.engine import launch as detectron2_launch

from clim.errors import UserError, run_cleanly


def launch(main, args) -> None:
    """Run ``main(args)`` in ``args.num_gpus`` processes on each of ``args.num_machines`` machines.

    Without CUDA the processes communicate by Gloo and share the cores (OMP_NUM_THREADS, unless it is set). A
    UserError ends the program with one line on stderr and exit code 2.

    Args:
        main: a function of a module, because spawned processes import it.
        args: the options of ``clim train``, which are those of Detectron2's ``default_argument_parser``.
    """
    run_cleanly(_launch, main, args)


def _launch(main, args):
    check_processes(args)
    if args.num_gpus > 1 and not torch.cuda.is_available():  # every process would use all cores
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.num_gpus)))
    machines = {"num_machines": args.num_machines, "machine_rank": args.machine_rank}
    detectron2_launch(main, args.num_gpus, **machines, dist_url=args.dist_url, args=(args,))


def check_processes(args) -> None:
    """UserError where the processes cannot start, or would wait for each other forever."""
    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        raise UserError(f"--num-gpus {args.num_gpus}, but this machine has {torch.cuda.device_count()}.")
    if not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            f"--machine-rank {args.machine_rank} with --num-machines {args.num_machines}: ranks go from 0 to "
            f"{args.num_machines - 1}, a different one on each machine."
        )
    url = urlparse(args.dist_url)
    if args.num_machines * args.num_gpus == 1 or args.machine_rank != 0 or url.scheme != "tcp" or not url.port:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:  # else processes join the other training
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", url.port))
        except OSError as error:
            raise UserError(
                f"--dist-url {args.dist_url}: port {url.port} is taken ({error.strerror}), perhaps by another "
                "training; give another port, or on a single machine --dist-url auto."
            ) from error
