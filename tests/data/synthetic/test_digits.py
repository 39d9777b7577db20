import numpy as np
import pytest
import torch

from pixvox.configuration import compose, instantiate
from pixvox.data.datasets.open import open_dataset
from pixvox.data.make import make_dataset
from pixvox.data.synthetic.digits import Digits
from pixvox.data.synthetic.glyphs import FontGlyphs, MnistGlyphs
from pixvox.errors import DataError


def write_mnist(root):
    """MNIST's four files, with few pictures: digit d is a block of d + 3 rows and 4 columns."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count, ink in (("train", 30, 255), ("t10k", 20, 200)):
        labels = np.arange(count, dtype=np.uint8) % 10
        pictures = np.zeros((count, 28, 28), np.uint8)
        for picture, label in zip(pictures, labels, strict=True):
            picture[2 : 5 + label, 6:10] = ink
        sizes = b"".join(length.to_bytes(4, "big") for length in pictures.shape)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + pictures.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + count.to_bytes(4, "big") + labels.tobytes()
        )
    return root


def test_an_image_is_a_function_of_seed_and_index():
    first, second, other = Digits(5, 3), Digits(5, 3), Digits(5, 4)
    _ = first[0]
    assert torch.equal(first[4].image, second[4].image)
    assert torch.equal(first[4].layers, second[4].layers)
    assert not torch.equal(first[4].image, other[4].image)


def test_every_image_holds_as_many_digits_as_it_says_and_their_pixels_are_bright():
    digits = Digits(30, 0, image_size=(64, 80), noise=0.0)
    seen = set()
    for index in range(30):
        sample = digits[index]
        assert sample.image.shape == (1, 64, 80)
        assert 2 <= len(sample.labels) <= 5
        assert sorted(sample.layers.unique().tolist()) == list(range(len(sample.labels) + 1))
        assert sample.image[0][sample.layers[0] > 0].min() > 0.5 * 0.6 * 255 - 1
        assert sample.image[0][sample.layers[0] == 0].float().mean() < 20
        seen |= set(sample.labels.tolist())
    assert seen == set(range(10))


def test_digits_are_kept_apart_when_asked():
    full = Digits(8, 0, overlap=0.0, count=(5, 5), digit_size=(12, 16))
    for index in range(8):
        areas = np.bincount(full.render(index).label_map.ravel())[1:]
        assert (areas >= full.min_area).all()


def test_a_semantic_task_has_a_background_in_front():
    digits = Digits(1, 0, task="semantic")
    scene, sample = digits.render(0), digits[0]
    assert digits.metadata.class_names[:2] == ("background", "0")
    assert set(sample.class_map.unique().tolist()) == {0, *(scene.labels + 1).tolist()}


@pytest.mark.parametrize("digit", range(10))
def test_a_font_varies_a_digit_and_keeps_its_height(digit):
    glyphs, random = FontGlyphs(), np.random.default_rng(0)
    drawn = [glyphs.draw(digit, 20, random) for _ in range(5)]
    assert all(ink.shape[0] == 20 and ink.min() >= 0 and 0.8 < ink.max() <= 1 for ink in drawn)
    assert len({ink.tobytes() for ink in drawn}) == 5


def test_handwritten_digits_come_from_the_right_files_with_the_right_labels(tmp_path):
    glyphs = MnistGlyphs(write_mnist(tmp_path))
    ink = glyphs.draw(5, 8, np.random.default_rng(0))
    assert ink.shape == (8, 4)
    assert (ink == 1).all()
    assert MnistGlyphs(tmp_path, train=False).draw(5, 8, np.random.default_rng(0)).max() == pytest.approx(
        200 / 255
    )
    sample = Digits(3, 0, mnist=tmp_path, noise=0.0)[1]
    assert len(sample.instances().masks) == len(sample.labels) >= 2


def test_missing_and_damaged_mnist_is_the_users_error(tmp_path):
    with pytest.raises(DataError, match="holds no MNIST.*download=true"):
        Digits(1, mnist=tmp_path)
    write_mnist(tmp_path)
    images = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:5000])
    with pytest.raises(DataError, match="holds no MNIST that can be read"):
        Digits(1, mnist=tmp_path)


@pytest.mark.parametrize(
    "options", [{"count": (3, 2)}, {"digit_size": (2, 8)}, {"digit_size": (30, 70)}, {"overlap": 2.0}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="must be ascending|is a share"):
        Digits(1, **options)


def test_made_on_disk_they_are_a_coco_dataset_with_a_test_split(tmp_path):
    make_dataset("digits", tmp_path / "d", 3, 2, 2, seed=1, noise=0.0)
    splits = {split: open_dataset(tmp_path / "d", split) for split in ("train", "val", "test")}
    assert [len(split) for split in splits.values()] == [3, 2, 2]
    for index in range(3):
        read, drawn = splits["train"][index], Digits(3, 2, noise=0.0)[index]
        assert torch.equal(read.image, drawn.image)
        assert torch.equal(read.labels, drawn.labels)
        assert torch.equal(read.layers.amax(0), drawn.layers[0])


def test_the_configuration_gives_train_val_and_test():
    sizes = [f"data.{split}.num_images=2" for split in ("train", "val", "test")]
    data = instantiate(compose("train", ["data=digits", "batch_size=2", *sizes]).data, "data")
    assert next(iter(data.train_dataloader())).images.shape == (2, 1, 64, 64)
    assert len(list(data.test_dataloader())) == 2
    steps = [type(step).__name__ for step in data.train_transforms.steps]
    assert "RandomFlip" not in steps
