"""What an export is made of, whatever the format."""

from dataclasses import dataclass

from diffuse.data.images import ImageKind
from diffuse.networks.unet import UNet
from diffuse.options.keys import Node


@dataclass(frozen=True)
class Exported:
    """A trained network, and what a format may have to say about it.

    unet        its options, with the defaults of those that its config does not mention
    schedule    the option of the group `schedule`; betas: its table, None without levels
    prediction  the name of what the network predicts
    variance    of the reverse steps
    spacing     of the times of fewer steps than levels
    clip        whether the predicted x0 is clipped: true, false or dynamic; percentile: of dynamic
    """

    net: UNet
    kind: ImageKind
    unet: Node
    schedule: Node
    betas: list[float] | None
    prediction: str
    variance: str
    clip: bool | str
    percentile: float
    spacing: str
