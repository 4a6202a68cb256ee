"""The README's example is run as it stands, but shorter."""

import re

import torch

from tests.support.places import README


def test_the_python_example_runs(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(example.replace("range(1000)", "range(3)").replace("schedule, 50", "schedule, 3"), names)
    assert names["samples"].shape == (16, 1, 8, 8)
    assert names["samples"].abs().max() <= 1
    assert (tmp_path / "digits.png").stat().st_size > 1000
    assert names["loss"].item() > 0
