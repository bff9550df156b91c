"""Several processes that train together (DDP), and the one of them that leads: it prunes, records and speaks."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed

from pipeline.ground.errors import PipelineError, SettingsError

Result = TypeVar("Result")
PATIENCE = timedelta(days=7)
"""How long a process waits for another: one may wait for the training of a round 0 by somebody else."""
LOST = "another process of this run has ended; the same command goes on from the last finished epoch"


@dataclass(frozen=True)
class Ranks:
    """This process's number among ``world`` that do the same; 0 leads."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def from_leader(self, make: Callable[[], Result]) -> Result:
        """What the leader makes, on all; an exception there is raised on all."""
        if self.world == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.leads:
            try:
                outcome = [make(), None]
            except Exception as error:
                outcome = [None, error]
        torch.distributed.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def agree(self, digest: str, what: str) -> None:
        """Compares a digest on all processes.

        Raises:
            PipelineError: on all, if one differs.
        """
        if self.world == 1:
            return
        digests: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(digests, digest)
        if others := [str(rank) for rank, other in enumerate(digests) if other != digests[0]]:
            raise PipelineError(f"{what} of process {', '.join(others)} of {self.world} differ from those of process 0")


ALONE = Ranks()


def follows(devices: int, nodes: int) -> bool:
    """Whether this process was started to follow another."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))
    return devices * nodes > 1 and any(rank != "0" for rank in ranks)


@contextmanager
def together(devices: int, nodes: int) -> Iterator[Ranks]:
    """Starts the other processes (the same command, once for each device) and connects all, to the end of the block.

    On several nodes the command has been started on each, by torchrun or Slurm. If the block fails here, the others
    are stopped.

    Raises:
        SettingsError: if the machine has fewer devices, or nothing has started the command on the other nodes.
    """
    if devices * nodes == 1:
        yield ALONE
        return
    if nodes > 1 and not {"TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "MASTER_ADDR"} & set(os.environ):
        raise SettingsError(
            [f"training.nodes: got {nodes}, which takes the same command on each node, started by torchrun or srun"]
        )
    import lightning_fabric
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.launchers import subprocess_script

    gpus = torch.cuda.device_count()
    if devices > (available := gpus or len(os.sched_getaffinity(0))):
        raise SettingsError(
            [f"training.devices: got {devices}, takes at most {available}, the {'GPUs' if gpus else 'cores'} there are"]
        )
    if follows(devices, nodes):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    for library in ("lightning_fabric", "pytorch_lightning"):
        logging.getLogger(library).setLevel(logging.WARNING)
    known = threading.Event()

    def lost(observer: Any) -> None:
        """In the place of Lightning's, which kills this process without a word seconds after another has ended."""
        if known.wait(5):
            return
        for process in observer._child_processes:
            process.kill()
        print(LOST, file=sys.stderr, flush=True)
        os._exit(1)  # the main thread may hang in an operation that waits for the other

    subprocess_script._ChildProcessObserver._terminate_all = lost  # type: ignore[method-assign, assignment]
    strategy = DDPStrategy(timeout=PATIENCE)
    fabric = lightning_fabric.Fabric(devices=devices, num_nodes=nodes, strategy=strategy)
    fabric.launch()
    started = getattr(strategy.launcher, "procs", [])
    try:
        yield Ranks(fabric.global_rank, fabric.world_size)
    except BaseException as error:
        known.set()
        for process in started:
            process.kill()
        if isinstance(error, torch.distributed.DistError) or "onnection" in str(error):
            raise PipelineError(LOST) from error
        raise
    finally:
        for process in started:
            process.wait()
        torch.distributed.destroy_process_group()
