"""Keys below a name, as `optim.lr` and `edit.image`: part of the schema of one command each."""

from dataclasses import dataclass
from typing import Annotated

from diffuse.options.keys import key
from diffuse.options.score_names import SAMPLE_SCORES

DECAYS = ("none", "linear", "cosine", "inverse_sqrt")
AT_LEAST_1 = "[1, inf)"
EXPORTS = ("diffusers", "safetensors", "improved_diffusion")
# Formats of other programs' weights, in the order in which they are looked for.
FORMATS = ("diffusers", "ddim", "pytorch_ddpm", "improved_diffusion", "guided_diffusion", "consistency_models")
WHILE_TRAINING = tuple(name for name in SAMPLE_SCORES if name != "memorisation")


@dataclass
class Optim:
    lr: Annotated[float, key("peak learning rate of AdamW", "(0, inf)")]
    warmup: Annotated[int, key("steps of linear warm-up", "[0, inf)")]
    decay: Annotated[
        str,
        key("how the learning rate falls over the whole run", choices=DECAYS),
    ]
    constant: Annotated[
        int, key("steps after which decay=inverse_sqrt begins: sqrt(constant / step)", AT_LEAST_1, before=1000)
    ]
    clip: Annotated[float, key("largest gradient norm (inf: no clipping)", "(0, inf]")]
    weight_decay: Annotated[float, key("weight decay of AdamW", "[0, inf)")]
    betas: Annotated[
        list[float], key("decay of AdamW's averages of the gradient and of its square", "[0, 1)", before=[0.9, 0.999])
    ]


@dataclass
class Augment:
    probability: Annotated[
        float,
        key(
            "of each change to an image, which the network is told: 0.12 in EDM, for small data sets",
            "[0, 1]",
            before=0.0,
        ),
    ]


@dataclass
class Noise:
    nearest: Annotated[
        int, key("take the nearest to the image of so many noises (immiscible diffusion)", AT_LEAST_1, before=1)
    ]
    perturbation: Annotated[
        float, key("noise on the input that is not to be predicted: 0.1 in input perturbation", "[0, 1)", before=0.0)
    ]


@dataclass
class Ema:
    decay: Annotated[float, key("decay of the averaged weights, from which samples are drawn", "[0, 1)")]
    lengths: Annotated[
        list[float],
        key(
            "lengths of power averages (EDM2), from which ema.length is chosen after training: [0.05,0.1]; [] for none",
            "(0, 0.288)",
            before=[],
        ),
    ]
    snapshots: Annotated[int, key("how often these averages are kept, in half precision", "[2, inf)", before=20)]


@dataclass
class EmaLength:
    length: Annotated[
        float | None,
        key("0: the weights as trained; 0.05 to 0.15: a power average, of runs with ema.lengths; null: the run's own"),
    ]


@dataclass
class Init:
    ckpt: Annotated[str | None, key("begin with the weights of a run, a file, or other programs' weights", before=None)]
    weights: Annotated[str, key("the averaged weights or the trained ones", choices=("ema", "model"), before="ema")]
    head: Annotated[str, key("keep the output layer, or begin with a new one", choices=("keep", "new"), before="keep")]
    freeze: Annotated[list[str], key("names of parameters that stay as they are, such as down.*", before=[])]


@dataclass
class Log:
    every: Annotated[int, key("steps between lines of metrics", AT_LEAST_1, may_change=True)]


@dataclass
class Images:
    every: Annotated[int, key("steps between sample grids, or accuracies of a classifier", AT_LEAST_1, may_change=True)]
    count: Annotated[int, key("images in a grid", AT_LEAST_1, may_change=True)]


@dataclass
class Checkpoint:
    every: Annotated[int, key("steps between checkpoints", AT_LEAST_1, may_change=True)]
    keep: Annotated[int, key("number of newest checkpoints that are kept", AT_LEAST_1, may_change=True)]
    milestone_every: Annotated[int | None, key("steps between checkpoints kept for good", AT_LEAST_1, may_change=True)]


@dataclass
class EvalWhileTraining:
    every: Annotated[int | None, key("steps between scores of samples (null: none)", AT_LEAST_1, may_change=True)]
    n: Annotated[int, key("images drawn for these scores", "[2, inf)")]
    metrics: Annotated[
        list[str], key("scores; the first one decides which checkpoint is best.pt", choices=WHILE_TRAINING)
    ]


@dataclass
class Edit:
    image: Annotated[str | None, key("an image to edit, or a folder of images, taken in turn")]
    strength: Annotated[
        float | None,
        key(
            "share of the sampler's steps that is walked, from the image with noise (null: 0.6, with a mask 1)",
            "(0, 1]",
        ),
    ]
    mask: Annotated[str | None, key("image of the run's size: white pixels are painted anew, black ones kept exactly")]
    interpolate: Annotated[list[int] | None, key("seeds, between whose first images noise is interpolated")]
    frames: Annotated[int | None, key("images from one seed to the next, both included (null: 9)", "[2, inf)")]
    encode: Annotated[bool, key("find the noise of which the sampler makes edit.image, and draw it again")]
    noise: Annotated[str | None, key("noise.npz of edit.encode to begin with; its rows are the seeds of interpolate")]


@dataclass
class Foreign:
    format: Annotated[
        str | None, key("format of the weights (null: recognised by their names)", choices=FORMATS, before=None)
    ]
    image_size: Annotated[int | None, key("size of the images, in pixels", AT_LEAST_1, before=None)]
    schedule: Annotated[str | None, key("an option of the group `schedule` with which they were trained", before=None)]
    levels: Annotated[int | None, key("number of its levels", AT_LEAST_1, before=None)]
    prediction: Annotated[
        str | None, key("what the network predicts (null: eps)", choices=("eps", "x0", "v", "mean"), before=None)
    ]
    variance: Annotated[
        str | None,
        key(
            "fixed variance of the reverse steps (null: fixed_large)",
            choices=("fixed_small", "fixed_large"),
            before=None,
        ),
    ]
    heads: Annotated[int | None, key("number of heads of attention", AT_LEAST_1, before=None)]
    head_channels: Annotated[int | None, key("width of a head, in place of their number", AT_LEAST_1, before=None)]
    attention_order: Annotated[
        str | None,
        key("order of the rows of q, k and v in guided_diffusion's weights", choices=("new", "legacy"), before=None),
    ]
    time_scale: Annotated[float | None, key("factor of the time that the network is given", before=None)]
    null_label: Annotated[
        bool | None, key("whether the last row of the labels is `no class`, for guidance (null: no)", before=None)
    ]
    dataset: Annotated[
        str | None, key("the data set that they were trained on, for names of classes and references", before=None)
    ]


@dataclass
class Ode:
    solver: Annotated[str, key("integrator; rk45 chooses its steps by their error", choices=("rk45", "rk4", "heun"))]
    tolerance: Annotated[float, key("relative and absolute tolerance of rk45", "(0, 1)")]
    steps: Annotated[int, key("steps of rk4 and heun, evenly spaced in log-SNR", AT_LEAST_1)]
    divergence: Annotated[
        str, key("estimated, or exact by one derivative a dimension", choices=("hutchinson", "exact"))
    ]
    probes: Annotated[int, key("random probes per image for hutchinson", AT_LEAST_1)]
    t_min: Annotated[float | None, key("time at which the flow begins (null: the smallest in training)")]
