import lightning.pytorch as pl

from pixvox.callbacks.step_timer import StepTimer
from pixvox.callbacks.train_samples import TrainSamples
from pixvox.data.collate import Collate
from pixvox.data.synthetic.shapes import Shapes


class Trainer(pl.Trainer):
    """What the callback asks of a trainer."""

    module = pl.LightningModule()

    def __init__(self, first=True):
        self.first = first

    @property
    def is_global_zero(self):
        return self.first


def batch_of(count):
    shapes = Shapes(count, seed=0, image_size=32, radius=(4, 8))
    return Collate(32)([shapes[index] for index in range(count)])


def test_the_first_images_are_drawn_once_there_are_enough(tmp_path):
    callback = TrainSamples(tmp_path, max_images=3)
    trainer = Trainer()
    callback.on_train_batch_end(trainer, Trainer.module, None, batch_of(2), 0)
    assert not callback.path.exists()
    callback.on_train_batch_end(trainer, Trainer.module, None, batch_of(2), 1)
    drawn = callback.path.stat().st_mtime_ns
    callback.on_train_batch_end(trainer, Trainer.module, None, batch_of(2), 2)
    callback.on_train_end(trainer, Trainer.module)
    assert callback.path.stat().st_mtime_ns == drawn


def test_few_images_are_drawn_at_the_end_and_only_by_the_first_process(tmp_path):
    callback = TrainSamples(tmp_path, max_images=3)
    callback.on_train_batch_end(Trainer(False), Trainer.module, None, batch_of(1), 0)
    callback.on_train_end(Trainer(), Trainer.module)
    assert not callback.path.exists()
    callback.on_train_batch_end(Trainer(), Trainer.module, None, batch_of(1), 0)
    callback.on_train_end(Trainer(), Trainer.module)
    assert callback.path.exists()


def test_drawing_is_no_wait_for_data(tmp_path):
    timer = StepTimer(skip=0)
    callback = TrainSamples(tmp_path, max_images=1, timer=timer)
    timer.on_train_epoch_start(Trainer(), Trainer.module)
    waited = []
    for number in range(2):
        timer.on_train_batch_start(Trainer(), Trainer.module, None, number)
        timer.on_train_batch_end(Trainer(), Trainer.module, None, None, number)
        waited.append(timer.seconds["data"])
        callback.on_train_batch_end(Trainer(), Trainer.module, None, batch_of(1), number)
    assert callback.path.exists()
    assert timer.steps == 2
    assert waited[0] == waited[1]


def test_a_failing_picture_is_said_and_passed_over(tmp_path, monkeypatch, caplog):
    def fail(*arguments):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("pixvox.visualization.samples.draw_samples", fail)
    callback = TrainSamples(tmp_path, max_images=1)
    callback.on_train_batch_end(Trainer(), Trainer.module, None, batch_of(1), 0)
    assert "no fonts" in caplog.text
