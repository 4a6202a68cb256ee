"""What differs between configs, in the words in which it is typed."""

import pytest

from diffuse.options.differences import as_typed, differences, option_name
from diffuse.options.schema import plain
from tests.support.commands import PLAIN, config


def stored(*words: str) -> dict:
    return plain(config("train", *PLAIN, *words))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([[], ["schedule=cosine"]], {"schedule": ["linear", "cosine"]}),
        ([["unet=tiny"], ["unet=small"], ["unet=base"]], {"unet": ["tiny", "small", "base"]}),
        ([["unet=small", "unet.dropout=0.3"], ["unet=small"]], {"unet.dropout": ["0.3", "0.1"]}),
        ([["optim.lr=1e-3"], ["optim.lr=2e-3"], ["optim.lr=1e-3"]], {"optim.lr": ["0.001", "0.002", "0.001"]}),
        (
            [["schedule.levels=100"], ["schedule=cosine"]],
            {"schedule": ["linear", "cosine"], "schedule.levels": ["100", "1000"]},
        ),
        ([["schedule=sigmoid", "schedule.width=3.0"], []], {"schedule": ["sigmoid", "linear"]}),
        (
            [["schedule.beta_start=0.01"], ["seed=1"], ["schedule=cosine"]],
            {
                "schedule": ["linear", "linear", "cosine"],
                "schedule.beta_start": ["0.01", "null", "-"],
                "seed": ["0", "1", "0"],
            },
        ),
        (
            [["sampler=ddpm", "sampler.steps=10"], ["sampler=ddim"]],
            {"sampler": ["ancestral", "ddim"], "sampler.steps": ["10", "50"]},
        ),
        ([["class_conditional=true"], []], {"class_conditional": ["true", "false"]}),
        ([["eval.metrics=[fid,kid]"], []], {"eval.metrics": ["[fid,kid]", "[fid]"]}),
        ([["name=a", "max_hours=1", "data_dir=/d", "trust=[mine]"], ["name=b"]], {}),
        ([[], []], {}),
    ],
)
def test_differences_are_said_as_they_are_typed(words, expected):
    assert differences([stored(*typed) for typed in words]) == expected


def test_a_key_that_one_config_lacks_is_a_dash():
    assert differences([{"seed": 0, "unet": {"depth": 3}}, {"seed": 0, "unet": {}}]) == {"unet.depth": ["3", "-"]}


def test_an_option_is_known_by_all_its_values():
    node = stored("unet=small")["unet"]
    assert option_name("unet", node) == "small"
    assert option_name("unet", {**node, "dropout": 0.25}) is None
    filled = {**stored()["schedule"], "beta_start": 1e-4, "beta_end": 0.02}  # as a run's config.yaml has them
    assert option_name("schedule", filled) == "linear"
    assert option_name("schedule", {**filled, "beta_start": 1e-3}) is None


def test_values_are_written_as_they_are_typed():
    assert as_typed([True, None, 0.5]) == "[true,null,0.5]"
