"""Do a training step again that ended in NaN or infinite numbers, and say where they show.

    python scripts/replay_failure.py outputs/RUN/failure.pt

failure.pt holds the state before the step, its images, levels, noise and the state of the random generators: what is
computed here is what was computed then.
"""

import argparse
import sys

import torch

from diffuse.system.errors import UserError
from diffuse.training.failure import replay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("failure", help="the failure.pt of a run")
    parser.add_argument("--trust", nargs="*", default=[], help="packages of your own that the run's config names")
    arguments = parser.parse_args()
    try:
        step = replay(arguments.failure, arguments.trust)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    finite = torch.isfinite(step.losses)
    print(
        f"step {step.step}: {int((~finite).sum())} of {len(finite)} losses are not finite; "
        f"the gradient's norm is {step.norm:.4g}"
    )
    for t, loss in sorted(zip(step.levels.tolist(), step.losses.tolist(), strict=True), key=lambda pair: pair[0]):
        print(f"  t = {t:g}   loss {loss:.6g}")
    weights = dict(step.net.named_parameters())
    gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    for what, tensors in (("weights", weights), ("gradients", gradients)):
        broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
        listed = ", ".join(broken[:3]) + (" ..." if broken[3:] else "")
        print(f"{what}: {len(broken)} of {len(tensors)} tensors are not finite. {listed}")
    print(
        f"largest weight before the step: {max(float(weight.detach().abs().max()) for weight in weights.values()):.4g}"
    )


if __name__ == "__main__":
    main()
