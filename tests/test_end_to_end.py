"""Once per task and dimension: data on disk, training, evaluation, prediction, pictures, by the command line."""

import json

import pytest

from pixvox.cli import run
from pixvox.overrides import override

SMALL_MASKRCNN = [
    "head=maskrcnn", "neck.out_channels=8", "neck.extra_level=false", "head.box_features=16",
    "head.mask_channels=8", "head.mask_convs=1", "head.num_proposals=[20,10]", "head.box_samples=8",
    "head.rpn_samples=16", "head.detections_per_image=5",
]  # fmt: skip
CASES = {
    "instances-2d": ("shapes", ["image_size=[48,64]", "radius=[5,9]"], SMALL_MASKRCNN, "precision_recall.png"),
    "classes-2d": ("shapes", ["image_size=[48,64]", "radius=[5,9]", "task=semantic"], ["head=fcn"],
                   "confusion_matrix.png"),
    "instances-3d": ("nuclei3d", ["image_size=[12,32,40]", "count=[2,4]"],
                     [*SMALL_MASKRCNN, "image_size=[8,32,32]"], "precision_recall.png"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_from_data_to_pictures(case, tmp_path, capsys):
    kind, options, model, picture = CASES[case]
    data, runs, results = tmp_path / "data", tmp_path / "runs", tmp_path / "results"
    assert run(["data", "make", kind, "--out", str(data), "num_train=2", "num_val=1", *options]) == 0
    assert run(["data", "check", str(data)]) == 0
    sizes = [] if any("image_size" in text for text in model) else ["image_size=48"]
    settings = [*model, *sizes, "backbone=simple", "backbone.channels=[4,8]", "backbone.strides=[4,8]"]
    fast = ["batch_size=2", "num_workers=0", "max_steps=2", "trainer.accelerator=cpu"]
    arguments = ["train", "--data", str(data), *settings, *fast, override("runs_dir", str(runs))]
    assert run(arguments) == 0
    last = runs / "last"
    for name in (picture, "val_predictions.png", "curves.png", "summary.json"):
        assert (last / name).is_file(), name
    assert run(["evaluate", str(last), "--data", str(data), "num_workers=0", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["metrics"]
    best = json.loads((last / "summary.json").read_text())["best"]
    main = "mIoU" if "mIoU" in best else "AP"
    assert scores[main] == pytest.approx(best[main], abs=1e-6)
    images = sorted((data / "images" / "val").iterdir())
    assert run(["predict", str(last), *map(str, images), "--out", str(results)]) == 0
    assert list(results.iterdir())
    assert run(["visualize", str(last), "--num-images", "1"]) == 0
    assert (last / "checkpoints" / "model_predictions_viz.png").is_file()
