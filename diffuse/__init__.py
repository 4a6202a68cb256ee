"""Train, sample and score diffusion models from the command line; see README.md for the map of the house."""

__version__ = "0.1.0"
