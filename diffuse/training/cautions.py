"""What is refused or warned of before a training, beside impossible formulas: choices that would train badly."""

from collections.abc import Mapping

import torch

from diffuse.mathematics import predictions
from diffuse.mathematics.likelihood import bits_per_dim, prior_term
from diffuse.mathematics.schedules import Schedule, TableSchedule
from diffuse.options.formulas import Formulas
from diffuse.options.keys import Node
from diffuse.system.errors import UsageError
from diffuse.system.files import CONFIGS
from diffuse.system.progress import log

MOST_LEFT = 0.1  # of the image at the last level, beside noise of 1, that needs no warning


def refuse_more_steps_than_levels(sampler: Node, schedule: Schedule) -> None:
    """Raise UsageError where the schedule is a table with fewer levels than the sampler of the grids has steps."""
    steps = sampler.get("steps")
    if isinstance(steps, int) and steps > schedule.T:
        raise UsageError(
            f"sampler.steps={steps} for the sample grids of the training is more than the {schedule.T} levels of the "
            f"schedule: set sampler.steps={schedule.T} or less"
        )


def refuse_large_targets(formulas: Formulas) -> None:
    """Raise UsageError where the network would have to predict numbers that grow with the noise, as v does on VE."""
    schedule = formulas.schedule
    if formulas.prediction.func is predictions.v and schedule.prior_std > 1:
        raise UsageError(
            f"prediction=v has targets alpha eps - sigma x0, and sigma reaches {schedule.prior_std:g} on this path: "
            "choose prediction=edm, eps or flow, or a schedule that preserves the variance"
        )


def warn_of_schedule(schedule: Schedule) -> None:
    """Warn where much of the image is left at the last level, or where the first levels take most of it."""
    alpha, sigma = schedule.alpha_sigma(torch.tensor(schedule.T, dtype=torch.float64))
    if alpha / sigma > MOST_LEFT:
        bits = bits_per_dim(prior_term(schedule, torch.ones(1, 1, 1, 1)), 1)
        log.warning(
            f"schedule: at the last level {float(alpha):.0%} of the image is left beside noise of standard deviation "
            f"{float(sigma):.2g}, and sampling begins with noise alone; L_T costs up to {float(bits):.2g} bits/dim"
        )
    if isinstance(schedule, TableSchedule) and bool((schedule.beta[1:].diff() < 0).any()):
        first, last = (f"{float(schedule.beta[t]):.2g}" for t in (1, -1))
        log.warning(f"schedule: beta falls with t (from {first} to {last}): the first levels take most of the image")


def refuse_recipe_of_other_data(choices: Mapping[str, str]) -> None:
    """Raise UsageError where a recipe of one data set is typed for another one of this program.

    A recipe `cifar10_fast` is of `cifar10`. Recipes and data sets of the user's own, and one's own images, go with any.
    """
    recipe, dataset = choices.get("recipe", ""), choices.get("dataset", "")
    known = {path.stem for path in (CONFIGS / "dataset").glob("*.yaml")} - {"folder", "npz"}
    of = next((name for name in sorted(known, key=len) if recipe == name or recipe.startswith(f"{name}_")), None)
    if of and dataset in known and dataset != of:
        raise UsageError(
            f"recipe={recipe} was measured on other images than dataset={dataset}: diffuse train dataset={of} "
            f"recipe={recipe}, or leave recipe out"
        )


def refuse_scores_of_a_classifier(every: int | None) -> None:
    """Raise UsageError where a classifier would be scored by its samples."""
    if every is not None:
        raise UsageError(
            f"eval.every={every} scores samples, and a classifier draws none: leave it out. Its accuracy is logged "
            "every images.every steps"
        )
