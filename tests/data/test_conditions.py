"""Labels by name and number, dropped and drawn; the names of classes wherever images go."""

import numpy as np
import pytest
import torch

from diffuse.data.conditions import Condition
from diffuse.system.errors import Refused

PETS = Condition(["cat", "dog", "rabbit"], dropout=0.25)
NUMBERED = Condition(["1", "2", "3"])


@pytest.mark.parametrize(
    ("condition", "label", "numbers"),
    [
        (PETS, None, [0, 1, 2, 0, 1]),
        (PETS, "dog", [1] * 5),
        (PETS, 2, [2] * 5),
        (PETS, "2", [2] * 5),
        (PETS, ["rabbit", 0], [2, 0, 2, 0, 2]),
        (NUMBERED, 1, [0] * 5),  # the class that is called 1
        (NUMBERED, ["3", 1], [2, 0, 2, 0, 2]),
    ],
)
def test_samples_have_the_classes_that_were_asked_for(condition, label, numbers):
    asked = condition.of(label)
    assert asked.of_samples(range(5)).tolist() == numbers
    assert asked.of_samples([4, 3]).tolist() == [numbers[4], numbers[3]]
    assert asked.titles(range(5)) == [condition.classes[number] for number in numbers]
    assert asked.record == {"label": list(dict.fromkeys(condition.classes[number] for number in numbers))}


@pytest.mark.parametrize(
    ("condition", "label", "message"),
    [
        (PETS, "cow", "one of the classes cat, dog, rabbit, or a number from 0 to 2, not cow"),
        (PETS, "rabit", "not rabit. Did you mean 'rabbit'"),
        (PETS, 3, "not 3"),
        (PETS, -1, "not -1"),
        (PETS, True, "not True"),
        (PETS, 1.0, "not 1.0"),
        (PETS, ["dog", "cow"], "not cow"),
        (PETS, [], "must be a class or a list of classes, not empty"),
        (NUMBERED, 0, "one of the classes 1, 2, 3, not 0"),  # would be the class called 1
        (Condition(), 0, "needs a run trained on labels"),
    ],
)
def test_other_classes_are_refused_with_those_that_there_are(condition, label, message):
    with pytest.raises(Refused, match=f"^label .*{message}"):
        condition.of(label)


def test_of_very_many_classes_some_are_listed():
    with pytest.raises(Refused, match=r"c98, \.\.\. \(1,000 in all\), or a number from 0 to 999, not x\."):
        Condition([f"c{number}" for number in range(1000)]).of("x")


def test_the_null_label_has_a_row_of_its_own_where_labels_are_dropped():
    assert PETS.network_options == {"num_classes": 4}
    assert PETS.null(torch.tensor([0, 2])).tolist() == [3, 3]
    assert NUMBERED.network_options == {"num_classes": 3}
    assert Condition(dropout=0.1).network_options == {"num_classes": None}


def test_labels_are_dropped_at_the_given_rate():
    torch.manual_seed(0)
    y = torch.arange(3).repeat(4000)
    dropped = PETS.drop(y)
    null = dropped == 3
    assert abs(float(null.float().mean()) - 0.25) < 4 * (0.25 * 0.75 / len(y)) ** 0.5
    assert torch.equal(dropped[~null], y[~null])
    for label in range(3):
        assert abs(float(null[y == label].float().mean()) - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5


@pytest.mark.parametrize("condition", [NUMBERED, Condition()])
def test_without_dropout_no_number_is_drawn(condition):
    torch.manual_seed(0)
    y = torch.tensor([0, 1]) if condition.classes else None
    assert condition.drop(y) is y
    assert torch.rand(()) == torch.rand((), generator=torch.Generator().manual_seed(0))


def test_an_npz_file_has_labels_and_names():
    arrays = PETS.of("dog").arrays(2)
    assert arrays["arr_1"].tolist() == [1, 1]
    assert arrays["classes"].tolist() == ["cat", "dog", "rabbit"]
    assert arrays["classes"].dtype.kind == "U"
    assert Condition().arrays(2) == {}
    assert np.array_equal(PETS.arrays(4)["arr_1"], [0, 1, 2, 0])
