"""An evaluation that is killed: given again, it ends with the numbers it would have had; a folder has one writer."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from diffuse.system.errors import UserError
from tests.support.processes import until
from tests.support.scoring import FAST, report, score, tiles

WIDTH, HEADER = 48, 128  # numbers in a row of features, and bytes before the first


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system cannot stop a process for a while")
def test_an_evaluation_that_is_killed_ends_as_if_it_had_not_been(tiny_run, tmp_path):
    words = [f"ckpt={tiny_run}", "n=1500", "sampler.steps=8", "metrics=[fid,density_coverage]", "batch_size=10"]
    words += [*tiles(tmp_path), f"data_dir={tmp_path}"]
    whole, killed = score("name=whole", *words), tiny_run / "eval" / "killed"
    rows, command = killed / "features" / "features.npy", [sys.executable, "-m", "diffuse", "eval", "name=killed"]
    with subprocess.Popen([*command, *FAST, *words], cwd=tmp_path, stdout=subprocess.PIPE) as process:
        while not (rows.exists() and rows.stat().st_size > HEADER):
            assert not until(process, 0.005)
        os.kill(process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(UserError, match="killed is in use: another process is"):
                score("name=killed", *words)
        finally:
            process.kill()
    written = rows.read_bytes()
    assert HEADER < len(written) < 1500 * WIDTH * 4
    assert report(killed)["complete"] is False
    rows.write_bytes(written[: HEADER + 37 * WIDTH * 4 + 5])  # as if in the middle of a row
    assert score("name=killed", *words) == whole
    kept = [np.load(tiny_run / "eval" / name / "statistics.npz") for name in ("whole", "killed")]
    for name in ("mu", "sigma"):
        np.testing.assert_array_equal(kept[0][name], kept[1][name])
    facts = [report(tiny_run / "eval" / name) for name in ("whole", "killed")]
    assert facts[0]["sample_protocol"] == facts[1]["sample_protocol"]
    assert facts[0]["sample_scores"] == facts[1]["sample_scores"]
    assert facts[1]["complete"] is True
    assert not rows.parent.exists()
