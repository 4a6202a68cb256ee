"""Draw and list the noise schedules for docs/mathematics.md.

    python scripts/schedule_table.py

docs/schedules.png has, against t / T, alpha_bar on the left and log-SNR on the right, a line for each schedule with its
default options; alpha_bar is alpha^2 / (alpha^2 + sigma^2), so that the paths which keep no variance fit in as well.
What is printed is a Markdown table of both at five times.
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from diffuse.mathematics.continuous import VE, VP, Flow
from diffuse.mathematics.schedules import Schedule
from diffuse.mathematics.tables import cosine, linear, quad, scaled_linear, sigmoid

DOCS = Path(__file__).resolve().parent.parent / "docs"
TIMES = [1, 250, 500, 750, 1000]

# What a configuration in configs/schedule is called, as it is typed.
SCHEDULES: dict[str, Schedule] = {
    "linear": linear(),
    "cosine": cosine(),
    "scaled_linear": scaled_linear(),
    "quadratic": quad(),
    "sigmoid": sigmoid(),
    "linear, zero_terminal_snr": linear(zero_terminal_snr=True),
    "cosine, zero_terminal_snr": cosine(zero_terminal_snr=True),
    "vp": VP(),
    "ve": VE(),
    "flow": Flow(),
}
# Colour, line and width. What is nearly another schedule, or another one rescaled, is thin over a wide and pale line.
STYLES = {
    "linear": ("lightskyblue", "-", 5.0),
    "linear, zero_terminal_snr": ("tab:blue", "--", 1.5),
    "vp": ("black", ":", 1.8),
    "cosine": ("navajowhite", "-", 5.0),
    "cosine, zero_terminal_snr": ("tab:orange", "--", 1.5),
    "scaled_linear": ("tab:green", "-", 1.5),
    "quadratic": ("tab:olive", "-", 1.5),
    "sigmoid": ("tab:purple", "-", 1.5),
    "ve": ("tab:red", "-", 1.5),
    "flow": ("tab:cyan", "-", 1.5),
}


def picture() -> Figure:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    t = torch.linspace(0, 1000, 2001, dtype=torch.float64)
    for name, (colour, line, width) in STYLES.items():
        log_snr = SCHEDULES[name].log_snr(t)
        seen = log_snr.isfinite()
        look = {"color": colour, "linestyle": line, "linewidth": width}
        left.plot(t / 1000, torch.sigmoid(log_snr), label=name, **look)
        right.plot(t[seen] / 1000, log_snr[seen], **look)
    left.set(xlabel="t / T", ylabel="alpha_bar", xlim=(0, 1), ylim=(0, 1.02))
    right.set(xlabel="t / T", ylabel="log-SNR", xlim=(0, 1), ylim=(-21, 14))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def table() -> str:
    times = torch.tensor(TIMES, dtype=torch.float64)
    columns = [f"{what}{t}" for what in ("alpha_bar at t = ", "log-SNR at t = ") for t in TIMES]
    columns = [name if name.endswith(" = 1") else name.rpartition(" ")[2] for name in columns]
    rows = ["| schedule | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    for name, schedule in SCHEDULES.items():
        log_snr = schedule.log_snr(times)
        cells = [of_one(value) for value in torch.sigmoid(log_snr).tolist()]
        cells += [f"{value:.2f}" for value in log_snr.tolist()]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def of_one(value: float) -> str:
    """With more digits next to 1, so that what is left of 1 at t = 1 is seen."""
    return f"{value:.6f}" if value > 0.999 else f"{value:.3g}"


def main() -> None:
    picture().savefig(DOCS / "schedules.png", dpi=110)
    print(table())


if __name__ == "__main__":
    main()
