import pytest
import torch

from pixvox.errors import ConfigError
from pixvox.inference.predictor import predict
from pixvox.inference.test_time_augmentation import Augmented, View, views
from pointwise import noise, pointwise

RANGE = torch.tensor([[[0.0, 1.0]]])
MERGES = ("mean_logit", "mean_probability", "max_probability", "vote")


@pytest.mark.parametrize("size", [(7, 12), (3, 7, 12)])
def test_the_way_back_from_flips_and_quarter_turns_is_exact(size):
    image = torch.rand(2, 3, *size)
    flips = [-1, -2, -3][: len(size)]
    found = views([1.0], flips, [0, 90, 180, 270])
    assert len(found) == 4 * 2 ** len(size)
    shown = [view.apply(image) for view in found]
    for view, seen in zip(found, shown, strict=True):
        back, weight = view.undo(seen, size)
        assert torch.equal(back, image)
        assert torch.equal(weight.expand(1, 1, *size), torch.ones(1, 1, *size))
    quarter = View(rotation=90).apply(image)
    assert torch.equal(quarter, image.rot90(1, (-2, -1)))
    assert quarter.shape[-2:] == (12, 7)


def test_a_free_angle_turns_as_quarter_turns_do_and_knows_what_it_shows():
    image = torch.rand(1, 1, 9, 9)
    near, exact = View(rotation=90 + 1e-4).apply(image), View(rotation=90).apply(image)
    torch.testing.assert_close(near, exact, atol=1e-3, rtol=0)
    smooth = torch.arange(40.0).expand(1, 1, 30, 40)
    back, weight = View(rotation=30).undo(View(rotation=30).apply(smooth), (30, 40))
    sure = weight.expand_as(back) > 0.9999
    assert 0.6 < sure.float().mean() < 1
    wrong = torch.where(sure, (back - smooth).abs(), 0.0)
    assert wrong[..., 1:-1, 1:-1].max() < 0.01
    assert wrong.max() < 0.25  # the last pixel is mixed with what is mirrored beyond it
    assert weight[0, 0, 0, 0] < 1e-3  # a corner that was turned out of the view


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("size", [(7, 12), (3, 7, 12)])
def test_views_of_an_equivariant_network_say_what_the_plain_image_says(merge, size):
    model, image = pointwise(len(size)), noise(size)
    plain = predict(model, image).class_map
    tta = {"flips": [-1, -2], "rotations": [0, 90, 180], "merge": merge}
    assert torch.equal(predict(model, image, tta=tta).class_map, plain)
    assert torch.equal(predict(model, image, tta={**tta, "product": False}).class_map, plain)
    assert torch.equal(predict(model, image, tta=tta, tile_size=5).class_map, plain)


@pytest.mark.parametrize("merge", MERGES)
def test_borders_that_a_turn_leaves_are_not_averaged_with_zeros(merge):
    # One class is far likelier everywhere; zeros of a turned view would pull its logits down at the corners.
    logits = torch.tensor([4.0, -3.0]).view(1, 2, 1, 1)
    turned = Augmented(
        lambda images, ranges: logits.expand(1, 2, *images.shape[2:]), rotations=(0, 20, 45), merge=merge
    )
    merged = turned(torch.rand(1, 1, 15, 22), RANGE)
    margin = (merged[:, 0] - merged[:, 1]).flatten()
    torch.testing.assert_close(margin, margin[:1].expand_as(margin), rtol=1e-4, atol=1e-4)
    only = Augmented(
        lambda images, ranges: logits.expand(1, 2, *images.shape[2:]), rotations=(45,), merge=merge
    )
    assert (only(torch.rand(1, 1, 15, 22), RANGE).argmax(1) == 0).all()  # and where no view shows anything


def test_scales_resize_the_images_and_bring_scores_back():
    seen = []

    def scores(images, ranges):
        seen.append(tuple(images.shape[2:]))
        return torch.cat([images, 1 - images], dim=1)

    image = torch.linspace(0, 1, 40).expand(1, 1, 20, 40).contiguous()
    tta = Augmented(scores, scales=(0.5, 0.75, 1.0, 1.25, 1.5), flips=(-1,), merge="mean_logit")
    merged = tta(image, RANGE)
    assert len(seen) == 10
    assert set(seen) == {(10, 20), (15, 30), (20, 40), (25, 50), (30, 60)}
    assert (merged[:, :1] - image).abs().max() < 0.02


def test_merging_by_hand():
    said = [torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.05, 0.9, 0.05]), torch.tensor([0.5, 0.1, 0.4])]

    def merged(merge):
        answers = iter(said)
        views_of = Augmented(
            lambda images, ranges: next(answers).log().view(1, 3, 1, 1), rotations=(0, 90, 180), merge=merge
        )
        return views_of(torch.zeros(1, 1, 1, 1), RANGE).softmax(1).flatten()

    torch.testing.assert_close(merged("mean_probability"), torch.stack(said).mean(0))
    torch.testing.assert_close(merged("mean_logit"), torch.stack(said).log().mean(0).softmax(0))
    torch.testing.assert_close(merged("max_probability"), torch.tensor([0.6, 0.9, 0.4]) / 1.9)
    assert merged("vote").argmax() == 0  # two of three, though the mean is for the other
    assert merged("mean_probability").argmax() == 1
    said.pop()
    assert merged_of_two(said).argmax() == 1  # a draw goes to the greater mean


def merged_of_two(said):
    answers = iter(said)
    tta = Augmented(
        lambda images, ranges: next(answers).log().view(1, 3, 1, 1), rotations=(0, 90), merge="vote"
    )
    return tta(torch.zeros(1, 1, 1, 1), RANGE).flatten()


def test_one_at_a_time_keeps_the_image_as_it_is():
    found = views([0.5, 1.0], [-1, -2], [0, 90], every=False)
    assert found == [View(), View(scale=0.5), View(flips=(-1,)), View(flips=(-2,)), View(rotation=90)]
    assert len(views([0.5, 1.0], [-1, -2], [0, 90])) == 16


def test_wrong_options_are_named():
    model, image = pointwise(), noise((4, 5))
    for tta, message in (
        ({"scales": [0]}, "magnifications above 0"),
        ({"scales": []}, "magnifications above 0"),
        ({"flips": [1]}, "the axes of images are -1, -2"),
        ({"flips": [-3]}, "the axes of images are -1, -2"),
        ({"rotations": [float("nan")]}, "angles in degrees"),
        ({"merge": "mean"}, "mean_logit"),
        ({"flip": [-1]}, "did you mean flips"),
    ):
        with pytest.raises(ConfigError, match=message):
            predict(model, image, tta=tta)


def test_left_and_right_classes_of_a_mirror_image_change_places():
    # A network that calls the left half 1 and the right half 2, whatever it shows.
    def halves(images, ranges):
        side = torch.arange(images.shape[-1]) >= images.shape[-1] / 2
        left, right = (9.0 * part.expand(1, 1, *images.shape[2:]) for part in (~side, side))
        return torch.cat([torch.zeros_like(left), left, right], dim=1)

    image = torch.zeros(1, 1, 3, 6)
    named = Augmented(halves, flips=(-1,), flip_pairs=[(1, 2)])(image, RANGE)
    torch.testing.assert_close(named.softmax(1), halves(image, RANGE).softmax(1))
    torn = Augmented(halves, flips=(-1,))(image, RANGE).softmax(1)
    torch.testing.assert_close(torn[:, 1], torn[:, 2])
