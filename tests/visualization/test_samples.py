import matplotlib.image
import pytest
import torch

from pixvox.data.collate import Collate
from pixvox.data.synthetic.nuclei3d import Nuclei3d
from pixvox.data.synthetic.shapes import Shapes
from pixvox.visualization.samples import draw_samples, training_samples

DATA = {
    "instances": lambda: Shapes(3, seed=0, image_size=40, radius=(5, 9)),
    "classes": lambda: Shapes(3, seed=0, image_size=40, radius=(5, 9), task="semantic"),
    "volumes": lambda: Nuclei3d(3, seed=0, image_size=(8, 20, 24), count=(2, 4), radius=(3.0, 4.0)),
}


@pytest.mark.parametrize("name", DATA)
def test_training_samples_are_what_the_model_gets(name):
    dataset = DATA[name]()
    batch = Collate(32)([dataset[0], dataset[1]])
    samples = training_samples(batch, dataset.metadata.class_names)
    for index, sample in enumerate(samples):
        assert sample.size == tuple(batch.images.shape[2:])
        assert torch.equal(sample.image, batch.images[index])
        if name == "classes":
            assert torch.equal(sample.class_map, batch.targets[index])
        else:
            assert len(sample.instances) == len(batch.targets[index])


@pytest.mark.parametrize("name", DATA)
def test_a_picture_shows_each_image_bare_and_painted(tmp_path, name):
    dataset = DATA[name]()
    samples = training_samples(Collate(8)([dataset[i] for i in range(3)]), dataset.metadata.class_names)
    picture = matplotlib.image.imread(draw_samples(samples, tmp_path / "samples.png"))[..., :3]
    height, width = picture.shape[:2]
    first_row = picture[: height // 2]
    coloured = (first_row.max(-1) - first_row.min(-1)) > 0.2
    assert coloured[:, width // 4 : width // 2].any(), "annotations are painted in the second column"
    if name == "volumes":  # which are grey where nothing is painted
        assert not coloured[:, : width // 4].any()


def test_unlabelled_images_and_none_at_all_are_drawn(tmp_path):
    dataset = DATA["instances"]()
    batch = Collate(8)([dataset[0].unlabelled()])
    assert draw_samples(training_samples(batch), tmp_path / "a.png").exists()
    assert draw_samples([], tmp_path / "b.png").exists()
