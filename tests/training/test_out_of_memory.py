import pytest
import torch
from omegaconf import OmegaConf

from pixvox.training.out_of_memory import OutOfMemory, halve, is_out_of_memory, out_of_memory, smaller_batch

CONFIG = {"batch_size": 6, "accumulate_grad_batches": 2, "image_size": [64, 96], "precision": "32-true"}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8"),
            True,
        ),
        (RuntimeError("unable to mmap: Cannot allocate memory (12)"), True),
        (MemoryError(), True),
        (RuntimeError("shapes cannot be multiplied"), False),
    ],
)
def test_errors_of_memory_are_known(error, expected):
    assert is_out_of_memory(error) == expected


def test_message_has_numbers_and_advice_in_order():
    error = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB\nand much more")
    message = str(out_of_memory(OmegaConf.create(CONFIG), error, 41_200_000))
    for part in (
        "batch_size=6",
        "image_size=[64, 96]",
        "41.2 million",
        "GiB on the host",
        "allocate 2.00 GiB",
    ):
        assert part in message
    advice = [
        "batch_size=3",
        "accumulate_grad_batches=4",
        "smaller image_size",
        "bf16-mixed",
        "checkpointing",
    ]
    places = [message.index(part) for part in advice]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("batch", "accumulate", "expected"), [(8, 1, (4, 2)), (5, 1, (1, 5)), (9, 2, (3, 6)), (1, 1, None)]
)
def test_smaller_batch_learns_from_as_many_images_per_step(batch, accumulate, expected):
    config = OmegaConf.create({"batch_size": batch, "accumulate_grad_batches": accumulate})
    assert smaller_batch(config) == expected
    if expected is None:
        with pytest.raises(OutOfMemory):
            halve(config)
    else:
        assert halve(config) == [f"batch_size={expected[0]}", f"accumulate_grad_batches={expected[1]}"]
        assert config.batch_size == expected[0]
