"""AdamW (Loshchilov and Hutter 2019), without the compiler that torch's own loads."""

from inspect import unwrap
from typing import Any

import torch


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
