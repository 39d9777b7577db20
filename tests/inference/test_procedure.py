from functools import partial

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from pixvox.assembly import build_segmenter, complete
from pixvox.configuration import compose
from pixvox.data.collate import Collate
from pixvox.data.metadata import Metadata
from pixvox.data.sample import Sample
from pixvox.data.volumes.ome_zarr import create_ome_zarr
from pixvox.errors import ConfigError
from pixvox.evaluation import build_procedure, evaluate, evaluation_config
from pixvox.inference.predictor import predict
from pixvox.inference.procedure import Procedure
from pixvox.methods.supervised import Supervised
from pixvox.prediction import predict_files
from pixvox.training.train import train
from pixvox.weights import load
from pointwise import noise, pointwise

pytestmark = pytest.mark.usefixtures("no_pictures")

FLAT = {"tile_size": 8, "tta": {"flips": [-1], "merge": "vote"}}


def test_options_of_the_checkpoint_hold_unless_others_are_given():
    model = pointwise()
    model.config["inference"] = {"resize": "none", **FLAT, "clean_up": {"min_area": 3}}
    plain = Procedure.of(model)
    assert plain.pieces.tile_size == (8, 8)
    assert plain.pieces.scores.merge == "vote"
    changed = Procedure.of(
        model, {"tile_size": 0, "overlap": None, "tta": {"merge": "mean_logit", "flips": None}}
    )
    assert not hasattr(changed.pieces, "tile_size")
    assert (changed.pieces.scores.merge, len(changed.pieces.scores.views)) == ("mean_logit", 2)
    assert changed.clean_up.min_area == 3


def test_a_batch_of_padded_images_is_segmented_image_by_image():
    model, images = pointwise(), [noise((9, 14)), noise((12, 11), seed=1)]
    batch = Collate(8)([Sample(image) for image in images])  # without the ranges of the full images
    alone = [predict(model, image).class_map for image in images]
    for options in ({}, {"tile_size": 5}, {"tta": {"flips": [-1, -2]}}):
        found = Procedure.of(model, options)(batch)
        assert [tuple(each.class_map.shape) for each in found] == [(9, 14), (12, 11)]
        for one, other in zip(found, alone, strict=True):
            assert (one.class_map == other).float().mean() > 0.97  # other estimates of the percentiles


def test_images_of_one_slice_equal_the_image():
    image = noise((11, 17))
    flat = predict(pointwise(2), image, tile_size=6, tta={"flips": [-1]}).class_map
    deep = predict(pointwise(3), image[:, None], tile_size=6, tta={"flips": [-1, -3]}).class_map
    assert torch.equal(deep[0], flat)


def test_validation_segments_as_the_model_was_set_up_to():
    model, size = pointwise(), (16, 24)
    model.config["inference"] = FLAT
    sizes = []
    model.backbone.register_forward_hook(
        lambda module, inputs, made: sizes.append(tuple(inputs[0].shape[2:]))
    )
    batch = Collate(1)([Sample(noise(size), class_map=torch.zeros(size, dtype=torch.int64))])
    method = Supervised(model, partial(torch.optim.SGD, lr=0.1))
    with torch.no_grad():
        found = method.validation_step(batch, 0)["predictions"]
    assert sizes[0] == size  # the loss is that of the whole image
    assert set(sizes[1:]) == {(8, 8)}
    model.config["inference"] = {}
    assert torch.equal(found[0].class_map, Procedure.of(model)(batch)[0].class_map)


def test_an_evaluation_says_what_it_does_not_know():
    for options, message in (
        ({"resize": "fit"}, "an evaluation resizes as its transforms say"),
        ({"tta": {"merge": "mean"}}, "mean_logit, mean_probability"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_procedure(pointwise(), OmegaConf.create({"inference": options}))


def test_options_of_a_training_are_checked_and_kept_with_the_model():
    base = ["head=fcn", "backbone=simple", "neck=none", "data=shapes"]
    metadata = Metadata("semantic", 2, ("a", "b"), 3)
    config = compose("train", [*base, "inference.tile_size=16", "inference.tta.flips=[-1]"])
    complete(config, metadata)
    assert build_segmenter(config, metadata).config["inference"] == {"tile_size": 16, "tta": {"flips": [-1]}}
    config.inference.tta.flips = [-3]
    with pytest.raises(ConfigError, match="the axes of images are -1, -2"):
        build_segmenter(config, metadata)


def test_the_spacing_of_a_training_is_kept_with_the_model_and_for_its_evaluation():
    base = ["head=fcn", "backbone=simple", "neck=none", "data=shapes", "transforms.spacing=[2,0.5]"]
    metadata = Metadata("semantic", 2, ("a", "b"), 3, unit="mm")
    config = compose("train", base)
    complete(config, metadata)
    known = {"spacing": [2, 0.5], "spacing_unit": "mm"}
    assert build_segmenter(config, metadata).config["inference"] == known
    other = evaluation_config("nowhere", "shapes", spacing=known["spacing"])
    assert list(other.data.spacing) == [2, 0.5]
    assert (
        evaluation_config("nowhere", "shapes", ["transforms.spacing=null"], spacing=[1]).data.spacing is None
    )
    with pytest.raises(ConfigError, match=r"inference\.spacing is for predict.*transforms\.spacing="):
        build_procedure(pointwise(), OmegaConf.create({"inference": {"spacing": [1, 1]}}))


def test_class_maps_of_resampled_images_come_back_in_their_own_grid():
    model, size = pointwise(3), (6, 9, 14)
    model.config["inference"] = {"spacing": [1.0, 1.0, 0.5], "spacing_unit": "um"}
    for options in ({}, {"tile_size": 8}):
        result = predict(model, noise(size), image_spacing=[2.0, 0.7, 0.5], **options)
        assert result.class_map.shape == size
        assert len(result.class_map.unique()) > 1


@pytest.mark.slow
def test_training_validates_saves_and_evaluates_with_the_options_of_inference(tmp_path):
    run = train(
        ["head=fcn", "backbone=simple", "backbone.channels=[4,8]", "backbone.strides=[2,4]", "neck=none", "data=shapes",
         "data.train.task=semantic", "data.train.num_images=4", "data.val.num_images=2", "data.train.radius=[4,8]",
         "data.train.image_size=[32,40]", "image_size=[24,32]", "batch_size=2", "num_workers=0", "logger=none",
         "trainer.accelerator=cpu", "epochs=1", f"run_dir={tmp_path / 'run'}",
         "inference.tile_size=16", "inference.tta.flips=[-1]"]
    )  # fmt: skip
    assert load(run.dir).config["inference"] == {"tile_size": 16, "tta": {"flips": [-1]}}
    again = evaluate(run.dir, overrides=["num_workers=0"])
    assert again["mIoU"] == pytest.approx(run.metrics["mIoU"], abs=1e-6)
    whole = evaluate(run.dir, overrides=["num_workers=0", "inference.tile_size=64"])
    assert whole["mIoU"] != again["mIoU"]
    with pytest.raises(ConfigError, match="did you mean inference.tile_size"):
        evaluate(run.dir, overrides=["num_workers=0", "inference.tile_sise=8"])


@pytest.mark.slow
def test_volumes_of_several_spacings_are_learned_scored_and_predicted_at_one(tmp_path):
    for split, names in (("train", "abc"), ("val", "de")):
        for number, name in enumerate(names):
            spacing = [(2.0, 1.0, 1.0), (1.0, 1.0, 0.5), (1.0, 0.5, 0.5)][number]
            size = [round(16 / step) for step in spacing]
            labels = np.zeros(size, np.uint8)
            labels[:, size[1] // 4 : size[1] // 2, : size[2] // 2] = 1
            for kind, values in (("images", labels * 200 + np.uint8(number)), ("labels", labels)):
                folder = tmp_path / "data" / kind / split
                folder.mkdir(parents=True, exist_ok=True)
                create_ome_zarr(folder / f"{name}.zarr", size, np.uint8, (4, 8, 8), spacing)[:] = values
    run = train(
        ["head=fcn", "backbone=simple", "backbone.channels=[4,8]", "backbone.strides=[1,2]", "neck=none", "data=folder",
         f"data.path={tmp_path / 'data'}", "data.options.task=semantic", "data.options.spatial_dims=3",
         "transforms.spacing=1", "image_size=[8,8,16]", "batch_size=3", "num_workers=0", "logger=none",
         "trainer.accelerator=cpu", "epochs=2", f"run_dir={tmp_path / 'run'}"]
    )  # fmt: skip
    assert load(run.dir).config["inference"] == {"spacing": 1, "spacing_unit": "um"}
    assert evaluate(run.dir, overrides=["num_workers=0"])["mIoU"] == pytest.approx(
        run.metrics["mIoU"], abs=1e-6
    )
    elsewhere = evaluate(
        run.dir, tmp_path / "data", overrides=["num_workers=0", "data.options.task=semantic"]
    )
    assert elsewhere["mIoU"] == pytest.approx(run.metrics["mIoU"], abs=1e-6)
    as_it_is = evaluate(run.dir, overrides=["num_workers=0", "transforms.spacing=null"])
    assert as_it_is["mIoU"] != run.metrics["mIoU"]
    rows = predict_files(run.dir, [tmp_path / "data" / "images" / "val"], tmp_path / "out")
    assert [row.get("error") for row in rows] == [None, None]
    found = load(run.dir).predict(tmp_path / "data" / "images" / "val" / "e.zarr")
    assert found.class_map.shape == (16, 16, 32)
    assert found.geometry.spacing == pytest.approx((1.0, 1.0, 0.5))
