"""The keys `edit.*` of `diffuse sample`; `runs.editing` makes of them what images begin with."""

from dataclasses import dataclass
from typing import Annotated

from diffuse.options.keys import key


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
