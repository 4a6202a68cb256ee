"""Arguments that are refused: the name is data, and the message a sentence."""

import pickle

import pytest

from diffuse.mathematics.tables import linear
from diffuse.system.errors import Refused, UsageError, check, check_choice, pick


def test_an_argument_that_is_refused_is_named_as_data_and_in_a_sentence():
    with pytest.raises(ValueError, match=r"^beta_start must be between 0 and 1, not 2$") as caught:
        linear(beta_start=2)
    assert (caught.value.argument, caught.value.reason) == ("beta_start", "must be between 0 and 1, not 2")
    again = pickle.loads(pickle.dumps(caught.value))  # as processes of a sweep pass errors on
    assert (str(again), again.argument) == (str(caught.value), "beta_start")


def test_what_holds_passes():
    check(True, "x", "positive", 1)
    check_choice("x", "a", ("a", "b"))
    assert pick({"a": 1}, "x", "a") == 1


def test_a_wrong_choice_lists_the_right_ones():
    with pytest.raises(Refused, match=r"^x must be one of alpha, beta, not 'betta'\. Did you mean 'beta'\?$"):
        check_choice("x", "betta", ("alpha", "beta"))
    with pytest.raises(UsageError, match=r"^sampler\.spacing must be one of even, not 3\.$"):
        pick({"even": 1}, "sampler.spacing", 3)
