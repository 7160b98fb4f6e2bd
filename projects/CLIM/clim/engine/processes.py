"""One process for each GPU (or for each share of a CPU), as Detectron2 launches them."""

import os
import socket
from urllib.parse import urlparse

import torch
from detectron2.engine import launch as detectron2_launch

from clim.errors import UserError, run_cleanly


def launch(main, args) -> None:
    """Run ``main(args)`` in ``args.num_gpus`` processes here, ``args.num_machines`` times; without CUDA they
    talk by Gloo and share the cores (OMP_NUM_THREADS, unless it is set).

    ``args`` are those of Detectron2's ``default_argument_parser``. A user's mistake ends the program with one
    line on stderr and exit code 2.
    """
    run_cleanly(_launch, main, args)


def _launch(main, args):
    check_processes(args)
    if args.num_gpus > 1 and not torch.cuda.is_available():  # every process would want all cores
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.num_gpus)))
    detectron2_launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def check_processes(args) -> None:
    """UserError where the processes that the command line asks for cannot be started or find each other."""
    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        raise UserError(f"--num-gpus {args.num_gpus}, but this machine has {torch.cuda.device_count()}.")
    if not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            f"--machine-rank {args.machine_rank} with --num-machines {args.num_machines}: ranks go from 0 to "
            f"{args.num_machines - 1}, a different one on each machine."
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        raise UserError("--dist-url auto is for one machine: give tcp://ADDRESS_OF_RANK_0:PORT on all of them.")
    if args.num_machines * args.num_gpus > 1 and args.machine_rank == 0 and args.dist_url != "auto":
        _check_port(args.dist_url)


def _check_port(dist_url: str) -> None:
    url = urlparse(dist_url)
    if url.scheme != "tcp" or not url.port:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", url.port))
        except OSError as error:
            raise UserError(
                f"--dist-url {dist_url}: port {url.port} is taken ({error.strerror}), perhaps by another "
                "training; give another port, or on a single machine --dist-url auto."
            ) from error
