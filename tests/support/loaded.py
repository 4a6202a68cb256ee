"""What commands load before they begin, and while they run."""

import matplotlib.figure  # noqa: F401
import torch._dynamo
import torch.utils.tensorboard  # noqa: F401
from PIL import Image

import diffuse.commands.eval
import diffuse.commands.sample
import diffuse.commands.train
import diffuse.sweeps.table  # noqa: F401
from diffuse.cli.task import compose

Image.init()
compose("train", "dataset=digits")  # Hydra looks for its plugins
