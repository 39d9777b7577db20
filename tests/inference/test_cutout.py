import numpy as np
import pytest
import torch
from PIL import Image

from pixvox.cli import run
from pixvox.errors import DataError
from pixvox.inference.cutout import class_index, cut_out
from pixvox.models import create_model
from pixvox.structures import Instances, Segmentation
from pixvox.weights.checkpoint import save_safetensors

SIZE = (9, 12)
NAMES = ("cell", "debris")


def _masks():
    masks = torch.zeros(4, *SIZE, dtype=torch.bool)
    masks[0, 1:4, 1:5] = True
    masks[1, 2:6, 3:8] = True  # overlaps the first
    masks[2, 0:2, 8:12] = True
    masks[3, 7:9, 0:3] = True
    return masks


def _result(image=None, **fields):
    image = torch.arange(3 * 108.0).reshape(3, *SIZE) % 256 if image is None else image
    scores = torch.tensor([0.9, 0.8, 0.95, 0.7])
    instances = Instances(masks=_masks(), labels=torch.tensor([0, 0, 1, 0]), scores=scores)
    return Segmentation(instances, image=image, class_names=NAMES, **fields)


def test_the_objects_of_a_class_above_the_score_are_united_and_the_rest_is_transparent():
    result = _result()
    made = result.cut_out("cell")
    shown = (_masks()[0] | _masks()[1]).numpy()  # the fourth has exactly the threshold: not above it
    assert made.found
    assert np.array_equal(made.mask, shown)
    assert np.array_equal(made.image[..., 3], shown * 255)
    pixels = result.image.permute(1, 2, 0).numpy()
    assert np.array_equal(made.image[shown][:, :3], pixels[shown])
    assert not made.image[~shown].any(), "nothing that was cut away is left in the file"


@pytest.mark.parametrize(
    ("of", "threshold", "kept"),
    [("debris", 0.7, [2]), (0, 0.85, [0]), ("all", 0.0, [0, 1, 2, 3]), (None, 0.85, [0, 2])],
)
def test_class_by_name_or_index_and_threshold_choose_the_objects(of, threshold, kept):
    made = cut_out(_result(), of, score_threshold=threshold)
    assert np.array_equal(made.mask, _masks()[kept].any(0).numpy())


@pytest.mark.parametrize("invert", [False, True])
def test_nothing_found_keeps_the_size_and_says_so(invert):
    made = cut_out(_result(), "cell", score_threshold=0.99, invert=invert)
    assert not made.found
    assert made.image.shape == (*SIZE, 4)
    assert made.mask.all() == invert
    assert made.mask.any() == invert


def test_invert_shows_the_rest():
    made, other = cut_out(_result(), "cell"), cut_out(_result(), "cell", invert=True)
    assert np.array_equal(made.mask, ~other.mask)
    assert np.array_equal(other.image[..., 3] == 255, other.mask)


@pytest.mark.parametrize("background", ["white", "#ffffff", (255, 255, 255), Image.new("L", (50, 20), 255)])
def test_background_replaces_the_rest(background):
    result = _result()
    made = cut_out(result, "cell", background=background)
    assert made.image.shape == (*SIZE, 3)
    assert (made.image[~made.mask] == 255).all()
    assert np.array_equal(made.image[made.mask], result.image.permute(1, 2, 0).numpy()[made.mask])


def test_picture_behind_covers_the_image_and_is_centred(tmp_path):
    picture = np.zeros((9, 36, 3), np.uint8)  # three times as wide: its middle third is seen
    picture[:, 12:24, 1] = 200
    Image.fromarray(picture).save(tmp_path / "sea=blue.png")
    for background in (tmp_path / "sea=blue.png", picture, torch.from_numpy(picture).permute(2, 0, 1)):
        made = cut_out(_result(), "cell", background=background)
        assert (made.image[~made.mask] == (0, 200, 0)).all()


@pytest.mark.parametrize(
    ("image", "value"),
    [
        (torch.full((1, *SIZE), 130.0), 130),  # 8-bit grey stays as it is
        (torch.full((3, *SIZE), 130.0), 130),
        (torch.linspace(0, 40000, 108).reshape(1, *SIZE), None),  # 16 bits are stretched to 8
        (torch.linspace(0, 1, 216).reshape(2, *SIZE), None),
    ],
)
def test_every_kind_of_image_becomes_8_bit_rgb(image, value):
    made = cut_out(_result(image), None, score_threshold=0.0)
    assert made.image.dtype == np.uint8
    shown = made.image[made.mask][:, :3]
    assert (shown == value).all() if value is not None else int(shown.max()) - int(shown.min()) > 100


def test_closing_bridges_a_gap_and_small_holes_are_filled():
    mask = torch.zeros(1, 20, 30, dtype=torch.bool)
    mask[:, 2:18, 2:14] = mask[:, 2:18, 16:28] = True
    mask[:, 5:8, 5:8] = False  # a hole of 9 pixels
    mask[:, 5:9, 20:24] = False  # and one of 16
    result = Segmentation(Instances(masks=mask), image=torch.full((1, 20, 30), 9.0))
    assert cut_out(result, closing=2).mask[4:16, 14:16].all()
    assert not cut_out(result).mask[4:16, 14:16].any()
    filled = cut_out(result, max_hole=9).mask
    assert filled[5:8, 5:8].all()
    assert not filled[5:9, 20:24].any()
    assert cut_out(result, max_hole=16).mask[5:9, 20:24].all()
    assert not cut_out(result, max_hole=10**6).mask[:2].any(), "what touches the border is no hole"


def test_closing_at_the_border_adds_nothing_beyond_the_object():
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[:, 0:3, 0:3] = True
    result = Segmentation(Instances(masks=mask), image=torch.zeros(1, *SIZE))
    assert np.array_equal(cut_out(result, closing=4).mask, mask[0].numpy())


def test_feather_fades_the_edge_only():
    hard, soft = cut_out(_result(), "cell"), cut_out(_result(), "cell", feather=1.0)
    alpha = soft.image[..., 3]
    assert np.array_equal(hard.mask, soft.mask)
    assert ((alpha > 0) & (alpha < 255)).any()
    assert alpha[3, 4] > alpha[1, 1] > alpha[8, 8]
    mixed = cut_out(_result(), "cell", feather=1.0, background="black").image
    expected = (soft.image[..., :3] * (alpha[..., None] / 255)).round()
    assert np.abs(mixed - expected).max() <= 1


def test_class_map_is_cut_along_the_class_or_its_probability():
    probabilities = torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(0))
    class_map = probabilities.argmax(0)
    image = torch.rand(3, *SIZE)
    plain = Segmentation(class_map=class_map, image=image, class_names=NAMES)
    assert np.array_equal(cut_out(plain, "debris").mask, (class_map == 1).numpy())
    soft = Segmentation(class_map=class_map, probabilities=probabilities, image=image, class_names=NAMES)
    assert np.array_equal(cut_out(soft, 1, mask_threshold=0.8).mask, (probabilities[1] > 0.8).numpy())
    with pytest.raises(DataError, match="came without probabilities"):
        cut_out(plain, "debris", mask_threshold=0.8)
    with pytest.raises(DataError, match="name the one to cut out"):
        cut_out(plain)


def test_stuff_of_a_panoptic_result_is_found_in_the_class_map():
    class_map = torch.zeros(SIZE, dtype=torch.int64)
    class_map[:, 6:] = 2
    result = _result(class_map=class_map)
    result.class_names = (*NAMES, "road")
    assert np.array_equal(cut_out(result, "road").mask, (class_map == 2).numpy())
    assert np.array_equal(cut_out(result, "debris").mask, _masks()[2].numpy())


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_transparency_survives_the_file(tmp_path, suffix):
    made = cut_out(_result(), "cell")
    with Image.open(made.save(tmp_path / f"a=b.{suffix}")) as picture:
        assert picture.mode == "RGBA"
        assert np.array_equal(np.asarray(picture)[..., 3], made.image[..., 3])


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: cut_out(_result(), "cel"), "no class 'cel' to cut out; the classes are cell, debris"),
        (lambda: cut_out(_result(), 2), "no class 2 to cut out"),
        (lambda: cut_out(_result(), 0, mask_threshold=0.4), "cut at 0.5 when they were made"),
        (lambda: cut_out(_result(), 0, background="whit"), "neither a file nor a colour"),
        (lambda: cut_out(_result(), 0, background=(1, 2)), "three numbers in"),
        (lambda: cut_out(_result(), 0, closing=-1), "from 0 on, got -1"),
        (lambda: cut_out(_result(), 0, feather=-1.0), "feather is a number of pixels from 0 on"),
        (lambda: cut_out(_result(), 0, feather=float("inf")), "from 0 on, got inf"),
        (lambda: cut_out(Segmentation(Instances(masks=_masks()))), "keep_image=True"),
        (lambda: cut_out(_result(), 0).save("a.jpg"), "JPEG knows no transparency"),
        (lambda: cut_out(_result(), 0).save("a.gif"), "not '.gif'"),
        (
            lambda: cut_out(Segmentation(Instances(masks=_masks()[:, None]), image=torch.zeros(1, 1, *SIZE))),
            "cut-outs exist for images; of a volume",
        ),
    ],
)
def test_mistake_gets_a_message_with_the_repair(act, said):
    with pytest.raises(DataError, match=said):
        act()


def test_a_class_named_all_is_itself():
    assert class_index(("some", "all"), "all") == 1
    assert class_index(("some", "all"), "0") == 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model = create_model(
        "fcn", "simple", 2, backbone__channels=[4, 8], backbone__strides=[4, 8], class_names=("sky", "sea")
    )
    return save_safetensors(model, tmp_path_factory.mktemp("a b=c,d") / "model.safetensors")


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "a=b, c.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 41, 4), np.uint8)).save(path)  # RGBA
    return path


def test_command_writes_a_cut_out_beside_the_other_results(checkpoint, image, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--cut-out", "sea", "--background", "white", "--max-hole", "5", "--out", str(out)]
    assert run(["predict", str(checkpoint), str(image), *options]) == 0
    assert "a=b, c_cutout.png" in capsys.readouterr().out
    with Image.open(out / "a=b, c_cutout.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (41, 30))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cut-out", "horse"], "no class 'horse' to cut out; the classes are"),
        (["--cut-out", "0", "--background", "/no/such.png"], "neither a file nor a colour"),
        (["--background", "white"], "need --cut-out CLASS"),
    ],
)
def test_command_refuses_before_it_segments(checkpoint, image, tmp_path, capsys, options, said):
    assert run(["predict", str(checkpoint), str(image), *options, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
