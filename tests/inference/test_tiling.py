import random
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pixvox.errors import ConfigError
from pixvox.inference.predictor import predict
from pixvox.inference.tiling import Tiled, tile_starts, window_shares
from pixvox.layers import adaptive_average_pool
from pixvox.models import create_model
from pointwise import PixelScores, noise, pointwise


def test_tiles_cover_any_length_overlap_as_asked_and_count_one_everywhere():
    draw = random.Random(0)
    for _ in range(60):
        length, tile, align = draw.randint(1, 90), draw.randint(1, 40), draw.choice([1, 2, 8, 32])
        overlap = draw.choice([0.0, 0.25, 0.5, 0.9])
        starts = tile_starts(length, tile, overlap, align)
        assert starts[0] == 0 and starts == sorted(set(starts))
        ends = [min(start + tile, length) for start in starts]
        assert ends[-1] == length
        for end, following in zip(ends, starts[1:], strict=False):
            assert end - following >= min(int(overlap * tile), tile - 1)
        if tile * (1 - overlap) >= align:
            assert all(start % align == 0 for start in starts)
        for blend in ("gaussian", "linear", "constant"):
            total = torch.zeros(length)
            for start, share in zip(starts, window_shares(length, tile, starts, overlap, blend), strict=True):
                assert share.min() > 0
                total[start : start + len(share)] += share
            torch.testing.assert_close(total, torch.ones(length))


@pytest.mark.parametrize(
    ("size", "tiles"),
    [
        ((13, 29), [5, 8, (1, 7), 64]),
        ((1, 17), [4]),
        ((5, 11, 9), [4, (2, 5, 9), (8, 3, 4)]),
        ((1, 11, 9), [4]),
    ],
)
def test_tiles_of_a_network_without_context_equal_the_whole_image(size, tiles):
    """Fault 47."""
    model, image = pointwise(len(size)), noise(size)
    whole = predict(model, image)
    model.head.gives_probabilities = True
    probabilities = predict(model, image).probabilities
    assert len(whole.class_map.unique()) == 4
    for tile in tiles:
        for overlap, blend in ((0.0, "constant"), (0.25, "linear"), (0.5, "gaussian"), (0.8, "gaussian")):
            model.head.gives_probabilities = False
            options = {"tile_size": tile, "overlap": overlap, "blend": blend, "tile_batch_size": 3}
            tiled = predict(model, image, **options)
            assert torch.equal(tiled.class_map, whole.class_map)
            assert tiled.probabilities is None and tiled.class_names == whole.class_names
        model.head.gives_probabilities = True
        torch.testing.assert_close(predict(model, image, **options).probabilities, probabilities)


class PooledScores(PixelScores):
    """Scores of a pixel less the means of the image."""

    def scores(self, features, auxiliary):
        logits, others = super().scores(features, auxiliary)
        return logits - adaptive_average_pool(logits, 1), others


def pooling(dims):
    model = pointwise(dims)
    model.head = PooledScores(4, dims)
    return model


@pytest.mark.parametrize(("size", "tile"), [((12, 28), 4), ((1, 16), 4), ((4, 8, 12), (4, 2, 4))])
def test_global_pools_see_the_whole_image_in_every_tile(size, tile):
    model, image = pooling(len(size)), noise(size)
    whole = predict(model, image).class_map
    for batch in (1, 3):
        assert torch.equal(predict(model, image, tile_size=tile, tile_batch_size=batch).class_map, whole)
    alone = predict(model, image, tile_size=tile, pool_over="tile").class_map
    assert (alone != whole).float().mean() > 0.1


def test_means_of_images_do_not_mix_and_views_have_their_own():
    model, images = pooling(2), [noise((12, 28), seed) for seed in (1, 2)]
    options = {"tta": {"flips": [-1], "scales": [1, 2]}, "batch_size": 2}
    wholes = predict(model, images, **options)

    def agreement(**more):
        tiled = predict(model, images, tile_size=4, **options, **more)
        return [
            (one.class_map == whole.class_map).float().mean()
            for one, whole in zip(tiled, wholes, strict=True)
        ]

    assert min(agreement()) > 0.9 > max(agreement(pool_over="tile"))


def test_a_pass_for_means_is_made_where_there_are_global_pools_and_several_tiles():
    image = noise((8, 16))
    for model, tile, passes in ((pooling(2), 8, 5), (pooling(2), 16, 1), (pointwise(), 8, 4)):
        forward = model.head.scores
        sizes = []
        model.head.scores = lambda features, auxiliary, to=sizes, do=forward: (
            to.append(features.levels[0].shape) or do(features, auxiliary)
        )
        predict(model, image, tile_size=tile)
        assert len(sizes) == passes


def test_resized_images_are_tiled_at_the_size_of_the_network_and_come_back():
    model, image = pointwise(), noise((14, 22))
    options = {"resize": "fit", "size": 11}
    assert torch.equal(
        predict(model, image, tile_size=4, **options).class_map, predict(model, image, **options).class_map
    )


def test_a_tile_is_normalised_as_the_whole_image():
    model, image = pointwise(), noise((8, 40))
    dark = predict(model, image, tile_size=8).class_map[:, :4]
    alone = predict(model, image[..., :4]).class_map
    assert dark.max() == 0
    assert alone.max() > 0  # what its own range would have made of it


def test_a_tile_as_large_as_the_image_equals_the_network_and_smaller_ones_agree_where_its_context_is_inside():
    model = create_model("fcn", "simple", num_classes=3, in_channels=1, neck="none",
                         backbone__channels=[4, 8], backbone__strides=[2, 4], head__in_levels=[0]).eval()  # fmt: skip
    image = noise((40, 90))
    whole = predict(model, image).class_map
    assert torch.equal(predict(model, image, tile_size=(64, 96)).class_map, whole)
    tiled = predict(model, image, tile_size=32, overlap=0.75, blend="gaussian").class_map
    assert (tiled == whole).float().mean() > 0.97


def test_half_precision_sums_agree_but_for_ties():
    model, image = pointwise(), noise((30, 41))
    tiled = predict(model, image, tile_size=8, accumulator="float16").class_map
    assert (tiled == predict(model, image).class_map).float().mean() > 0.99


class Answers(PixelScores):
    """Gives classes as query heads do: after post-processing alone."""

    def forward(self, features, targets=None):
        return {"answers": super().forward(features)}

    def postprocess(self, outputs, geometries):
        return super().postprocess(outputs["answers"], geometries)


def test_heads_without_logits_are_tiled_by_their_probabilities():
    model, image = pointwise(), noise((24, 40))
    model.head = Answers(4, 2)
    whole, tiled = predict(model, image), predict(model, image, tile_size=8)
    assert torch.equal(whole.class_map, tiled.class_map)
    assert not model.head.gives_probabilities


class Live(TorchDispatchMode):
    """Adds up the storages of the tensors that are alive."""

    def __init__(self, known):
        super().__init__()
        self.now, self.peak = 0, 0
        self.users = {known.untyped_storage().data_ptr(): 1}  # views of it are not counted

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        for tensor in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                place, size = storage.data_ptr(), storage.nbytes()
                if place not in self.users:
                    self.users[place] = 0
                    self.now += size
                self.users[place] += 1
                weakref.finalize(tensor, self.forget, place, size)
        self.peak = max(self.peak, self.now)
        return made

    def forget(self, place, size):
        self.users[place] -= 1
        if not self.users[place]:
            del self.users[place]
            self.now -= size


def test_scores_in_memory_follow_the_tile_and_not_the_length_of_the_image():
    classes, tile, rest = 7, (8, 8, 8), 12 * 16
    tiled = Tiled(lambda images, ranges: images.expand(-1, classes, -1, -1, -1) * 1.0, tile, overlap=0.25)
    peaks = []
    for length in (40, 200):
        image = torch.zeros(1, 12, length, 16)
        with Live(image) as live:
            seen = sum(strip.logits.shape[2] for strip in tiled.strips(image, torch.zeros(1, 2)))
        assert seen == length
        peaks.append(live.peak)
    of_a_tile = 4 * classes * 8**3
    assert peaks[1] - peaks[0] < 8 * 4 * 200  # the weights along the axis
    assert 4 * classes * 8 * rest < peaks[1] <= 4 * classes * (8 + 2) * rest + 4 * of_a_tile
    assert peaks[1] < 4 * classes * 200 * rest / 5


def test_wrong_options_are_named():
    model, image = pointwise(), noise((4, 5))
    for options, message in (
        ({"tile_size": "large"}, r"inference.tile_size=large: it takes a whole number or a list"),
        ({"tile_size": -4}, "at least 1"),
        ({"tile_size": [4, 4, 4]}, "axes|lengths"),
        ({"tile_size": 4, "overlap": 1.0}, r"\[0, 1\)"),
        ({"tile_size": 4, "tile_batch_size": 0}, "at least 1"),
        ({"blend": "soft"}, "gaussian, linear, constant"),
        ({"pool_over": "all"}, "image, tile"),
        ({"tile_sise": 4}, "did you mean tile_size"),
    ):
        with pytest.raises((ConfigError, ValueError), match=message):
            predict(model, image, **options)


def test_objects_are_not_augmented_and_panoptic_segments_not_tiled_so_far():
    model = pointwise()
    for task, options, what in (
        ("instance", {"tta": {"flips": [-1]}}, "augmentation"),
        ("panoptic", {"tile_size": 8}, "tiling"),
    ):
        model.head.task = task
        with pytest.raises(ConfigError, match=f"{what} is for class maps so far"):
            predict(model, noise((8, 8)), **options)
