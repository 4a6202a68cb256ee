"""What a command loads before it begins."""

import hydra  # noqa: F401
import torch._dynamo
import torch.utils.tensorboard  # noqa: F401

import diffuse.cli.task
import diffuse.commands.eval
import diffuse.commands.sample
import diffuse.commands.train  # noqa: F401
