"""Do a training step again that ended in something that is no finite number, and say where it shows.

    python scripts/replay_failure.py outputs/RUN/failure.pt

failure.pt holds the state before the step, its images, levels, noise and the state of the random generators: what is
computed here is what was computed then.
"""

import argparse

import torch

from diffuse.replay import replay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("failure", help="the failure.pt of a run")
    parser.add_argument("--trust", nargs="*", default=[], help="packages of your own that the run's config names")
    arguments = parser.parse_args()
    step = replay(arguments.failure, arguments.trust)
    finite = torch.isfinite(step.losses)
    print(
        f"step {step.step}: {int((~finite).sum())} of {len(finite)} losses are not finite; "
        f"the gradient's norm is {step.norm:.4g}"
    )
    for t, loss in sorted(zip(step.levels.tolist(), step.losses.tolist(), strict=True), key=lambda pair: pair[0]):
        print(f"  t = {t:4d}   loss {loss:.6g}")
    for name, weight in step.net.named_parameters():
        if not torch.isfinite(weight).all():
            print(f"  weights of {name} are not finite, and were so before the step")
        elif weight.grad is not None and not torch.isfinite(weight.grad).all():
            print(f"  gradient of {name} is not finite")


if __name__ == "__main__":
    main()
