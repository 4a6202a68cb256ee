"""How times are drawn: each distribution against its formula, and the memory of losses against a plain queue."""

import math
from collections import deque

import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor

from diffuse.mathematics.continuous import VE, VP, Flow
from diffuse.mathematics.schedules import Schedule
from diffuse.mathematics.tables import linear
from diffuse.mathematics.time_sampling import ImportanceTimes, LogNormalTimes, UniformTimes

LEVELS = 6


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Late(VP):
    """A path whose first time cannot be taken for 0, nor its last for the width of the interval."""

    t_min = 400.0


def test_levels_are_uniform_over_all_of_one_to_T():
    """{1 ... T-1} and {0 ... T-1} are slips found in popular notes."""
    t, weight = UniformTimes(linear(10, 1e-4, 0.02)).draw(100_000)
    drawn = torch.bincount(t, minlength=12)
    assert drawn[0] == drawn[11] == 0
    assert chisquare(drawn[1:11]).pvalue > 1e-3
    assert (weight == 1).all()


def test_times_are_uniform_from_t_min_to_T():
    t, weight = UniformTimes(Late()).draw(20_000)
    assert t.is_floating_point()
    assert kstest(t, "uniform", args=(400, 600)).pvalue > 1e-3
    assert t.min() >= 400
    assert t.max() <= 1000
    assert (weight == 1).all()


@pytest.mark.parametrize(("options", "mean", "std"), [({}, -1.2, 1.2), ({"mean": 0.4, "std": 0.7}, 0.4, 0.7)])
def test_log_rho_is_normal(options: dict[str, float], mean: float, std: float):
    """On the straight path rho is t / (T - t). The first are the numbers of Karras et al. 2022, table 1."""
    t, weight = LogNormalTimes(Flow(), **options).draw(20_000)
    assert kstest(torch.log(t / (1000 - t)), "norm", args=(mean, std)).pvalue > 1e-3
    assert (weight == 1).all()


@pytest.mark.parametrize(("path", "mean"), [(VE(), math.log(0.02)), (Late(), 0.0), (VE(), math.log(100))])
def test_noise_beyond_the_path_is_that_of_its_ends(path, mean: float):
    t, _ = LogNormalTimes(path, mean=mean, std=4.0).draw(1000)
    assert t.min() == path.t_min
    assert t.max() == path.T


@pytest.mark.parametrize(
    "times",
    [
        UniformTimes(linear(LEVELS, 1e-4, 0.02)),
        UniformTimes(VP()),
        LogNormalTimes(VP()),
        ImportanceTimes(linear(LEVELS, 1e-4, 0.02)),
    ],
)
def test_times_and_weights_are_made_where_they_are_asked_for(times: UniformTimes):
    """On the device meta, which every machine has."""
    for device in ("cpu", "meta"):
        t, weight = times.draw(4, device)
        assert (t.device.type, weight.device.type) == (device, device)
        assert t.shape == weight.shape == (4,)


def random_batches(count: int) -> list[tuple[Tensor, Tensor]]:
    """Levels, many of them several times in one batch, and their losses; batches of every size from none on."""
    sizes = torch.randint(0, 40, (count,)).tolist()
    return [(torch.randint(1, LEVELS + 1, (size,)), torch.rand(size) * 3) for size in sizes]


def filled(history: int, uniform_share: float = 0.001) -> tuple[ImportanceTimes, list[list[float]]]:
    """ImportanceTimes with a full memory, and what it ought to remember of each level."""
    times = ImportanceTimes(linear(LEVELS, 1e-4, 0.02), history, uniform_share)
    losses = torch.rand(LEVELS, history) * torch.arange(1, LEVELS + 1)[:, None]
    times.learn(torch.arange(1, LEVELS + 1).repeat_interleave(history), losses.flatten())
    return times, losses.tolist()


@pytest.mark.parametrize("uniform_share", [0.001, 0.3, 1.0])
@pytest.mark.parametrize("history", [1, 10])
def test_probabilities_are_roots_of_second_moments_with_a_uniform_share(history: int, uniform_share: float):
    """Nichol and Dhariwal 2021, equation 18, with the uniform share of their code."""
    times, losses = filled(history, uniform_share)
    roots = [math.sqrt(sum(loss**2 for loss in of_level) / history) for of_level in losses]
    expected = [(1 - uniform_share) * root / sum(roots) + uniform_share / LEVELS for root in roots]
    assert times.probabilities().tolist() == pytest.approx(expected, rel=1e-5)


def test_ten_losses_and_a_thousandth_are_the_papers():
    """The history of Nichol and Dhariwal 2021, section 3.3, and the uniform share of their code."""
    times = ImportanceTimes(linear(LEVELS, 1e-4, 0.02))
    t = torch.arange(1, LEVELS + 1)
    for expected in [1 / LEVELS] * 9 + [0.001 / LEVELS]:
        times.learn(t, (t == 1).float())
        assert times.probabilities()[1:].tolist() == pytest.approx([expected] * (LEVELS - 1))


def test_weights_undo_the_probabilities():
    """The weight of t is 1 / (T p_t), so that the sum over t of p_t weight_t L_t is the mean of L_t, for any L."""
    times, _ = filled(10)
    t, weight = times.draw(2000)
    weights = dict(zip(t.tolist(), weight.tolist(), strict=True))
    p = times.probabilities().tolist()
    assert [weights[level] for level in range(1, LEVELS + 1)] == pytest.approx([1 / (LEVELS * p_t) for p_t in p])
    losses = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0]
    found = sum(p[level - 1] * weights[level] * losses[level - 1] for level in weights)
    assert found == pytest.approx(sum(losses) / LEVELS)
    assert weights[t[0].item()] == weight[0]


def test_levels_are_drawn_with_their_probabilities():
    times, _ = filled(10, uniform_share=0.1)
    t, _ = times.draw(20_000)
    drawn = torch.bincount(t, minlength=LEVELS + 2)
    assert drawn[0] == drawn[LEVELS + 1] == 0
    p = times.probabilities().double()
    assert chisquare(drawn[1 : LEVELS + 1], 20_000 * p / p.sum()).pvalue > 1e-3


@pytest.mark.parametrize("late", [1, LEVELS])
def test_levels_are_uniform_until_each_has_its_whole_history(late: int):
    times = ImportanceTimes(linear(LEVELS, 1e-4, 0.02), history=3)
    uniform = pytest.approx([1 / LEVELS] * LEVELS)
    for level in range(1, LEVELS + 1):
        for loss in (5.0, 1.0, 2.0, 6.0)[: 2 if level == late else 4]:
            times.learn(torch.tensor([level]), torch.tensor([loss * level]))
            assert times.probabilities().tolist() == uniform
    assert (times.draw(100)[1] == 1).all()
    times.learn(torch.tensor([late]), torch.tensor([7.0]))
    assert times.probabilities().tolist() != uniform


def test_losses_of_zero_leave_the_levels_uniform():
    times = ImportanceTimes(linear(LEVELS, 1e-4, 0.02), history=1)
    times.learn(torch.arange(1, LEVELS + 1), torch.zeros(LEVELS))
    assert times.probabilities().tolist() == pytest.approx([1 / LEVELS] * LEVELS)


@pytest.mark.parametrize("history", [1, 4, 10])
def test_the_memory_is_that_of_a_queue_for_each_level(history: int):
    """Of a level that stands in one batch more often than its history is long, the last ones stay."""
    times = ImportanceTimes(linear(LEVELS, 1e-4, 0.02), history)
    queues = [deque([0.0] * history, maxlen=history) for _ in range(LEVELS + 1)]
    for t, losses in random_batches(60):
        times.learn(t, losses)
        for level, loss in zip(t.tolist(), losses.tolist(), strict=True):
            queues[level].append(loss)
        assert times.losses.sort(1).values.tolist() == [sorted(queue) for queue in queues]


def test_a_memory_put_back_goes_on_as_if_it_had_never_been_away():
    """Half full as well: where the next loss goes is part of it."""
    kept = back = ImportanceTimes(linear(LEVELS, 1e-4, 0.02), history=7)
    for t, losses in random_batches(20):
        saved = {name: memory.clone() for name, memory in back.state_dict().items()}
        back = ImportanceTimes(linear(LEVELS, 1e-4, 0.02), history=7)
        back.load_state_dict(saved)
        for times in (kept, back):
            times.learn(t, losses)
        assert torch.equal(kept.losses, back.losses)
        assert torch.equal(kept.probabilities(), back.probabilities())
    torch.manual_seed(1)
    drawn = kept.draw(50)
    torch.manual_seed(1)
    assert all(torch.equal(one, other) for one, other in zip(drawn, back.draw(50), strict=True))


def test_what_comes_of_no_level_is_not_remembered():
    """A step that failed is given as level 0: its loss would be a probability for as long as it is in the memory."""
    times, losses = filled(3)
    times.learn(torch.tensor([0, 5, 0, 0, 0]), torch.tensor([math.nan, 0.25, math.inf, 1.0, math.nan]))
    losses[4][0] = 0.25
    assert times.losses[1:].tolist() == losses
    assert torch.isfinite(times.probabilities()).all()


def test_losses_of_a_training_are_kept_without_their_gradients():
    times = ImportanceTimes(linear(LEVELS, 1e-4, 0.02), history=2)
    times.learn(torch.tensor([1, 1]), torch.tensor([1.0, 2.0], requires_grad=True))
    assert not times.losses.requires_grad


@pytest.mark.parametrize(("kind", "schedule"), [(LogNormalTimes, linear(LEVELS, 1e-4, 0.02)), (ImportanceTimes, VP())])
def test_levels_and_real_times_are_not_mixed_up(kind: type[UniformTimes], schedule: Schedule):
    """The message says what fits every schedule."""
    with pytest.raises(ValueError, match="choose times=uniform"):
        kind(schedule)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("std", lambda: LogNormalTimes(VP(), std=0.0)),
        ("std", lambda: LogNormalTimes(VP(), std=math.nan)),
        ("history", lambda: ImportanceTimes(linear(LEVELS, 1e-4, 0.02), history=0)),
        ("uniform_share", lambda: ImportanceTimes(linear(LEVELS, 1e-4, 0.02), uniform_share=0.0)),
        ("uniform_share", lambda: ImportanceTimes(linear(LEVELS, 1e-4, 0.02), uniform_share=1.1)),
        ("uniform_share", lambda: ImportanceTimes(linear(LEVELS, 1e-4, 0.02), uniform_share=math.nan)),
    ],
)
def test_options_out_of_range_are_named(name: str, make):
    with pytest.raises(ValueError, match=f"^{name} "):
        make()
