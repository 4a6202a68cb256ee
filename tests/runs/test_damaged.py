"""Metrics and pictures of a run that were damaged on the disk: what is whole is kept, what is not is named."""

import json

import pytest

from diffuse.runs.folder import RunFolder, grid_path
from diffuse.runs.scalars import forget_after, read_metrics

LINES = ['{"step": 1, "loss": 3.0}', '{"step": 2, "lo', "[]", '{"step": 3, "loss": 2.0}', '"x"', '{"loss": 1}',
         "\x00\x00", '{"step": "4"}', '{"step": 5, "loss": 1.0}']  # fmt: skip


def test_lines_after_a_damaged_one_are_kept(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(LINES) + '\n{"step": 6, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 3, 5]
    forget_after(tmp_path, 3)
    assert caplog.messages == [f"{path}: damaged lines are left out: 2, 3, 5, 6, 7, 8"]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3]
    caplog.clear()
    forget_after(tmp_path, 3)
    assert caplog.messages == []


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_grid_that_is_damaged_stops_no_run(tmp_path, caplog, content):
    grid_path(tmp_path, 3).parent.mkdir()
    grid_path(tmp_path, 3).write_bytes(content)
    RunFolder(tmp_path, 3).close()
    assert "step_00000003.png is damaged, and is not shown in TensorBoard again" in caplog.text
