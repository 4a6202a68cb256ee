"""What many GPUs would bring, on paper: the time of a step from a measured one and from given speeds of the links.

    python scripts/scaling.py

A step takes images / rate. The gradients of P processes are 2 (P - 1) / P times their bytes on each link, after the
backward pass (as the program sends them), or hidden behind it as far as it is long enough. The rate of 550 million
parameters is not measured: that of 36 million, by the number of parameters, and by 4 for four times the pixels.
"""

import argparse
from dataclasses import dataclass

BACKWARD = 0.6  # of a step's time, in which gradients could be sent already


@dataclass(frozen=True)
class Machine:
    """gpus: in one machine; inside, between: bytes a second that each GPU sends within a machine and between machines;
    latency: seconds until a message has come."""

    gpus: int = 8
    inside: float = 200e9  # what NCCL reaches over the NVLink of H100 machines
    between: float = 40e9  # of 400 Gbit/s for each GPU
    latency: float = 15e-6

    def seconds(self, size: float, count: int) -> float:
        """The time to add up tensors of so many bytes over `count` GPUs: within machines first, then between them."""
        inside = min(count, self.gpus)
        machines = count // inside
        found = 2 * (inside - 1) / inside * size / self.inside + 2 * self.latency * (inside > 1)
        return found + 2 * (machines - 1) / machines * size / inside / self.between + 2 * self.latency * (machines > 1)


def efficiency(machine: Machine, step: float, size: float, count: int, hidden: bool = False) -> float:
    """The rate of `count` GPUs by that of one times `count`, on the same number of images for each."""
    sending = machine.seconds(size, count)
    return step / (step + (max(0.0, sending - BACKWARD * step) if hidden else sending))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=7700, help="images/s of one GPU with 36 million parameters")
    options = parser.parse_args()
    machine, counts = Machine(), (2, 8, 16, 64)
    networks = {"36M": (36e6, options.rate), "550M": (550e6, options.rate * 36 / 550 / 4)}
    columns = " | ".join(f"{count} GPUs" for count in counts)
    print(f"| parameters | images each | step | sent in | {columns} | {counts[-1]}, behind the backward pass |")
    print(f"|---|--:|--:|---|{'--:|' * (len(counts) + 1)}")
    for name, (parameters, rate) in networks.items():
        for images in (2, 16, 64, 256):
            step = images / rate
            for kind, size in (("float32", 4), ("bfloat16", 2)):
                found = [efficiency(machine, step, size * parameters, count) for count in counts]
                found.append(efficiency(machine, step, size * parameters, counts[-1], hidden=True))
                cells = " | ".join(f"{100 * each:.0f}%" for each in found)
                print(f"| {name} | {images} | {1e3 * step:.1f} ms | {kind} | {cells} |")


if __name__ == "__main__":
    main()
