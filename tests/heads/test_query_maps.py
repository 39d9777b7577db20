"""Maps of classes and of panoptic segments: as transformers makes them, worked by hand, in chunks, in 3-D."""

import pytest
import torch

import pixvox.heads.query_maps as query_maps
from pixvox.heads.query_crops import MapFrame
from pixvox.heads.query_maps import class_map_of, masks_of_classes, panoptic_of
from pixvox.heads.query_predictions import QueryMasks
from pixvox.structures import Geometry


def _masks(maps):
    """Return logits ``(queries, *grid)`` as factors: one channel per query."""
    return QueryMasks(torch.eye(len(maps))[None], maps[None])


def test_a_class_map_equals_transformers():
    from types import SimpleNamespace

    from transformers import Mask2FormerImageProcessor

    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(7, 24, 32, generator=generator) * 3
    logits = torch.randn(7, 5, generator=generator) * 2
    outputs = SimpleNamespace(class_queries_logits=logits[None], masks_queries_logits=maps[None])
    (expected,) = Mask2FormerImageProcessor().post_process_semantic_segmentation(outputs, [(384, 384)])
    scores = logits.softmax(dim=1)[:, :-1]
    # transformers resizes to 384 x 384 whatever the image was; here the image is of that size.
    frame = MapFrame((24, 32), (384, 384), Geometry.identity((384, 384)))
    own = class_map_of(_masks(maps), 0, scores, frame)
    assert (own != expected).float().mean() < 1e-5
    assert len(own.unique()) >= 3


@pytest.mark.parametrize(("grid", "original"), [((6, 8), (23, 41)), ((3, 6, 8), (11, 23, 30))])
def test_chunks_and_the_original_frame_change_no_class(grid, original, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    maps, scores = torch.randn(4, *grid, generator=generator), torch.rand(4, 3, generator=generator)
    padded, valid = tuple(4 * n for n in grid), tuple(4 * n - 3 for n in grid)
    geometry = Geometry(padded, valid, original)
    frame = MapFrame(grid, padded, geometry)
    whole = class_map_of(_masks(maps), 0, scores, frame)
    monkeypatch.setattr(query_maps, "_CHUNK", 1)
    assert torch.equal(class_map_of(_masks(maps), 0, scores, frame), whole)
    assert whole.shape == original
    # The same by torch's interpolation, in both steps of which pixels are where they are here.
    places = torch.meshgrid(
        *[
            ((torch.arange(n) + 0.5) * v / n / p * 2 - 1).float()
            for n, v, p in zip(original, valid, padded, strict=True)
        ],
        indexing="ij",
    )
    points = torch.stack(places[::-1], dim=-1)[None]
    logits = torch.nn.functional.grid_sample(maps[None], points, padding_mode="border", align_corners=False)[
        0
    ]
    expected = torch.einsum("qc,q...->c...", scores, logits.sigmoid()).argmax(dim=0)
    assert (whole != expected).float().mean() < 1e-3


# Four columns; two things, one stuff class in two queries, one query that is mostly behind a better one.
_MAPS = torch.tensor(
    [
        [[9.0, 9.0, -9.0, -9.0, -9.0, -9.0]],  # a thing
        [[-9.0, 9.0, 9.0, -9.0, -9.0, -9.0]],  # mostly its own, but shared with a better one: a half is left
        [[-9.0, -9.0, -9.0, 9.0, -9.0, -9.0]],  # stuff
        [[-9.0, -9.0, -9.0, -9.0, 9.0, -9.0]],  # the same stuff elsewhere
        [[-9.0, -9.0, -9.0, -9.0, -9.0, 9.0]],  # too unsure
    ]
)
_SCORES = torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.0, 0.6], [0.0, 0.7], [0.4, 0.1]])


def _panoptic(**options):
    frame = MapFrame((1, 6), (1, 6), Geometry.identity((1, 6)))
    return panoptic_of(_masks(_MAPS), 0, _SCORES, frame, **{"is_thing": (True, False), **options})


def test_panoptic_segments_worked_by_hand():
    result = _panoptic()
    # The second thing keeps a half, less than 0.8 of its mask; the third and fourth are one segment.
    assert result.label_map().tolist() == [[1, 1, 0, 2, 2, 0]]
    assert result.class_map.tolist() == [[0, 0, 255, 1, 1, 255]]
    assert [(s["id"], s["category_id"], s["isthing"]) for s in result.segments] == [
        (1, 0, True),
        (2, 1, False),
    ]
    assert result.instances.labels.tolist() == [0, 1]
    assert result.segments[1]["score"] == pytest.approx(0.7)


def test_what_a_query_must_keep_and_how_sure_it_must_be_are_options():
    assert _panoptic(overlap_threshold=0.5).label_map().tolist() == [[1, 1, 2, 3, 3, 0]]
    assert _panoptic(segment_threshold=0.3).label_map().tolist() == [[1, 1, 0, 2, 2, 3]]
    assert _panoptic(is_thing=(True, True)).label_map().tolist() == [[1, 1, 0, 3, 2, 0]]


def test_nothing_sure_gives_no_segment():
    result = _panoptic(segment_threshold=0.95)
    assert result.segments == []
    assert len(result.instances) == 0
    assert result.class_map.tolist() == [[255] * 6]


def test_chunks_change_no_segment(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    maps, scores = torch.randn(6, 3, 5, 4, generator=generator), torch.rand(6, 3, generator=generator)
    frame = MapFrame((3, 5, 4), (6, 10, 8), Geometry((6, 10, 8), (6, 9, 8), (12, 9, 16)))
    arguments = (_masks(maps), 0, scores, frame, (True, False, True), 0.3, 0.2)
    whole = panoptic_of(*arguments)
    monkeypatch.setattr(query_maps, "_CHUNK", 1)
    assert torch.equal(panoptic_of(*arguments).label_map(), whole.label_map())
    assert len(whole.segments) > 1


def test_padding_and_unknown_pixels_of_a_class_map_are_ignored():
    class_map = torch.tensor([[1, 1, 255, 7], [0, 1, 1, 7]])
    instances = masks_of_classes(class_map, (2, 3), 2)
    assert instances.labels[~instances.ignore].tolist() == [0, 1]
    assert instances.masks[~instances.ignore].dense().int().tolist() == [
        [[0, 0, 0, 0], [1, 0, 0, 0]],
        [[1, 1, 0, 0], [0, 1, 1, 0]],
    ]
    assert instances.masks[instances.ignore].dense().int().tolist() == [[[0, 0, 1, 0], [0, 0, 0, 0]]]
    with pytest.raises(ValueError, match=r"holds \[7\], but there are 2 classes"):
        masks_of_classes(class_map, (2, 4), 2)


def test_a_class_map_without_a_known_pixel_has_nothing_to_learn():
    instances = masks_of_classes(torch.full((2, 3), 255), (2, 3), 2)
    assert instances.ignore.tolist() == [True]
