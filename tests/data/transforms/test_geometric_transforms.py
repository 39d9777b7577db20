import pytest
import torch
import torchvision.transforms.v2.functional as TF

from pixvox.data.sample import Sample
from pixvox.data.transforms import Compose, RandomAffine, RandomCrop, RandomElastic, RandomFlip, Resize
from pixvox.data.transforms.crop import patch_start
from pixvox.data.transforms.warp import pixel_grid, warp

SIZES = [(14, 19), (7, 14, 19)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def coded(size, ids=5, **fields):
    """A sample whose image is its label map, so that the two must stay together."""
    layers = torch.randint(0, ids + 1, (1, *size), generator=generator(1), dtype=torch.int32)
    n = int(layers.max())
    return Sample(
        layers.float(), layers, torch.arange(n), torch.zeros(n, dtype=torch.bool),
        intensity_range=torch.tensor([[0.0, ids]]), **fields,
    )  # fmt: skip


def ball(size, radius, spacing):
    offsets = (pixel_grid(size) - torch.tensor([(length - 1) / 2 for length in size])) * torch.tensor(spacing)
    layers = (offsets.square().sum(-1) <= radius**2).int()[None]
    return Sample(
        layers.float(), layers, torch.tensor([0]), torch.tensor([False]),
        spacing=tuple(spacing), intensity_range=torch.tensor([[0.0, 1.0]]),
    )  # fmt: skip


EXACT = [RandomFlip(), RandomCrop(6), Compose([RandomCrop(9), RandomFlip()])]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("transform", EXACT, ids=["flip", "crop", "both"])
def test_exact_transforms_move_image_and_ids_alike(size, transform):
    for seed in range(5):
        changed = transform(coded(size), generator(seed))
        assert torch.equal(changed.image, changed.layers.float())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "transform",
    [RandomAffine(30, (0.8, 1.2), 0.1), RandomElastic(1.0, 8, probability=1.0), RandomAffine(45, size=6)],
    ids=["affine", "elastic", "patch"],
)
def test_warps_make_no_new_ids_above_float_precision(size, transform):
    top = 2**24
    sample = coded(size)
    sample.layers = torch.where(sample.layers > 0, sample.layers + top, sample.layers)
    changed = transform(sample, generator(3))
    assert set(changed.layers.unique().tolist()) <= set(sample.layers.unique().tolist())
    assert changed.layers.dtype == torch.int32
    assert (changed.layers > top).any()


@pytest.mark.parametrize("size", SIZES)
def test_same_generator_gives_the_same_sample_and_another_does_not(size):
    transform = Compose([RandomAffine(30, (0.8, 1.2), size=6), RandomFlip(), RandomElastic(probability=1.0)])
    first, again, other = (transform(coded(size), generator(seed)) for seed in (4, 4, 5))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.layers, again.layers)
    assert not torch.equal(first.image, other.image)


@pytest.mark.parametrize("size", SIZES)
def test_warp_at_the_pixels_themselves_is_identity(size):
    sample = coded(size)
    same = warp(sample, pixel_grid(size))
    assert torch.equal(same.layers, sample.layers)
    assert torch.allclose(same.image, sample.image, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_labels_come_from_the_nearest_pixel(size):
    sample = coded(size)
    for shift in (-0.4, 0.4):
        assert torch.equal(warp(sample, pixel_grid(size) + shift).layers, sample.layers)
    inner = (slice(None), *[slice(0, -1)] * len(size))
    moved = warp(sample, pixel_grid(size) + 0.6).layers[inner]
    assert torch.equal(moved, sample.layers[(slice(None), *[slice(1, None)] * len(size))])


def test_places_outside_are_background_and_ignored():
    sample = Sample(
        torch.full((1, 2, 2), 9.0), class_map=torch.ones(2, 2, dtype=torch.int64), ignore_index=77,
        intensity_range=torch.tensor([[3.0, 9.0]]),
    )  # fmt: skip
    moved = warp(sample, pixel_grid((2, 2)) + torch.tensor([0.0, 1.0]))
    assert moved.class_map.tolist() == [[1, 77], [1, 77]]
    assert moved.image[0].tolist() == [[9, 3], [9, 3]]


def test_affine_of_one_slice_equals_2d():
    flat = coded((13, 17))
    thick = Sample(flat.image[:, None], flat.layers[:, None], flat.labels, flat.ignore,
                   intensity_range=flat.intensity_range)  # fmt: skip
    matrix = RandomAffine(40, (0.7, 0.9), 0.2)._matrix(2, generator(7))
    lifted = torch.eye(3)
    lifted[1:, 1:] = matrix

    class Fixed(RandomAffine):
        def __init__(self, matrix):
            super().__init__()
            self.matrix = matrix

        def _matrix(self, dims, generator):
            return self.matrix

    two, three = Fixed(matrix)(flat, generator()), Fixed(lifted)(thick, generator())
    assert torch.equal(two.layers, three.layers[:, 0])
    assert torch.allclose(two.image, three.image[:, 0], atol=1e-4)


@pytest.mark.parametrize(("size", "spacing"), [((31, 61), (2.0, 1.0)), ((25, 49, 65), (2.0, 1.0, 0.75))])
def test_a_turned_ball_stays_a_ball_whatever_the_spacing(size, spacing):
    sample = ball(size, 20.0, spacing)
    turned = RandomAffine(rotation=[90.0] * (2 * len(size) - 3))(sample, generator(2))
    union = (turned.layers | sample.layers).sum()
    assert ((turned.layers & sample.layers).sum() / union).item() > 0.9


def test_one_angle_turns_volumes_in_the_last_plane_only():
    layers = torch.arange(1, 6, dtype=torch.int32).view(1, 5, 1, 1).expand(1, 5, 14, 19).clone()
    sample = Sample(layers.float(), layers, torch.zeros(5).long(), torch.zeros(5).bool())
    turned = RandomAffine(rotation=180.0)(sample, generator(2)).layers
    assert (turned == 0).any(), "corners come from outside"
    assert ((turned == 0) | (turned == layers)).all()


def test_magnification_of_two_quadruples_an_area():
    sample = ball((61, 61), 8.0, (1.0, 1.0))
    grown = RandomAffine(scale=(2.0, 2.0))(sample, generator())
    assert grown.layers.sum().item() == pytest.approx(4 * sample.layers.sum().item(), rel=0.05)


def test_patch_without_a_change_is_an_exact_cut():
    sample = coded((14, 19))
    patch = RandomAffine(30, size=(5, 6), probability=0.0)(sample, generator(1))
    assert patch.size == (5, 6)
    assert torch.equal(patch.image, patch.layers.float())


def test_a_patch_is_its_own_original_frame():
    resized = Resize(7)(coded((14, 19)), generator())
    assert resized.original_size == (14, 19)
    assert RandomCrop(4)(resized, generator()).original_size is None


@pytest.mark.parametrize("size", SIZES)
def test_foreground_patches_show_an_object(size):
    layers = torch.zeros((1, *size), dtype=torch.int32)
    layers[(0, *(length - 1 for length in size))] = 1
    sample = Sample(torch.zeros(1, *size), layers, torch.tensor([0]), torch.tensor([False]))
    for seed in range(20):
        assert RandomCrop(4, foreground=1.0)(sample, generator(seed)).layers.any()


def test_foreground_patches_leave_out_crowds_and_missing_data():
    layers = torch.zeros(1, 20, 30, dtype=torch.int32)
    layers[0, 3, 4], layers[0, 10:] = 1, 2
    sample = Sample(torch.zeros(1, 20, 30), layers, torch.tensor([0, 0]), torch.tensor([False, True]))
    crop = RandomCrop(4, foreground=1.0)
    for seed in range(20):
        assert (crop(sample, torch.Generator().manual_seed(seed)).layers == 1).any()


def test_foreground_of_a_class_map_leaves_out_background_and_ignored():
    class_map = torch.zeros((20, 20), dtype=torch.int64)
    class_map[:, :2] = 255
    class_map[19, 19] = 2
    sample = Sample(torch.zeros(1, 20, 20), class_map=class_map)
    for seed in range(10):
        start = patch_start(sample, (4, 4), 1.0, generator(seed))
        assert start == (16, 16)


def test_patch_start_reaches_both_ends():
    sample = Sample(torch.zeros(1, 5, 9))
    starts = {patch_start(sample, (4, 4), 0.0, generator(seed)) for seed in range(200)}
    assert {start[0] for start in starts} == {0, 1}
    assert {start[1] for start in starts} == set(range(6))


@pytest.mark.parametrize(
    "transform", [RandomCrop((4, 30)), RandomAffine(size=(4, 30))], ids=["crop", "affine"]
)
def test_axis_shorter_than_the_patch_is_kept_whole(transform):
    assert transform(coded((14, 19)), generator()).size == (4, 19)


def test_objects_cut_off_by_a_crop_vanish_with_their_labels():
    layers = torch.tensor([[[1, 1, 2, 2, 3, 3]]], dtype=torch.int32)
    sample = Sample(torch.zeros(1, 1, 6), layers, torch.tensor([7, 8, 9]), torch.zeros(3, dtype=torch.bool))
    for seed in range(10):
        patch = RandomCrop((1, 3))(sample, generator(seed))
        instances = patch.instances(min_size=2)
        seen = [int(i) for i in patch.layers.unique() if i > 0 and (patch.layers == i).sum() >= 2]
        assert instances.labels.tolist() == [i + 6 for i in seen]
        assert (instances.boxes[:, 2:] > instances.boxes[:, :2]).all()


@pytest.mark.parametrize(
    ("options", "size", "expected"),
    [
        ({"size": 10}, (14, 20), (7, 10)),
        ({"size": (10, 40)}, (20, 20), (10, 10)),
        ({"size": 10}, (5, 20, 20), (2, 10, 10)),
        ({"size": 7, "mode": "shortest"}, (14, 20), (7, 10)),
        ({"size": 7, "mode": "shortest", "longest": 8}, (14, 28), (4, 8)),
        ({"size": (3, 4), "mode": "exact"}, (14, 20), (3, 4)),
        ({"size": 10, "jitter": (2.0, 2.0)}, (14, 20), (14, 20)),
    ],
)
def test_resize_gives_the_size_asked_for(options, size, expected):
    assert Resize(**options)(coded(size), generator()).size == expected


def test_resize_changes_spacing_and_keeps_the_extent():
    resized = Resize((7, 38), mode="exact")(coded((14, 19), spacing=(1.0, 3.0)), generator())
    assert resized.spacing == (2.0, 1.5)


@pytest.mark.parametrize("size", SIZES)
def test_shrinking_keeps_the_mean_and_growing_the_labels(size):
    sample = coded(size)
    grown = Resize([2 * length for length in size], mode="exact")(sample, generator())
    every_second = (slice(None), *[slice(0, None, 2)] * len(size))
    assert torch.equal(grown.layers[every_second], sample.layers)
    shrunk = Resize(max(size) // 2)(sample, generator())
    assert shrunk.image.mean().item() == pytest.approx(sample.image.mean().item(), abs=0.15)


def test_elastic_displaces_coarse_axes_by_fewer_pixels():
    ramp = pixel_grid((24, 24)).movedim(-1, 0)
    sample = Sample(ramp, spacing=(4.0, 1.0), intensity_range=torch.tensor([[0.0, 24.0]] * 2))
    moved = RandomElastic(1.0, 12.0, probability=1.0)(sample, generator(3)).image - ramp
    inner = (slice(None), slice(8, 16), slice(8, 16))
    along_z, along_x = moved[inner].abs().mean(dim=(1, 2)).tolist()
    assert 0 < along_z < 0.6 * along_x


def test_flip_of_the_last_axis_is_left_right_in_3d():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    flipped = RandomFlip(axes=[-1], probability=1.0)(Sample(image), generator()).image
    assert torch.equal(flipped, image.flip(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomAffine(scale=(1.2, 0.8)), "ascending"),
        (lambda: RandomCrop((4, 4, 4))(coded((14, 19)), generator()), "3 axes"),
        (lambda: RandomAffine([1, 2])(coded((14, 19)), generator()), "1 for the planes"),
    ],
)
def test_wrong_options_are_refused_with_what_was_given(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_perspective_equals_torchvisions_of_the_same_corners():
    image = torch.rand((1, 41, 61), generator=generator(1))
    smooth = torch.nn.functional.avg_pool2d(image, 9, 1, 4, count_include_pad=False)
    sample = Sample(smooth, intensity_range=torch.tensor([[0.0, 1.0]]))
    transform = RandomAffine(perspective=0.6)
    tilt = transform._tilt(2, generator(8))

    class Fixed(RandomAffine):
        def _tilt(self, dims, generator):
            return tilt

    ours = Fixed(perspective=0.6)(sample, generator()).image
    # Pixel centres (x, y) of the output's corners; torchvision counts from the edge of the first pixel.
    corners, halves = torch.tensor([[0, 0], [60, 0], [60, 40], [0, 40]]), torch.tensor([30.0, 20.0])
    relative = corners / halves - 1
    sources = (relative / (1 + relative @ tilt.flip(0))[:, None] + 1) * halves
    theirs = TF.perspective(
        smooth, (sources + 0.5).tolist(), (corners + 0.5).tolist(), TF.InterpolationMode.BILINEAR, fill=0.0
    )
    inner = (0, slice(8, -8), slice(8, -8))
    assert tilt.abs().max() > 0.1
    assert torch.allclose(ours[inner], theirs[inner], atol=1e-3)
    assert not torch.allclose(ours[inner], smooth[inner], atol=5e-2)


@pytest.mark.parametrize("size", SIZES)
def test_perspective_keeps_the_centre_and_stays_finite_at_the_limit(size):
    size = tuple(length | 1 for length in size)
    sample = coded(size)
    for seed in range(10):
        tilted = RandomAffine(perspective=0.99)(sample, generator(seed))
        centre = (0, *(length // 2 for length in size))
        assert tilted.image.isfinite().all()
        assert tilted.layers[centre] == sample.layers[centre]


def test_aspect_stretches_one_axis_against_the_other_at_equal_area():
    sample = ball((61, 61), 12.0, (1.0, 1.0))
    ratios = []
    for seed in range(12):
        layers = RandomAffine(aspect=2.0)(sample, generator(seed)).layers[0]
        assert layers.sum().item() == pytest.approx(sample.layers.sum().item(), rel=0.1)
        ratios.append((layers.any(0).sum() / layers.any(1).sum()).item())
    assert 0.4 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 2.5


def test_mask_fill_replaces_the_ignored_label_outside():
    sample = Sample(torch.zeros(1, 9, 9), class_map=torch.ones(9, 9, dtype=torch.int64))
    shrunk = RandomAffine(scale=(0.5, 0.5), mask_fill=0)(sample, generator())
    assert set(shrunk.class_map.unique().tolist()) == {0, 1}
    assert shrunk.ignore_index == 255


@pytest.mark.parametrize("size", SIZES)
def test_a_reflecting_border_mirrors_the_image_and_ignores_it(size):
    sample = coded(size)
    moved = warp(sample, pixel_grid(size) + torch.tensor([*[0.0] * (len(size) - 1), 3.0]), reflect=True)
    expected = torch.cat([sample.image[..., 3:], sample.image[..., -3:].flip(-1)], dim=-1)
    assert torch.allclose(moved.image, expected, atol=1e-3)
    assert (moved.layers[0, ..., -3:] == 0).all()
    outside = moved.layers[1] == len(moved.labels)
    assert outside[..., -3:].all()
    assert not outside[..., :-3].any()
    assert moved.ignore.tolist() == [False] * len(sample.labels) + [True]
    shrunk = RandomAffine(scale=(0.5, 0.5), border="reflect")(sample, generator())
    assert shrunk.ignore[-1]
