"""Full-size rows as Slurm jobs: one for each task, which waits for the jobs of what it needs."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from clim.errors import UserError
from clim.files import write_json
from clim_commands.outputs import read_note

from .full import Preparation, Task, require_files
from .launch import ROOT, Launch
from .training import stop_running

try:
    import submitit
except ImportError as error:
    raise UserError("--slurm needs submitit: make extras installs it.") from error

# Parameters of submitit itself; other words are sbatch's own, such as partition and account.
GENERIC = ("timeout_min", "mem_gb", "cpus_per_task", "stderr_to_stdout")
DEFAULTS = {"timeout_min": 1440, "slurm_signal_delay_s": 300}
REQUEUES = 100  # of a job at its time limit
PORT = 29500
GRACE = 60.0  # s


class Job(submitit.helpers.Checkpointable):
    """Runs a task on the machines of a job. Before the time limit the training saves, and the job is queued again."""

    def __init__(self, task: Task, launch: Launch):
        self.task, self.launch = task, launch

    def __call__(self) -> None:
        job = submitit.JobEnvironment()
        launch = self.launch
        if launch.num_machines > 1:
            port = PORT + int(job.job_id) % 1000
            launch = launch._replace(machine_rank=job.node, dist_url=f"tcp://{job.hostnames[0]}:{port}")
        try:
            self.task.run(launch)
        except UserError:
            time.sleep(GRACE)  # a training that saved and ended at Slurm's signal: the first machine requeues the job
            raise

    def __submitit_checkpoint__(self) -> "submitit.helpers.DelayedSubmission":
        stop_running()
        return submitit.helpers.DelayedSubmission(self)


def parameters(words: Sequence[str]) -> dict:
    """submitit's parameters from KEY=VALUE words. UserError for other words."""
    found, own = dict(DEFAULTS), {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise UserError(f"--slurm {word}: give KEY=VALUE, such as partition=gpu or timeout_min=1440.")
        known = key in GENERIC or key.startswith("slurm_")
        (found if known else own)[key] = int(value) if value.isdecimal() else value
    return found | {"slurm_additional_parameters": own}


def submit(tasks: Mapping[Task, Sequence[Task]], launch: Launch, words: Sequence[str], *, output: Path) -> list[str]:
    """Submit what is neither finished nor submitted, and return; a line for each task.

    ``output/slurm`` has the logs and jobs.json, {task: job}, by which a later call knows jobs that still wait or run.
    """
    require_files(tasks)
    common = parameters(words)
    folder = output / "slurm"
    notes = folder / "jobs.json"
    jobs = read_note(notes, kind=dict[str, str], remedy="remove it if none of its jobs waits or runs") or {}
    # Jobs read this package, which is not installed, from the folder above.
    paths = [str(ROOT / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    lines, waiting = [], {}
    for task, needs in tasks.items():
        known = jobs.get(task.name)
        if task.done() and not any(need in waiting for need in needs):
            lines.append(f"{task.name}: finished")
            continue
        if known and not submitit.SlurmJob(str(folder / "%j"), known).done():
            waiting[task] = known
            lines.append(f'{task.name}: job {known} waits or runs; if it is lost, set it to "" in {notes}')
            continue
        after = [waiting[need] for need in needs if need in waiting]
        waiting[task] = jobs[task.name] = _submit(task, launch, common, after=after, folder=folder)
        write_json(notes, jobs, indent=1)
        lines.append(f"{task.name}: job {jobs[task.name]}" + (f", after {', '.join(after)}" if after else ""))
    return lines


def _submit(task: Task, launch: Launch, common: Mapping, *, after: Sequence[str], folder: Path) -> str:
    """The number of a new job. UserError if there is no Slurm here, or if it refuses the job."""
    machines, gpus = (1, 1) if isinstance(task, Preparation) else (launch.num_machines, launch.num_gpus)
    own = common["slurm_additional_parameters"]
    if after:
        own = own | {"dependency": f"afterok:{':'.join(after)}", "kill-on-invalid-dep": "yes"}
    try:
        executor = submitit.AutoExecutor(folder=str(folder / "%j"), cluster="slurm", slurm_max_num_timeout=REQUEUES)
        executor.update_parameters(
            **common | {"slurm_additional_parameters": own},
            name=task.name, nodes=machines, tasks_per_node=1, gpus_per_node=gpus,
            slurm_srun_args=["--kill-on-bad-exit=1"],  # else machines wait for one that has failed
        )  # fmt: skip
        return executor.submit(Job(task, launch)).job_id
    except (RuntimeError, NameError) as error:  # submitit's: no srun, sbatch's refusal; an unknown parameter
        raise UserError(f"--slurm: {error}") from error
