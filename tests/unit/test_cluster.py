import pytest

from raycnn.cluster import divide_cpus
from raycnn.errors import ConfigError


@pytest.mark.parametrize("total", [1, 2, 4, 8, 96])
@pytest.mark.parametrize("workers", [1, 2, 4, 8])
@pytest.mark.parametrize("gpus", [False, True])
def test_every_rank_can_always_run_a_decoding_task(total, workers, gpus):
    division = divide_cpus(total, workers, gpus=gpus)
    assert division.per_rank > 0
    assert division.task > 0
    assert workers * (division.per_rank + division.task) <= total + 1e-6


def test_two_tasks_fill_a_cpu_beside_a_gpu_and_one_where_ranks_compute_on_cpus():
    assert divide_cpus(8, 2, gpus=True).task == 0.5
    assert divide_cpus(8, 2, gpus=False).task == 1.0


def test_more_ranks_than_cpus_can_carry_are_refused_with_the_number_that_fits():
    with pytest.raises(ConfigError, match=r"at most 20"):
        divide_cpus(2, 21, gpus=False)
