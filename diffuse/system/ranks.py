"""The place of this process among those that were started together, from the environment. Without torch.

torchrun, and launchers that do as it does, set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and
MASTER_PORT. https://docs.pytorch.org/docs/stable/elastic/run.html
"""

import os
import platform
import sys


def started() -> int:
    """How many processes were started together, this one included."""
    return int(os.environ.get("WORLD_SIZE") or 1) if "RANK" in os.environ else 1


def rank_here() -> int:
    """The number of this process among them, from 0."""
    return int(os.environ["RANK"]) if started() > 1 else 0


def local_place() -> tuple[int, int]:
    """The number of this process among those on this machine, and how many these are."""
    if started() == 1:
        return 0, 1
    return int(os.environ.get("LOCAL_RANK", rank_here())), int(os.environ.get("LOCAL_WORLD_SIZE", started()))


OURS = "diffuse-"  # begins the names of launches by `launcher`


def launch() -> str | None:
    """What all attempts of one elastic launch have in common; None without one.

    Another launch may have the same name where a user gives it to torchrun, or has numbers of processes again.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name in ("none", ""):  # torchrun's default with --master-addr: then its process is what stays the same
        return f"{platform.node()} {os.getppid()}"
    return name


def may_be_restarted() -> bool:
    """Whether an earlier attempt of this launch may have begun: torchrun counts them, our names are new each time."""
    return (launch() or "").startswith(OURS) or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def take_place_from_submitit() -> None:
    """Set torchrun's variables in a task of a job with several tasks that Submitit started."""
    submitit = sys.modules.get("submitit")
    if submitit is None or "RANK" in os.environ:
        return
    from submitit.helpers import TorchDistributedEnvironment

    if submitit.JobEnvironment().num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
