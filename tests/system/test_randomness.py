"""Numbers that depend on their key alone."""

import numpy as np
import torch

from diffuse.system.randomness import ImageNoise, generator, hash_key, reseed


def test_equal_keys_give_equal_numbers_and_close_keys_unrelated_ones():
    keys = [(seed, "sample", i) for seed in (0, 1) for i in range(200)] + [
        (0, "train", 0),
        (0, "eval", 0),
        (10, "sample", 0),
    ]
    drawn = [generator(*key).standard_normal(8) for key in keys]
    assert len({row.tobytes() for row in drawn}) == len(keys)
    np.testing.assert_array_equal(drawn[5], generator(*keys[5]).standard_normal(8))
    assert abs(np.corrcoef(np.concatenate(drawn[:200]), np.concatenate(drawn[200:400]))[0, 1]) < 0.1


def test_parts_of_a_key_do_not_run_together():
    assert hash_key(1, "a", 23) != hash_key(12, "a", 3)


def test_an_images_noise_is_its_own():
    together = ImageNoise(0, "sample", range(5))
    alone = ImageNoise(0, "sample", [3])
    for _ in range(3):
        like = torch.empty(5, 1, 4, 4)
        torch.testing.assert_close(together(like)[3:4], alone(like[:1]), rtol=0, atol=0)


def test_noise_is_standard_normal_and_new_each_time():
    noise = ImageNoise(0, "sample", range(100))
    first, second = (noise(torch.empty(100, 3, 16, 16)) for _ in range(2))
    assert abs(first.mean()) < 0.02
    assert abs(first.std() - 1) < 0.02
    assert abs((first * second).mean()) < 0.02
    assert ImageNoise(0, "sample", [0])(torch.empty(1, 2, dtype=torch.float64)).dtype == torch.float64


def test_reseeding_makes_torch_repeat_itself():
    reseed(0, "train", 7)
    first = torch.randn(4)
    reseed(0, "train", 8)
    assert not torch.equal(first, torch.randn(4))
    reseed(0, "train", 7)
    torch.testing.assert_close(first, torch.randn(4), rtol=0, atol=0)
