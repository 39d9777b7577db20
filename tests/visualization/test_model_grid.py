import matplotlib.figure
import pytest

from pixvox.data.collate import Collate
from pixvox.data.synthetic.nuclei3d import Nuclei3d
from pixvox.data.synthetic.shapes import Shapes
from pixvox.structures import Segmentation
from pixvox.visualization import model_grid
from pixvox.visualization.model_grid import draw_model_grid
from pixvox.visualization.samples import training_samples

DATA = {
    "instances": lambda: Shapes(1, seed=0, image_size=(32, 48), radius=(5, 9), count=(3, 3)),
    "classes": lambda: Shapes(1, seed=0, image_size=(32, 48), radius=(5, 9), task="semantic"),
    "volumes": lambda: Nuclei3d(1, seed=0, image_size=(8, 20, 24), count=(2, 4), radius=(3.0, 4.0)),
}


@pytest.fixture
def figures(monkeypatch):
    """Keep the figures that are saved."""
    kept = []
    monkeypatch.setattr(model_grid, "save_figure", lambda figure, path: kept.append(figure) or path)
    return kept


def truth_of(dataset):
    return training_samples(Collate(8)([dataset[0]]), dataset.metadata.class_names)[0]


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


@pytest.mark.parametrize("name", DATA)
def test_an_image_its_truth_and_a_row_per_backbone(name, figures, tmp_path):
    truth = truth_of(DATA[name]())
    cells = {("simple", "a"): truth, ("simple", "b"): truth, ("wide", "b"): truth}
    draw_model_grid(cells, truth, tmp_path / "example.png")
    (figure,) = figures
    assert isinstance(figure, matplotlib.figure.Figure) and len(figure.axes) == 6
    assert titles(figure)[1].startswith("ground truth")
    count = "" if truth.instances is None else f"  {len(truth.instances)}"
    assert titles(figure)[2:] == [f"a{count}", f"b{count}", "", f"b{count}"]
    assert [axes.get_ylabel() for axes in figure.axes[2::2]] == ["simple", "wide"]
    assert [text.get_text() for text in figure.axes[4].texts] == ["not trained"]


def test_objects_that_are_not_in_the_truth_are_told_and_one_head_leaves_room(figures, tmp_path):
    truth = truth_of(DATA["instances"]())
    fewer = Segmentation(
        instances=truth.instances[:1],
        image=truth.image,
        class_names=truth.class_names,
        geometry=truth.geometry,
    )
    draw_model_grid({("simple", "a"): truth}, fewer, tmp_path / "example.png")
    count = len(truth.instances)
    assert count > 1 and titles(figures[0])[2] == f"a  {count}, {count - 1} not in the truth (white)"
    assert len(figures[0].axes) == 4 and not figures[0].axes[3].has_data()
