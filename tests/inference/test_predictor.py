import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pixvox.errors import ConfigError, DataError
from pixvox.inference.inputs import channels_first, samples
from pixvox.inference.predictor import Predictor, predict
from pixvox.segmenter import Segmenter
from pixvox.structures import Instances, Masks, Segmentation


class Threshold(nn.Module):
    """A stand-in for a segmenter: finds one object where an image is brighter than half its range."""

    def __init__(self, spatial_dims=2, in_channels=1, divisor=4):
        super().__init__()
        self.spatial_dims, self.in_channels = spatial_dims, in_channels
        self.size_divisor = (divisor,) * spatial_dims
        self.config = {}
        self.class_names = ("bright",)
        self.head = nn.Module()
        self.head.score_threshold = 0.5
        self.norm = nn.BatchNorm1d(1)
        self.seen = []

    def normalize(self, images, intensity_ranges, valid_sizes):
        low, high = (
            bound.reshape(*images.shape[:2], *[1] * self.spatial_dims)
            for bound in intensity_ranges.unbind(-1)
        )
        return (images - low) / (high - low).clamp(min=1e-6)

    run, segment = Segmenter.run, Segmenter.segment

    def forward(self, images, targets=None, valid_sizes=None, seeds=None, perturb=None):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen.append((tuple(images.shape), valid_sizes.tolist(), images.dtype))
        return {"bright": images.mean(1) > 0.5, "dtype": (images.flatten(1) @ images.flatten(1).T).dtype}

    def postprocess(self, outputs, geometries):
        self.dtype = outputs["dtype"]
        results = []
        for bright, geometry in zip(outputs["bright"], geometries, strict=True):
            mask = bright[tuple(slice(0, length) for length in geometry.valid_size)].float()
            for axis, length in enumerate(geometry.original_size):
                index = ((torch.arange(length) + 0.5) * mask.shape[axis] / length).long()
                mask = mask.index_select(axis, index)
            instances = Instances(masks=Masks.from_dense(mask[None] > 0.5), scores=torch.tensor([0.7]))
            keep = instances.scores >= self.head.score_threshold
            results.append(Segmentation(instances[keep], geometry=geometry, class_names=self.class_names))
        return results


def picture(size=(10, 14), channels=None):
    image = np.full(size, 20, dtype=np.uint8)
    image[..., 2:7, 3:9] = 220
    return image if channels is None else np.repeat(image[..., None], channels, axis=-1)


def found(result):
    return result.instances.masks.dense()[0].numpy()


EXPECTED = picture() > 100


@pytest.fixture
def files(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "b.png")
    Image.fromarray(picture(channels=3)).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_every_input_gives_the_same_result(files):
    import zarr

    array = picture()
    stored = zarr.create_array(store=zarr.storage.MemoryStore(), shape=array.shape, dtype=array.dtype)
    stored[...] = array
    inputs = [
        files / "b.png", str(files / "a.png"), array, array.astype(np.uint16) * 200, picture(channels=3),
        picture(channels=3).transpose(2, 0, 1), Image.fromarray(array), torch.from_numpy(array)[None], stored,
        array.astype(np.float32) / 255, Image.fromarray(array).convert("P"), picture(channels=4),
    ]  # fmt: skip
    for channels in (1, 3):
        for each in inputs:
            result = predict(Threshold(in_channels=channels), each)
            assert isinstance(result, Segmentation)
            assert np.array_equal(found(result), EXPECTED), (channels, type(each))
            assert result.image.shape == (channels, 10, 14)
            assert result.source
            assert result.geometry.original_size == (10, 14)


def test_many_inputs_give_a_list(files):
    model = Threshold()
    for inputs, sources in (
        (files, ["a.png", "b.png"]),
        ([files / "b.png"], ["b.png"]),
        ([picture(), picture()], ["array[0]", "array[1]"]),
        (torch.from_numpy(picture()).expand(3, 1, 10, 14), ["tensor[0]", "tensor[1]", "tensor[2]"]),
        ((image for image in [picture()]), ["array[0]"]),
        ([], []),
    ):
        results = predict(model, inputs)
        assert [result.source.rsplit("/", 1)[-1] for result in results] == sources
        assert all(np.array_equal(found(result), EXPECTED) for result in results)


def test_folder_is_read_one_image_at_a_time():
    read = []

    def images():
        for i in range(5):
            read.append(i)
            yield picture()

    stream = Predictor(Threshold()).stream(images())
    next(stream)
    assert read == [0]
    next(stream)
    assert read == [0, 1]


def test_volume_keeps_its_frame_and_spacing(tmp_path):
    import tifffile

    volume = picture((5, 10, 14)).astype(np.uint16) * 100
    metadata = {"axes": "ZYX", "PhysicalSizeZ": 2.0, "PhysicalSizeY": 0.5, "PhysicalSizeX": 0.5}
    tifffile.imwrite(tmp_path / "v.ome.tif", volume, ome=True, metadata=metadata)
    model = Threshold(spatial_dims=3)
    result = predict(model, tmp_path / "v.ome.tif")
    assert np.array_equal(found(result), volume > 10_000)
    assert result.geometry.spacing == pytest.approx((2.0, 0.5, 0.5))
    assert result.image.max() == 22_000  # 16 bits keep their range
    assert model.seen[0][:2] == ((1, 1, 8, 12, 16), [[5, 10, 14]])  # padded to multiples of 4
    assert np.array_equal(found(predict(model, volume)), volume > 10_000)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"resize": "none"}, (10, 14)),
        ({"resize": "fit", "size": 28}, (20, 28)),
        ({"resize": "fit", "size": (40, 28)}, (20, 28)),
        ({"resize": "exact", "size": (8, 9)}, (8, 9)),
        ({"resize": "shortest", "size": 20}, (20, 28)),
        ({"resize": "shortest", "size": 20, "max_size": 21}, (15, 21)),
        ({"resize": "shortest", "size": 13}, (13, 18)),  # 18.2 rounded down
    ],
)
def test_resize_policies_bring_results_back_to_the_original_frame(options, shape):
    model = Threshold(divisor=1)
    result = predict(model, picture(), **options)
    assert model.seen[0][0] == (1, 1, *shape)
    assert found(result).shape == (10, 14)
    assert (found(result) & EXPECTED).sum() / (found(result) | EXPECTED).sum() > 0.6


@pytest.mark.parametrize("size", [(97, 150), (150, 97), (61, 333)])
def test_shortest_edge_equals_torchvision(size):
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) * 255
    transform = GeneralizedRCNNTransform(80, 133, [0.0] * 3, [1.0] * 3)
    expected = transform([image])[0].tensors
    model = Threshold(in_channels=3, divisor=32)
    model.normalize = lambda images, *_: images
    predict(model, image, resize="shortest", size=80, max_size=133)
    shape, valid, _ = model.seen[0]
    assert shape == tuple(expected.shape)
    predictor = Predictor(model, resize="shortest", size=80, max_size=133)
    sample = predictor._resized(next(samples(image, 2, 3)))
    height, width = valid[0]
    assert torch.equal(sample.image, expected[0, :, :height, :width])


def test_trained_size_is_the_default_and_can_be_overridden():
    model = Threshold(divisor=1)
    model.config["inference"] = {"resize": "fit", "size": 28}
    predict(model, picture())
    predict(model, picture(), size=14)
    predict(model, picture(), resize="none")
    assert [seen[0][2:] for seen in model.seen] == [(20, 28), (10, 14), (10, 14)]


def test_range_of_the_full_image_is_used():
    bright = picture().astype(np.uint16) * 100 + 5000
    assert np.array_equal(found(predict(Threshold(), bright)), EXPECTED)


def test_batches_change_nothing_but_the_number_of_passes():
    images = [picture(), picture((13, 9)), picture((8, 20))]
    one, three = Threshold(), Threshold()
    alone, together = predict(one, images), predict(three, images, batch_size=3)
    assert (len(one.seen), len(three.seen)) == (3, 1)
    for first, second in zip(alone, together, strict=True):
        assert np.array_equal(found(first), found(second))


def test_modes_and_threshold_are_restored():
    model = Threshold()
    model.train()
    model.norm.eval()  # frozen
    assert len(predict(model, picture(), score_threshold=0.8).instances) == 0
    assert len(predict(model, picture()).instances) == 1
    assert (model.training, model.norm.training, model.head.score_threshold) == (True, False, 0.5)
    with pytest.raises(DataError):
        predict(model, np.zeros((3, 3, 3, 3)))
    assert model.training


def test_precision_is_autocast():
    model = Threshold()
    predict(model, picture(), precision="bf16")
    assert model.dtype == torch.bfloat16
    predict(model, picture())
    assert model.dtype == torch.float32


def test_image_can_be_left_out():
    assert predict(Threshold(), picture(), keep_image=False).image is None


def test_not_finite_values_become_the_lowest():
    image = picture().astype(np.float32)
    image[0, 0], image[0, 1] = np.nan, np.inf
    result = predict(Threshold(), image)
    assert np.array_equal(found(result), EXPECTED)
    assert np.isfinite(result.image).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 3, 4, 5)), "takes images: an array"),
        (np.zeros(7), "1 axes"),
        (np.zeros((9, 9, 2)), "has 9 channels, this model takes 1"),
        (torch.zeros(4, 5), "with or without a batch axis"),
        (np.zeros((0, 4)), "nothing in it"),
        (np.zeros((4, 5), dtype=complex), "no intensities"),
        ({"image": 1}, "of type dict is no image"),
        ("missing.png", "does not exist"),
    ],
)
def test_wrong_inputs_are_named(image, message):
    with pytest.raises(DataError, match=message):
        predict(Threshold(), image)


def test_volume_for_an_image_model_is_refused():
    with pytest.raises(DataError, match="volumes"):
        predict(Threshold(spatial_dims=3), picture())


def test_empty_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="no image was found"):
        predict(Threshold(), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": "half"}, "resize must be one of"),
        ({"resize": "fit"}, "needs the target"),
        ({"resize": "shortest", "size": (3, 4)}, "one length"),
        ({"precision": "int8"}, "precision must be one of"),
        ({"batch_size": 0}, "batch_size"),
        ({"score_threshold": 2.0}, "score_threshold"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        Predictor(Threshold(), **options)


def test_axes_rule():
    for shape, channels, expected in (
        ((5, 6), 1, (1, 5, 6)),
        ((5, 6, 3), 3, (3, 5, 6)),
        ((3, 5, 6), 3, (3, 5, 6)),
        ((5, 6, 4), 3, (3, 5, 6)),  # alpha is dropped
        ((7, 5, 6), 7, (7, 5, 6)),
        ((5, 6, 7), 7, (7, 5, 6)),
        ((2, 2, 2), 2, (2, 2, 2)),
    ):
        assert channels_first(np.zeros(shape), 2, channels).shape == expected
    assert channels_first(np.zeros((4, 5, 6)), 3, 1).shape == (1, 4, 5, 6)
    assert channels_first(np.zeros((4, 5, 6, 2)), 3, 2).shape == (2, 4, 5, 6)


def test_images_of_another_spacing_are_seen_at_that_of_the_training_and_come_back_in_their_own_grid(tmp_path):
    model = Threshold(divisor=1)
    model.config["inference"] = {"spacing": [1.0, 0.5], "spacing_unit": "um"}
    result = predict(model, picture(), image_spacing=[0.5, 0.5])
    assert model.seen[-1][0][2:] == (5, 14)
    assert found(result).shape == result.geometry.original_size == (10, 14)
    assert result.geometry.spacing == pytest.approx((0.5, 0.5))
    assert found(result)[:, 5].tolist() == [False] * 2 + [True] * 4 + [False] * 4  # rows come in pairs
    assert np.array_equal(found(predict(model, picture(), image_spacing=[1.0, 0.5])), EXPECTED)
    import zarr

    stored = zarr.create_array(str(tmp_path / "v.zarr"), shape=(10, 14), dtype=np.uint8)
    stored[...] = picture()
    stored.attrs["spacing"] = [2.0, 1.0]
    result = predict(model, stored)  # an array knows its own
    assert model.seen[-1][0][2:] == (20, 28)
    assert np.array_equal(found(result), EXPECTED)
    predict(model, picture(), image_spacing=[1.0, 0.5], resize="fit", size=7)
    assert model.seen[-1][0][2:] == (5, 7)
    result = predict(model, picture(), image_spacing=[0.5, 0.5], resize="shortest", size=10)
    assert (model.seen[-1][0][2:], found(result).shape) == ((10, 28), (10, 14))


def test_an_image_without_spacing_is_refused_with_the_option_that_gives_it():
    model = Threshold()
    model.config["inference"] = {"spacing": [1.0, 0.5], "spacing_unit": "mm"}
    with pytest.raises(DataError, match=r"inference\.image_spacing=.*inference\.spacing=0"):
        predict(model, picture())
    assert np.array_equal(found(predict(model, picture(), spacing=0)), EXPECTED)
    assert predict(model, picture(), image_spacing=[1, 0.5]).geometry.unit == "mm"
    for options, message in (
        ({"spacing": [1.0]}, "inference.spacing: .* 1 axes, the images have 2"),
        ({"image_spacing": [1.0, 0.0]}, "inference.image_spacing: .* above 0"),
        ({"spacing_unit": "inch"}, "um or mm"),
    ):
        with pytest.raises(ConfigError, match=message):
            predict(model, picture(), **options)
