import csv

import numpy as np
import pytest
import torch
from PIL import Image

from pixvox.errors import DataError
from pixvox.metrics.matching import LabelMapScores
from pixvox.structures import Instances, Segmentation
from pixvox.visualization import curves as curves_module
from pixvox.visualization.confusion_matrix import draw_confusion_matrix
from pixvox.visualization.curves import draw_curves, read_metrics
from pixvox.visualization.figure import new_figure, save_figure
from pixvox.visualization.grids import draw_predictions
from pixvox.visualization.precision_recall import draw_precision_recall


@pytest.fixture
def figures(monkeypatch):
    """Collect the figures that are saved, to look at what they hold."""
    import pixvox.visualization.confusion_matrix
    import pixvox.visualization.grids
    import pixvox.visualization.precision_recall

    kept = []

    def keep(figure, path, **options):
        kept.append(figure)
        return save_figure(figure, path, **options)

    for module in (
        curves_module,
        pixvox.visualization.grids,
        pixvox.visualization.confusion_matrix,
        pixvox.visualization.precision_recall,
    ):
        monkeypatch.setattr(module, "save_figure", keep)
    return kept


def write_log(path, rows=60):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = ["epoch", "step", "train/loss", "train/mask", "val/loss", "val/AP", "val/PQ", "learning_rate"]
        writer.writerow(names)
        for step in range(rows):
            writer.writerow([step // 10, step, 2 - step / 60, 1 - step / 100, "", "", "", 1e-4])
            if step % 10 == 9:
                score = "nan" if step < 15 else 0.5 - abs(step - 39) / 100
                writer.writerow([step // 10, step, "", "", 2.0, score, 0.2, ""])
    return path


def test_log_is_read_without_gaps(tmp_path):
    columns = read_metrics(write_log(tmp_path / "metrics.csv"))
    assert columns["val/AP"][0] == [19, 29, 39, 49, 59]
    assert columns["val/AP"][1][2] == 0.5
    assert len(columns["train/loss"][1]) == 60
    assert "epoch" not in columns


def test_curves_show_losses_and_scores_and_mark_the_best(tmp_path, figures):
    path = draw_curves(write_log(tmp_path / "metrics.csv"), tmp_path / "new" / "curves.png", "max:AP")
    assert path.stat().st_size > 1000
    panels = {axes.get_title(loc="left"): axes for axes in figures[0].axes}
    assert set(panels) == {"loss", "loss terms", "scores", "learning rate"}
    assert [text.get_text() for text in panels["scores"].texts] == ["0.500"]
    star = panels["scores"].lines[-1]
    assert (list(star.get_xdata()), list(star.get_ydata())) == ([39], [0.5])
    labels = [text.get_text() for text in panels["scores"].get_legend().get_texts()]
    assert labels == ["AP", "PQ"]


def test_lowest_score_is_best_for_min(tmp_path, figures):
    draw_curves(write_log(tmp_path / "metrics.csv"), tmp_path / "curves.png", "min:AP")
    scores = next(axes for axes in figures[0].axes if axes.get_title(loc="left") == "scores")
    assert list(scores.lines[-1].get_xdata()) in ([19], [59])


def test_curves_of_an_empty_or_wrong_log(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "fresh.csv").write_text("epoch,step,train/loss\n")
    for name in ("empty", "fresh"):
        assert draw_curves(tmp_path / f"{name}.csv", tmp_path / f"{name}.png").exists()
    (tmp_path / "other.csv").write_text("name,age\na,3\n")
    with pytest.raises(DataError, match="no column 'step'"):
        draw_curves(tmp_path / "other.csv", tmp_path / "x.png")
    with pytest.raises(DataError, match="does not exist"):
        draw_curves(tmp_path / "missing.csv", tmp_path / "x.png")


def test_running_mean_shrinks_at_the_ends():
    assert curves_module._running_mean([0.0, 3.0, 6.0, 9.0], 1) == [1.5, 3.0, 6.0, 7.5]


def result(scores=(0.9, 0.8)):
    label_map = torch.tensor([[1, 1, 0, 2, 2], [1, 1, 0, 2, 2]])
    instances = Instances(masks=label_map, scores=None if scores is None else torch.tensor(scores))
    return Segmentation(instances, image=torch.rand(1, 2, 5), source="folder/cells.png")


def test_precision_recall_has_a_line_per_threshold(tmp_path, figures):
    metric = LabelMapScores()
    metric.update([result()], [result(None)])
    draw_precision_recall(metric.curves(), tmp_path / "pr.png")
    axes = figures[0].axes[0]
    assert len(axes.lines) == 10
    assert axes.get_legend().get_title().get_text() == "mask, mean AP 1.000"
    assert draw_precision_recall([], tmp_path / "none.png").exists()


def test_confusion_matrix_is_in_per_cent_of_the_truth(tmp_path, figures):
    matrix = np.array([[30, 10, 0], [0, 0, 0], [1, 0, 999]])
    draw_confusion_matrix(matrix, ("sky", "road", "tree"), tmp_path / "cm.png")
    axes = figures[0].axes[0]
    assert [text.get_text() for text in axes.texts] == ["75", "25", "·", "100"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["sky", "road", "tree"]
    assert np.isnan(axes.images[0].get_array().filled(np.nan)[1]).all()  # no true pixel, no share


@pytest.mark.parametrize("count", [21, 150])
def test_names_of_many_classes_are_large_enough_to_read(tmp_path, figures, count):
    path = draw_confusion_matrix(np.eye(count, dtype=np.int64), (), tmp_path / "many.png")
    axes = figures[0].axes[0]
    labels = axes.get_yticklabels()
    assert len(labels) == count and labels[0].get_fontsize() > 6
    line = axes.get_window_extent().height / count  # pixels
    assert labels[0].get_window_extent().height < 1.2 * line  # they hardly overlap
    assert path.stat().st_size < 400_000


@pytest.mark.parametrize("with_truth", [True, False])
def test_predictions_have_a_row_per_image(tmp_path, figures, with_truth):
    pairs = [(result((0.9, 0.2)), result(None) if with_truth else None)] * 6
    path = draw_predictions(pairs, tmp_path / "val_predictions.png", max_images=3)
    columns = 3 if with_truth else 2
    assert len(figures[0].axes) == 3 * columns
    titles = [axes.get_title() for axes in figures[0].axes[:columns]]
    assert titles[0] == "cells.png"
    assert titles[-1] == "prediction  1"  # the other one is below the threshold
    assert np.array(Image.open(path)).std() > 5


def test_missing_truth_and_unmatched_predictions_are_said(tmp_path, figures):
    wrong = result()
    wrong.instances = Instances(
        masks=torch.tensor([[0, 0, 1, 0, 0], [0, 0, 1, 0, 0]]), scores=torch.tensor([0.9])
    )
    draw_predictions([(wrong, result(None)), (result(), None)], tmp_path / "x.png")
    assert figures[0].axes[2].get_title() == "prediction  1, 1 not in the truth (white)"
    assert [text.get_text() for text in figures[0].axes[4].texts] == ["no ground truth"]


def test_volumes_and_class_maps_and_nothing_are_drawn(tmp_path, figures):
    label_map = torch.zeros(3, 6, 5, dtype=torch.int64)
    label_map[1, 1:3, 2] = 1
    volume = Segmentation(Instances(masks=label_map), image=torch.rand(1, 3, 6, 5))
    empty = Segmentation(Instances.empty((3, 6, 5), scores=True))
    draw_predictions([(empty, volume)], tmp_path / "volume.png")
    classes = Segmentation(class_map=torch.tensor([[0, 1, 255]]), class_names=("a", "b"))
    draw_predictions([(classes, classes)], tmp_path / "classes.png")
    assert [text.get_text() for text in figures[1].legends[0].get_texts()] == ["a", "b", "ignored"]
    draw_predictions([], tmp_path / "nothing.png")
    assert all((tmp_path / f"{name}.png").exists() for name in ("volume", "classes", "nothing"))


def test_figure_is_written_whole_or_not_at_all(tmp_path):
    figure = new_figure(2, 2)
    path = save_figure(figure, tmp_path / "a" / "f.png")
    before = path.read_bytes()

    def broken(*_, **__):
        raise OSError("disk full")

    figure.savefig = broken
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["f.png"]
