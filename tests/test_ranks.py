"""Training on several processes."""

from ppl_med.inference import process_group


def test_a_process_on_its_own_waits_for_nobody():
    assert (process_group.rank(), process_group.num_ranks()) == (0, 1)
    process_group.barrier()
    assert process_group.from_rank_0({"a": 1}) == {"a": 1}
    assert process_group.of_all_ranks("x") == ["x"]
    assert process_group.on_rank_0(lambda: 3) == 3
