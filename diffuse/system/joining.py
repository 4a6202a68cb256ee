"""How many processes compute a command, which GPU each of them takes, and how they find each other."""

import os
import platform
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from diffuse.system.distributed import FOLLOW, Processes
from diffuse.system.errors import Refused, UsageError, UserError, check
from diffuse.system.ranks import local_place, rank_here, started

WAIT = 300.0  # seconds for the other processes to come


def check_processes(processes: object) -> None:
    """Raise Refused unless this is a number of processes, "all" or None."""
    number = isinstance(processes, int) and not isinstance(processes, bool) and processes >= 1
    check(number or processes in ("all", None), "processes", "a number, all (one for each GPU) or null", processes)


def processes_to_start(device: Mapping[str, Any]) -> int:
    """How many processes the options of a device ask for; 1 in a process that was started together with others."""
    asked, kind = device.get("processes"), device.get("kind")
    try:
        check_processes(asked)
    except Refused as error:
        raise UsageError(f"device.{error}") from error
    if asked in (None, 1) or started() > 1:
        return 1
    on_gpus = kind == "cuda" or (kind == "auto" and torch.cuda.is_available())
    gpus = torch.cuda.device_count() if on_gpus else 0
    if asked == "all":
        if not gpus:
            raise UserError("device.processes=all is one for each GPU, and there is none here: give a number")
        return gpus
    if kind == "mps" or (kind == "auto" and not on_gpus and torch.backends.mps.is_available()):
        raise UserError(f"device.processes={asked} needs as many devices, and there is one mps device: leave it out")
    if on_gpus and asked > gpus:
        instead = "device.processes=all" if gpus else "device=cpu"
        raise UserError(f"device.processes={asked} needs as many GPUs, and there are {gpus}: set {instead}")
    return int(asked)


def gpu_of(local_rank: int, local_count: int) -> int:
    """The GPU of a process. Raises UserError where a machine has fewer GPUs than processes.

    Slurm may show each of its tasks one GPU only, which is number 0 for all of them.
    """
    gpus = torch.cuda.device_count()
    by_slurm = "SLURM_STEP_GPUS" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    own = gpus == 1 and by_slurm and "CUDA_VISIBLE_DEVICES" in os.environ
    if own:
        return 0
    if gpus < local_count:
        raise UserError(
            f"{local_count} processes need as many GPUs, and this machine has {gpus}: start {gpus}, or set device=cpu"
        )
    return local_rank


_joined: Processes | None = None


def join(wait: float = WAIT) -> Processes:
    """The processes that were started with this one; the first call waits until all of them are there.

    Raises UserError where one does not come within `wait` seconds.
    """
    global _joined
    if _joined is None:
        _joined = _join(wait) if started() > 1 else Processes()
    return _joined


def processes_of(device: Mapping[str, Any]) -> Processes:
    """The processes that were started with this one, for which a command waits as the options of its device say."""
    return join(float(device.get("wait") or WAIT))


def leave() -> None:
    """Close the connections to the other processes."""
    global _joined
    _joined = None
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _join(wait: float) -> Processes:
    rank, count = rank_here(), started()
    local_rank, local_count = local_place()
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=wait))))
    except (dist.DistError, ValueError) as error:
        raise UserError(_why_alone(str(error), rank, count, place, wait)) from error
    _refuse_missing(store, rank, count, wait)
    dist.init_process_group("gloo", store=PrefixStore("all", store), rank=rank, world_size=count, timeout=FOLLOW)
    found = Processes(rank, count, local_rank, local_count, PrefixStore("published", store))
    backends = {"cpu": "gloo", **({"cuda": "nccl"} if torch.cuda.is_available() and dist.is_nccl_available() else {})}
    found.levels = {device: _levels(found, backend) for device, backend in backends.items()}
    return found


def _levels(processes: Processes, backend: str) -> list[Any]:
    """The groups in which a process adds up tensors: those of its machine, and those of its place on every machine.

    Where machines have different numbers of processes, or their ranks are mixed, one group of all.
    """
    rank, count, local = processes.rank, processes.count, processes.local_count
    places = processes.of_all((local, rank % local == processes.local_rank))
    if count % local or set(places) != {(local, True)}:
        local = count
    machines = [range(first, first + local) for first in range(0, count, local)]
    across = [range(first, count, local) for first in range(local)]
    groups = []
    for level in (machines, across):
        made = [(ranks, dist.new_group([*ranks], backend=backend)) for ranks in level if len(ranks) > 1]
        groups += [group for ranks, group in made if rank in ranks]
    return groups


def _why_alone(reason: str, rank: int, count: int, place: str, wait: float) -> str:
    if "EADDRINUSE" in reason:
        return f"rank 0 of {count} cannot listen at {place}: that port is taken. Set another MASTER_PORT"
    if rank == 0:
        return (
            f"fewer than {count} processes came to {place} within {wait:g} s (device.wait): "
            "look at the machines of the others, and at a firewall between them"
        )
    return f"rank 0 of {count} did not answer at {place} within {wait:g} s (device.wait)"


def _refuse_missing(store: Any, rank: int, count: int, wait: float) -> None:
    """Raise UserError, with their ranks, unless all processes come within `wait` seconds."""
    store.set(f"here/{rank}", platform.node())
    keys = [f"here/{each}" for each in range(count)]
    try:
        store.wait(keys, timedelta(seconds=wait))
    except RuntimeError as error:
        missing = [str(each) for each, key in enumerate(keys) if not store.check([key])]
        ranks = f"rank {missing[0]}" if len(missing) == 1 else f"ranks {', '.join(missing)}"
        raise UserError(f"{ranks} of {count} did not come within {wait:g} s (device.wait)") from error
