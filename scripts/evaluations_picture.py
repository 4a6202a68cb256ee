"""Draw the README's picture of scores against evaluations: a panel for each network, a line for each sampler.

diffuse eval -m ckpt=outputs/RUN name=SWEEP sampler=... sampler.steps=... seed=0,1,2 n=1000 metrics=[fid] ...
python scripts/evaluations_picture.py 'the digits=outputs/SWEEP,outputs/OTHER' 'Fashion-MNIST=...'
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from diffuse.options.score_names import EVALUATIONS
from diffuse.sweeps.folder import Sweep
from diffuse.sweeps.picture import draw_lines
from diffuse.sweeps.rows import over_seeds

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "evaluations.png"
SCORE = "fid_classifier"
LEFT_OUT = ("analytic_ddim", "predictor_corrector")  # of more than ten lines the colours are hard to tell apart


def main(panels: list[str]) -> None:
    figure = Figure(figsize=(11, 3.8), layout="constrained", dpi=110)
    handles = {}
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        title, _, sweeps = panel.partition("=")
        rows = over_seeds([job for sweep in sweeps.split(",") for job in Sweep(Path(sweep)).rows()])
        rows = [row for row in rows if row.mean(SCORE) is not None and row.varied("sampler") not in LEFT_OUT]
        rows.sort(key=lambda row: row.varied("sampler"))  # the same colours in each panel
        handles |= draw_lines(axes, rows, SCORE, EVALUATIONS, ["sampler"], rows)
        axes.set(title=title, ylabel=SCORE)
        axes.set_xticks([5, 10, 20, 50], ["5", "10", "20", "50"])
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize="small")
    figure.savefig(PICTURE)


if __name__ == "__main__":
    main(sys.argv[1:])
