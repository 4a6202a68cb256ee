"""A sampler as the config group `sampler` describes it: a function with its options, and a grid of times."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from diffuse.data.images import ImageKind
from diffuse.mathematics.denoiser import Denoiser
from diffuse.mathematics.samplers.langevin import REVERSE_DIFFUSION
from diffuse.mathematics.spacings import SPACINGS, time_grid
from diffuse.mathematics.variances import Variance
from diffuse.options.build import about, bind, checked_options
from diffuse.options.formulas import Formulas
from diffuse.options.keys import Node
from diffuse.options.schema import SamplerKeys
from diffuse.system.errors import UsageError, pick

Estimate = Callable[[list[float]], Variance]  # makes the analytic variance for a time grid
DenoiserOf = Callable[[Callable[..., Tensor]], Denoiser]


class Sampler:
    """A sampler with its options and time grid.

    walk         the function of (denoiser, x, times, y)
    times        the time grid, from T to 0
    clip         whether the denoiser must clip the predicted x0
    evaluations  the network calls that an image takes
    record       the options, for the files beside the samples

    Without the argument `analytic`, the analytic variance is refused.
    """

    def __init__(
        self, node: Node, formulas: Formulas, kind: ImageKind, trust: Sequence[str], analytic: Estimate | None = None
    ):
        common = {key: node.get(key) for key in SamplerKeys.__dataclass_fields__}
        own = {key: value for key, value in node.items() if key not in common and key != "variance"}
        keys = SamplerKeys(**checked_options(SamplerKeys, common, "sampler"))
        self.walk: partial[Iterator[Tensor]] = bind(own, "sampler", trust)
        with about("sampler"):
            spacing = keys.spacing or formulas.spacing
            self.times = time_grid(formulas.schedule, keys.steps, pick(SPACINGS, "sampler.spacing", spacing))
        self.name = self.walk.func.__name__
        self.clip = kind.bounded if keys.clip is None else keys.clip
        self.record = {**node, "steps": len(self.times) - 1, "spacing": spacing, "clip": self.clip}
        if node.get("predictor") == REVERSE_DIFFUSION:
            if node.get("variance") is not None:
                raise UsageError(
                    f"sampler.variance is of sampler.predictor=ancestral; {REVERSE_DIFFUSION} has the forward process's"
                )
        elif "variance" in node:
            estimated = analytic and partial(analytic, self.times.tolist())
            variance = formulas.reverse_variance(node["variance"], "sampler.variance", estimated)
            self.walk = partial(self.walk, variance=variance)
            self.record["variance"] = formulas.variance if node["variance"] is None else node["variance"]
        with about("sampler"):
            self.evaluations = network_calls(self.walk, formulas.denoiser_of, self.times, formulas.outputs)

    def times_from(self, start: float | None) -> Tensor:
        """The time grid from `start` on: `start` itself, then the times below it; None: the whole grid."""
        if start is None:
            return self.times
        return torch.cat([torch.tensor([start], dtype=torch.float64), self.times[self.times < start]])


def network_calls(walk: Callable[..., Iterator[Tensor]], denoiser_of: DenoiserOf, times: Tensor, outputs: int) -> int:
    """How often a sampler calls the network for each image, counted on a network that returns its input.

    denoiser_of  makes the denoiser of a network, with everything that wraps it, so that all its calls are counted
    outputs      output tensors of the network per image
    """
    calls: list[Tensor] = []

    def network(x: Tensor, time: Tensor, y: Tensor | None) -> Tensor:
        calls.append(time)
        return torch.cat([x] * outputs, dim=1)

    list(walk(denoiser_of(network), torch.ones(1, 1, 1, 1), times))
    return len(calls)
