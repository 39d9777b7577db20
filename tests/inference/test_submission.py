import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from pixvox.cli import run
from pixvox.data.label_space import get_label_space
from pixvox.errors import ConfigError, DataError
from pixvox.inference.submission import Submission, label_values, write_submission
from pixvox.models import create_model
from pixvox.structures import Instances, Segmentation
from pixvox.weights.checkpoint import save_safetensors

TRAIN_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
NAMES = get_label_space("Cityscapes").class_names


def pictures(path):
    with zipfile.ZipFile(path) as archive:
        return {name: np.array(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()}


def test_train_ids_of_cityscapes_become_label_ids(tmp_path):
    assert label_values("Cityscapes", NAMES) == TRAIN_IDS
    classes = torch.arange(19).reshape(1, 19)
    results = [
        Segmentation(class_map=classes, source=f"test/berlin/berlin_00000{i}_000019_leftImg8bit.png")
        for i in (0, 1)
    ]
    found = pictures(write_submission(results, tmp_path / "new" / "x.zip", TRAIN_IDS))
    assert set(found) == {f"berlin_00000{i}_000019_pred_labelIds.png" for i in (0, 1)}
    for picture in found.values():
        assert picture.dtype == np.uint8 and picture.tolist() == [list(TRAIN_IDS)]


def test_values_follow_names_and_the_rest_is_unlabelled():
    assert label_values("Cityscapes", ("bicycle", "road")) == (33, 7)
    with_background = get_label_space("Cityscapes{background}").class_names
    assert label_values("Cityscapes{background}", with_background) == (*TRAIN_IDS, 0)
    assert label_values("3, 300", ("a", "b")) == (3, 300)


@pytest.mark.parametrize(
    ("chosen", "names", "message"),
    [
        ("1,2", ("a", "b", "c"), r"2 values for 3 classes \(a, b, c\)"),
        ("Cityscapes", ("road", "cow"), "class 'cow' is none of Cityscapes"),
        ("Cityscapes{category}", ("flat",), "'flat' of Cityscapes{category} stands for 4 values"),
        ("iSAID", ("ship",), "hold colours"),
    ],
)
def test_classes_without_one_value_are_refused(chosen, names, message):
    with pytest.raises(ConfigError, match=message):
        label_values(chosen, names)


def test_wrong_results_are_refused_and_leave_no_file(tmp_path):
    one = Segmentation(class_map=torch.tensor([[0, 1]]), source="a.png")
    wrong = {
        "holds classes 0..1, but values are known for 1": ([one], (7,)),
        "two images are called a.png": ([one, one], (7, 8)),
        "is no class map of an image": ([Segmentation(Instances.empty((2, 3)))], (7,)),
    }
    for message, (results, values) in wrong.items():
        with pytest.raises(DataError, match=message):
            write_submission(results, tmp_path / "x.zip", values)
    assert list(tmp_path.iterdir()) == []


def test_values_above_a_byte_are_16_bit(tmp_path):
    with Submission(tmp_path / "x.zip", (3, 300)) as submission:
        submission.add(Segmentation(class_map=torch.tensor([[0, 1]]), source="a.tif"))
    assert pictures(tmp_path / "x.zip")["a.png"].tolist() == [[3, 300]]


def test_predict_writes_a_submission(tmp_path, capsys):
    model = create_model("fcn", "simple", 2, class_names=("road", "car"))
    file = str(save_safetensors(model, tmp_path / "model.safetensors"))
    images = tmp_path / "leftImg8bit" / "test" / "ulm"
    images.mkdir(parents=True)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(images / "ulm_000000_000019_leftImg8bit.png")
    arguments = ["predict", file, str(tmp_path / "leftImg8bit" / "test"), "--out", str(tmp_path / "out")]
    assert run([*arguments, "--label-values", "Cityscapes"]) == 0
    found = pictures(tmp_path / "out" / "submission.zip")["ulm_000000_000019_pred_labelIds.png"]
    assert found.shape == (20, 30) and set(np.unique(found)) <= {7, 26}
    assert run([*arguments, "--label-values", "1,2,3"]) == 2
    assert "3 values for 2 classes (road, car)" in capsys.readouterr().err
    assert run([*arguments, "--label-values", "Cityscapes", "--as-labels"]) == 2
