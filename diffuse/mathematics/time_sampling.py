"""How the times of a training batch are drawn, each with its importance weight.

The importance weight multiplies an image's loss, so that its expectation is that of uniform times. Each class is a
module whose buffers are its state, so that a checkpoint can hold it.
"""

import torch
from torch import Tensor, nn

from diffuse.mathematics.schedules import Schedule
from diffuse.system.errors import Refused, check


class UniformTimes(nn.Module):
    """Each level 1 ... T equally likely (Ho et al. 2020, algorithm 1); in continuous time each time in [t_min, T]."""

    def __init__(self, schedule: Schedule):
        super().__init__()
        self.schedule = schedule

    def draw(self, count: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Times [count] and their importance weights [count], here 1."""
        schedule = self.schedule
        if schedule.discrete:
            t = torch.randint(1, schedule.T + 1, (count,), device=device)
        else:
            t = schedule.t_min + (schedule.T - schedule.t_min) * torch.rand(count, device=device)
        return t, torch.ones(count, device=device)

    def learn(self, t: Tensor, losses: Tensor) -> None:
        """Nothing: the distribution of times does not depend on losses."""


class LogNormalTimes(UniformTimes):
    """ln rho from N(mean, std^2), with rho = sigma / alpha: Karras et al. 2022, table 1.

    mean  of ln rho
    std   of ln rho

    The importance weight is 1: the distribution of rho is part of EDM's loss.
    """

    def __init__(self, schedule: Schedule, mean: float = -1.2, std: float = 1.2):
        super().__init__(schedule)
        if schedule.discrete:
            raise Refused("schedule", "must be continuous for LogNormalTimes, not with levels: choose times=uniform")
        check(std > 0, "std", "positive", std)
        self.mean, self.std = mean, std

    def draw(self, count: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        log_rho = self.mean + self.std * torch.randn(count, device=device)
        t = self.schedule.time(-2 * log_rho).clamp(self.schedule.t_min, self.schedule.T)
        return t, torch.ones(count, device=device)


class ImportanceTimes(UniformTimes):
    """Levels with large losses are drawn more often: importance sampling of Nichol and Dhariwal 2021, section 3.3.

    p_t is proportional to sqrt(E[L_t^2]) over the last `history` losses of each level, mixed with a little of the
    uniform distribution. The importance weight is 1 / (T p_t). Until every level has its history, levels are uniform.

    history        number of losses of each level that are kept
    uniform_share  the share of the uniform distribution, above 0 and at most 1
    """

    losses: Tensor
    seen: Tensor

    def __init__(self, schedule: Schedule, history: int = 10, uniform_share: float = 0.001):
        super().__init__(schedule)
        if not schedule.discrete:
            raise Refused("schedule", "must have levels for ImportanceTimes, one history each: choose times=uniform")
        check(history >= 1, "history", "at least 1", history)
        check(0 < uniform_share <= 1, "uniform_share", "above 0 and at most 1", uniform_share)
        self.uniform_share = uniform_share
        self.register_buffer("losses", torch.zeros(schedule.T + 1, history))
        self.register_buffer("seen", torch.zeros(schedule.T + 1, dtype=torch.long))

    def probabilities(self) -> Tensor:
        """p_t for t = 1 ... T, in [T]."""
        moments = self.losses[1:].square().mean(1).sqrt()
        share = (1 - self.uniform_share) * moments / moments.sum().clamp(min=torch.finfo(moments.dtype).tiny)
        learned = (share + self.uniform_share / self.schedule.T) / (share.sum() + self.uniform_share)
        full = (self.seen[1:] >= self.losses.shape[1]).all()
        return torch.where(full, learned, torch.full_like(learned, 1 / self.schedule.T))

    def draw(self, count: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        p = self.probabilities()
        index = torch.multinomial(p, count, replacement=True)
        return (index + 1).to(device), (1 / (self.schedule.T * p[index])).to(device)

    @torch.no_grad()
    def learn(self, t: Tensor, losses: Tensor) -> None:
        """Put the losses [b], in their order, into the histories of their levels t [b], in place of the oldest ones.

        0 is not a level: losses at t = 0 are ignored.
        """
        kept = self.losses.shape[1]
        t, order = t.sort(stable=True)
        rank = torch.arange(len(t), device=t.device) - torch.searchsorted(t, t)
        drawn = torch.zeros_like(self.seen).index_add_(0, t, torch.ones_like(t))
        # Of more losses of a level than a history holds, the last ones count; the others go to row 0, not a level.
        row = torch.where(rank >= drawn[t] - kept, t, 0)
        self.losses[row, (self.seen[t] + rank) % kept] = losses[order].float()
        self.seen += drawn
        self.losses[0] = 0
        self.seen[0] = 0
