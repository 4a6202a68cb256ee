"""AdamW (Loshchilov and Hutter 2019), without the compiler that torch's own loads."""

from collections.abc import Mapping
from inspect import unwrap
from typing import Any

import torch
from torch import nn

from diffuse.options.nested import Optim
from diffuse.runs.checkpoint import check_shapes
from diffuse.system.errors import UsageError

MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW: one operation for all parameters, which a found_inf of 1 turns into none.

    torch's optimizers tell its compiler to stay out of their methods, and import it for that at the first call: more
    than a second, of every command. Here no optimizer is called from compiled code, and its methods are used without.
    """

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))

    def __init__(self, parameters: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0):
        super().__init__(parameters, lr, betas, weight_decay=weight_decay, fused=True)


def load_moments(optimizer: torch.optim.Optimizer, net: nn.Module, states: Mapping[int, Any] | None) -> None:
    """Give the optimizer the moments and numbers of steps of a checkpoint; None: those of one without a step.

    Raises ValueError where they do not fit the parameters.
    """
    optimizer.state.clear()
    if states is None:
        return
    for number, weight in enumerate(net.parameters()):
        if not weight.requires_grad:
            continue
        state = states[number]
        check_shapes(state, {"step": (), **dict.fromkeys(MOMENTS, weight.shape)}, f"optimizer state {number}")
        # In the memory layout of the weight, which may differ from that on the device of the checkpoint: fused AdamW
        # reads both side by side.
        copies = {name: torch.empty_like(weight).copy_(state[name]) for name in MOMENTS}
        optimizer.state[weight] = {"step": state["step"].to(weight.device, copy=True), **copies}


def betas_of(optim: Optim) -> tuple[float, float]:
    """AdamW's two decay rates. Raises UsageError where there are more or fewer."""
    if len(optim.betas) != 2:
        raise UsageError(f"optim.betas must be two numbers, such as [0.9, 0.999], not {optim.betas}")
    return optim.betas[0], optim.betas[1]
