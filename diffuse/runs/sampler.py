"""A sampler as the config group `sampler` describes it: its function with its options, and its grid of times."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from diffuse.data.images import ImageKind
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.spacings import SPACINGS, time_grid
from diffuse.mathematics.variances import Variance
from diffuse.options.build import about, bind, checked_options
from diffuse.options.formulas import Formulas
from diffuse.options.keys import Node
from diffuse.options.schema import SamplerKeys
from diffuse.system.errors import pick

# A function that is called as a network is -> a denoiser of it, with everything that is wrapped around it.
DenoiserOf = Callable[[Callable[..., Tensor]], Denoiser]


class Sampler:
    """A sampler with its options and time grid.

    walk         the function, which takes a denoiser, x, times and y
    times        its grid, from T to 0
    clip         whether the denoiser that it is given clips the predicted x0
    evaluations  how often it calls the network for each image
    record       what samples depend on, for the files beside them

    analytic makes the analytic variance for a grid; without it, that variance is refused.
    """

    def __init__(
        self,
        node: Node,
        formulas: Formulas,
        kind: ImageKind,
        trust: Sequence[str] = (),
        analytic: Callable[[list[float]], Variance] | None = None,
    ):
        common = {key: node.get(key) for key in SamplerKeys.__dataclass_fields__}
        own = {key: value for key, value in node.items() if key not in common and key != "variance"}
        keys = SamplerKeys(**checked_options(SamplerKeys, common, "sampler"))
        self.walk: partial[Iterator[Tensor]] = bind(own, "sampler", trust)
        with about("sampler"):
            self.times = time_grid(formulas.schedule, keys.steps, pick(SPACINGS, "sampler.spacing", keys.spacing))
        self.name = self.walk.func.__name__
        self.clip = kind.bounded if keys.clip is None else keys.clip
        self.record = {**node, "steps": len(self.times) - 1, "clip": self.clip}
        if "variance" in node:
            estimated = analytic and partial(analytic, self.times.tolist())
            variance = formulas.reverse_variance(node["variance"], "sampler.variance", estimated)
            self.walk = partial(self.walk, variance=variance)
            self.record["variance"] = formulas.variance if node["variance"] is None else node["variance"]
        with about("sampler"):
            self.evaluations = network_calls(self.walk, formulas.denoiser_of, self.times, formulas.outputs)

    def times_from(self, start: float | None) -> Tensor:
        """The grid from the time `start` on, which is walked to first: for images that are noisy only up to there."""
        if start is None:
            return self.times
        begin = torch.tensor([start], dtype=torch.float64)
        return torch.cat([begin, self.times[self.times < begin]])


def network_calls(walk: Callable[..., Iterator[Tensor]], denoiser_of: DenoiserOf, times: Tensor, outputs: int) -> int:
    """How often a sampler calls the network for each image: counted on one that answers at once.

    denoiser_of makes the denoiser, so that the calls of all that is wrapped around the network are counted; outputs is
    how many tensors like its input the network answers with.
    """
    calls = 0

    def count(x: Tensor, time: Tensor, y: Tensor | None) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.cat([x] * outputs, dim=1)

    for _ in walk(denoiser_of(count), torch.ones(1, 1, 1, 1), times):
        pass
    return calls
