import os
import signal

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import Dataset

from pixvox.data.loader import ResumableLoader, worker_failure
from pixvox.data.sampler import EpochSampler
from pixvox.errors import DataError, TrainingError


class Keys(Dataset):
    """Gives its keys back, and notes which were read."""

    def __init__(self, length=7):
        self.length, self.read = length, []

    def __len__(self):
        return self.length

    def __getitem__(self, key):
        self.read.append(key)
        return key


class Failing(Keys):
    def __getitem__(self, key):
        try:
            raise OSError("truncated")
        except OSError as error:
            raise DataError(f"image {key[1]}: a.png cannot be read: truncated\nat byte 12") from error


class Dying(Keys):
    def __getitem__(self, key):
        os.kill(os.getpid(), signal.SIGKILL)


def loader(workers=0, length=7, dataset=None, batch_size=2):
    dataset = dataset or Keys(length)
    sampler = EpochSampler(len(dataset), seed=3, shuffle=True)
    generator = torch.Generator().manual_seed(0)
    return ResumableLoader(
        dataset, batch_size, sampler, num_workers=workers, collate_fn=list, generator=generator
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("consumed", [0, 1, 4])
def test_loader_goes_on_after_what_was_consumed_whatever_was_prepared_ahead(workers, consumed):
    whole, broken, again = loader(), loader(workers), loader(workers)
    for one in (whole, broken, again):
        one.sampler.set_epoch(5)
    expected = list(whole)
    batches = iter(broken)
    assert [next(batches) for _ in range(consumed)] == expected[:consumed]
    again.load_state_dict(broken.state_dict())
    assert len(again) == 4
    assert list(again) == expected[consumed:]
    assert again.state_dict() == whole.state_dict()


def test_skipped_samples_are_not_read():
    again = loader()
    again.load_state_dict({"epoch": 0, "batches": 3, "batch_size": 2})
    assert len(list(again)) == 1
    assert len(again.dataset.read) == 1


def test_state_of_another_epoch_is_passed_over_and_the_next_epoch_starts_at_its_beginning():
    again = loader()
    again.load_state_dict({"epoch": 1, "batches": 4, "batch_size": 2})
    again.sampler.set_epoch(2)
    assert len(list(again)) == 4
    assert len(list(again)) == 4


def test_epoch_may_be_told_after_the_iterator_was_made():
    for workers in (0, 2):
        one = loader(workers)
        batches = iter(one)
        one.sampler.set_epoch(8)
        assert {key[0] for batch in batches for key in batch} == {8}


def test_state_counts_samples_when_the_batch_size_changes():
    again = loader(batch_size=1)
    again.load_state_dict({"epoch": 0, "batches": 2, "batch_size": 2})
    assert [key for batch in again for key in batch] == [key for batch in loader() for key in batch][4:]
    assert again.state_dict() == {"epoch": 0, "batches": 7, "batch_size": 1}


def test_labelled_and_unlabelled_loaders_go_on_together():
    def combined():
        pair = {"labelled": loader(length=4), "unlabelled": loader(length=11)}
        return pair, CombinedLoader(pair, "max_size_cycle")

    _, whole = combined()
    expected = [batch for batch, _, _ in whole]
    pair, broken = combined()
    batches = iter(broken)
    for _ in range(3):  # the labelled ones are in their second round
        next(batches)
    again_pair, again = combined()
    for name, one in pair.items():
        again_pair[name].load_state_dict(one.state_dict())
    rest = [batch for (batch, _, _), _ in zip(again, range(3), strict=False)]
    assert rest == expected[3:]


def test_error_of_a_worker_is_its_own_message_without_its_traceback():
    with pytest.raises(DataError) as caught:
        list(loader(2, dataset=Failing()))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("image ") and lines[0].endswith(": a.png cannot be read: truncated")
    assert caught.value.__suppress_context__


def test_killed_worker_is_an_error_that_names_memory_and_workers():
    with pytest.raises(TrainingError, match=r"memory ran out.*num_workers \(now 2;.*batch_size \(now 2\)"):
        list(loader(2, dataset=Dying()))


def test_full_shared_memory_is_told_from_full_memory():
    text = "DataLoader worker (pid 3) is killed by signal: Bus error. It is out of shared memory."
    assert "shared memory of this machine" in str(worker_failure(RuntimeError(text), 2, 4))
    assert worker_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 2, 4) is None


def test_workers_leave_ctrl_c_to_the_parent():
    class Interrupts(Keys):
        def __getitem__(self, key):
            return signal.getsignal(signal.SIGINT) == signal.SIG_IGN

    assert all(all(batch) for batch in loader(2, dataset=Interrupts()))
