import torch

from unfog.machine import machine, processor, usable_cores


def test_a_machine_is_told_by_what_changes_how_fast_it_computes() -> None:
    told = machine()
    assert told["processor"].startswith(processor())
    assert told["threads"] == str(torch.get_num_threads())
    assert told["torch"] == torch.__version__
    assert usable_cores() >= 1
