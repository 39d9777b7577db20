import numpy as np
import pytest
import torch

from pixvox.structures import Geometry, Instances, Segmentation
from pixvox.visualization.colors import IGNORE_COLOR, palette
from pixvox.visualization.contrast import Contrast
from pixvox.visualization.grids import UNMATCHED_COLOR, matched_colors
from pixvox.visualization.overlay import mosaic, overlay, plot
from pixvox.visualization.views import blend, focus, layer_colors, paint_layer, views


def cells(size=(12, 16), image=None, scores=(0.9, 0.3), **options):
    label_map = torch.zeros(size, dtype=torch.int64)
    label_map[..., 2:8, 3:9] = 1
    label_map[..., 4:10, 9:14] = 2
    instances = Instances(masks=label_map, scores=None if scores is None else torch.tensor(scores))
    return Segmentation(instances, class_names=("cell",), image=image, **options)


def test_overlay_fills_and_outlines():
    image = torch.full((3, 12, 16), 100.0)
    image[0, 0, 0] = 101  # not grey: kept as it is
    picture = overlay(cells(image=image))
    colors = layer_colors(cells().instances)
    assert picture[11, 0].tolist() == [100, 100, 100]
    assert picture[2, 3].tolist() == colors[0].tolist()  # outline, opaque
    assert picture[5, 5].tolist() == np.round(0.6 * 100 + 0.4 * colors[0]).astype(int).tolist()
    assert picture[4, 9].tolist() == colors[1].tolist()


def test_low_scores_can_be_left_out():
    assert overlay(cells(), score_threshold=0.5)[6, 11].tolist() == [0, 0, 0]
    assert overlay(cells())[6, 11].tolist() != [0, 0, 0]
    assert overlay(cells(scores=None), score_threshold=0.5)[6, 11].tolist() != [0, 0, 0]


def test_best_score_is_drawn_on_top_in_its_own_color():
    masks = torch.ones(2, 6, 7, dtype=torch.bool)
    masks[0, 0] = False
    result = Segmentation(Instances(masks=masks, scores=torch.tensor([0.2, 0.9])))
    layer = paint_layer(result)
    assert (layer.ids == 1).all()
    assert layer.colors[1].tolist() == layer_colors(result.instances)[1].tolist()


def test_ignored_instances_and_pixels_are_grey():
    result = cells(scores=None)
    result.instances.ignore[1] = True
    layer = paint_layer(result)
    assert tuple(layer.colors[layer.ids[6, 11]]) == IGNORE_COLOR
    layer = paint_layer(Segmentation(class_map=torch.tensor([[0, 1, 255, -1]])))
    assert tuple(layer.colors[layer.ids[0, 2]]) == tuple(layer.colors[layer.ids[0, 3]]) == IGNORE_COLOR


def test_classes_have_fixed_colors_and_background_is_see_through():
    names = ("background", "cell", "wall")
    for class_map in (torch.tensor([[0, 1, 2]]), torch.tensor([[0, 0, 2]])):
        layer = paint_layer(Segmentation(class_map=class_map, class_names=names))
        assert layer.ids[0, 0] == 0
        assert layer.colors[layer.ids[0, 2]].tolist() == palette(3)[2].tolist()


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_is_shown(channels):
    image = torch.rand(channels, 9, 11, generator=torch.Generator().manual_seed(0)) * 4000
    rgb = Contrast.of(image).rgb(image)
    assert rgb.shape == (9, 11, 3)
    assert rgb.max() == 255
    assert rgb.min() < 30
    assert Contrast.of(image).rgb(image * 0).max() == 0


def test_sixteen_bit_contrast_ignores_hot_pixels():
    image = torch.linspace(1000, 2000, 10_000).reshape(1, 100, 100)
    image[0, 50, 50] = 65535
    rgb = Contrast.of(image).rgb(image)
    assert rgb[99, 90, 0] > 250
    assert 110 < rgb[50, 2, 0] < 145


def test_colour_pictures_keep_their_values_and_grey_ones_are_stretched():
    colour = torch.stack([torch.full((4, 5), value) for value in (10.0, 60.0, 200.0)])
    assert Contrast.of(colour).rgb(colour)[0, 0].tolist() == [10, 60, 200]
    grey = torch.linspace(10, 60, 20).reshape(1, 4, 5).expand(3, 4, 5)
    assert Contrast.of(grey).rgb(grey).max() == 255


@pytest.mark.parametrize("value", [0.0, 7.0, float("nan")])
def test_constant_and_not_finite_images_are_safe(value):
    image = torch.full((1, 4, 5), value)
    assert Contrast.of(image).rgb(image).max() == 0


def test_volume_is_cut_where_most_foreground_is():
    label_map = torch.zeros(5, 9, 7, dtype=torch.int64)
    label_map[3, 2:6, 4] = 1
    assert focus(Segmentation(Instances(masks=label_map))) == (3, 2, 4)
    assert focus(Segmentation(Instances.empty((5, 9, 7)))) == (2, 4, 3)


def test_volume_has_three_slices_and_a_projection():
    label_map = torch.zeros(4, 6, 5, dtype=torch.int64)
    label_map[1, 2, 3] = 1
    label_map[3, 2, 3] = 2
    image = torch.arange(120.0).reshape(1, 4, 6, 5)
    result = Segmentation(
        Instances(masks=label_map), image=image, geometry=Geometry.identity((4, 6, 5), (2.0, 0.5, 0.5))
    )
    xy, zy, xz, projection = views(result, paint=False, position=(1, 2, 3))
    contrast = Contrast.of(image)
    assert np.array_equal(xy.rgb, contrast.rgb(image[:, 1]))
    assert np.array_equal(zy.rgb, contrast.rgb(image[:, :, :, 3].transpose(1, 2)))
    assert np.array_equal(xz.rgb, contrast.rgb(image[:, :, 2]))
    assert np.array_equal(projection.rgb, contrast.rgb(image[:, 3]))
    assert (xy.aspect, zy.aspect, xz.aspect) == (1.0, 0.25, 4.0)
    painted = views(result, position=(1, 2, 3))[3].rgb[2, 3]
    assert painted.tolist() == layer_colors(result.instances)[0].tolist()  # the first object along z


def test_mosaic_has_square_pixels():
    result = Segmentation(
        Instances.empty((4, 6, 5)),
        image=torch.zeros(1, 4, 6, 5),
        geometry=Geometry.identity((4, 6, 5), (2.0, 1.0, 1.0)),
    )
    height, width = 6 + 4 + 4 * 2, 5 + 4 + 4 * 2 + 8 + 5
    assert mosaic(views(result)).shape == overlay(result).shape == (height, width, 3)


@pytest.mark.parametrize("size", [(12, 16), (3, 12, 16)])
def test_plot_is_a_figure_of_its_own(size, tmp_path):
    from matplotlib import _pylab_helpers

    figure = plot(cells(size), title="two cells")
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert figure.get_suptitle() == "two cells"
    assert not _pylab_helpers.Gcf.figs, "pyplot keeps no reference to it"


def test_captions_say_class_and_score():
    figure = plot(Segmentation(cells().instances, class_names=("cell", "dust")))
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["cell 0.90", "cell 0.30"]
    assert list(plot(cells(), captions=False).axes[0].texts) == []
    assert figure.get_suptitle() == "2 instances"


def test_many_instances_have_no_captions():
    label_map = torch.arange(1, 31).reshape(5, 6)
    figure = plot(Segmentation(Instances(masks=label_map, scores=torch.rand(30))))
    assert list(figure.axes[0].texts) == list(figure.axes[0].patches) == []


def test_legend_names_the_classes_that_are_there():
    figure = plot(Segmentation(class_map=torch.tensor([[0, 2, 255]]), class_names=("background", "a", "b")))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["b", "ignored"]


@pytest.mark.parametrize("size", [(6, 7), (3, 4, 5)])
def test_empty_results_are_drawn(size):
    """Fault 48: nothing found, and no image kept, is still a picture."""
    empty = Segmentation(Instances.empty(size, scores=True))
    assert overlay(empty).ndim == 3
    assert plot(empty).get_suptitle() == "0 instances"
    assert not overlay(Segmentation(geometry=Geometry.identity((4, 5)))).any()


def test_blend_leaves_background_alone():
    rgb = np.full((3, 4, 3), 9, dtype=np.uint8)
    ids = np.zeros((3, 4), dtype=np.int64)
    assert np.array_equal(blend(rgb, ids, np.zeros((1, 3), dtype=np.int64)), rgb)


def test_predictions_have_the_color_of_the_truth_they_match():
    truth = cells(scores=None)
    found = cells()
    found.instances = Instances(
        masks=torch.cat([found.instances.masks.dense().flip(0), torch.eye(12, 16, dtype=torch.bool)[None]]),
        scores=torch.rand(3),
    )
    colors = matched_colors(found, truth)
    assert np.array_equal(colors[:2], layer_colors(truth.instances)[::-1])
    assert tuple(colors[2]) == UNMATCHED_COLOR
    assert matched_colors(Segmentation(class_map=torch.zeros(12, 16, dtype=torch.int64)), truth) is None
