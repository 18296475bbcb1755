import numpy as np

from raycnn.data.keyed import derive_seed, permute, uniforms


def draws(seed=0, epochs=(0, 0, 1), hashes=(5, 6, 5), num=16):
    return uniforms(seed, np.array(epochs, np.int64), np.array(hashes, np.uint64), num)


def test_draws_depend_on_seed_epoch_and_key_alone():
    assert np.array_equal(draws()[1], draws(epochs=(0,), hashes=(6,))[0])
    assert not np.array_equal(draws()[0], draws()[1])
    assert not np.array_equal(draws()[0], draws()[2])
    assert not np.array_equal(draws(), draws(seed=1))


def test_more_columns_change_no_earlier_one():
    assert np.array_equal(draws(num=16)[:, :6], draws(num=6))


def test_draws_are_uniform():
    many = uniforms(3, np.zeros(20_000, np.int64), np.arange(20_000, dtype=np.uint64), 2)
    assert 0 <= many.min() < many.max() < 1
    assert abs(many.mean(0) - 0.5).max() < 0.01
    assert abs(np.histogram(many[:, 0], 10, (0, 1))[0] / 2000 - 1).max() < 0.1
    assert abs(np.corrcoef(many.T)[0, 1]) < 0.03


def test_permutations_are_permutations_also_of_tiny_sets():
    for size in (1, 2, 3, 63, 64, 65, 1000):
        got = permute(np.arange(size), size, np.full(size, 7, np.uint64))
        assert sorted(got) == list(range(size))


def test_seeds_of_different_purposes_differ():
    assert len({derive_seed(s, p) for s in (0, 1) for p in ("order", "init", "augment")}) == 6
    assert derive_seed(0, "order") == derive_seed(0, "order")
