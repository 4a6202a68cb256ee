"""The keys that every option of a group has: of every sampler, of every data set of images."""

from dataclasses import dataclass
from typing import Annotated, Any

from diffuse.options.keys import key


@dataclass
class SamplerKeys:
    """The keys of every option of the group `sampler`; its other keys are arguments of its function."""

    steps: Annotated[
        int | None,
        key("steps from noise to image (null: every level; method, training, auto: as chosen)"),
    ]
    spacing: Annotated[
        str | None,
        key(
            "uniform, to_zero, leading, quadratic, ddim_quadratic, log_snr, karras, consistency, or searched "
            "(null: the run's)"
        ),
    ]
    times: Annotated[Any, key("your own grid in place of steps and spacing: falling times, or a file with them")]
    clip: Annotated[
        bool | str | None,
        key("clip the predicted x0 to [-1, 1]; dynamic: by its own range (null: as in training, whose default is yes)"),
    ]
    percentile: Annotated[
        float | None, key("of clip=dynamic: the quantile of |x0| that is scaled to 1 (null: 0.995)", "(0, 1]")
    ]
    eps_scale: Annotated[
        Any, key("divide the predicted noise by this number, or by [a, b], from a at data to b at noise (null: 1)")
    ]


@dataclass
class DatasetKeys:
    """The keys of every data set of images; its other keys are arguments of its function."""

    pad: Annotated[int, key("width of the black border that the network sees around each image")]
    flip: Annotated[bool, key("mirror images at random while training")]
