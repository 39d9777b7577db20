"""A network that finds the truth in every window gives the truth of the volume, however it is cut."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from label_maps import one_to_one, random_objects
from pixvox.data.collate import Collate
from pixvox.data.sample import Sample
from pixvox.inference.blocks import Blocks
from pixvox.inference.stitched_objects import StitchedObjects
from pixvox.inference.stitched_tiles import StitchedTiles
from pixvox.inference.tile_objects import TileObjects
from pixvox.inference.tile_store import TileStore
from pixvox.structures import Instances, Segmentation


def _fill(store, blocks, labels, changed=lambda block, window: window):
    for block in blocks:
        window = torch.from_numpy(changed(block, labels[block.window].copy()))
        count = len(window[window > 0].unique())
        masks = Instances(masks=window) if count else Instances.empty(window.shape)
        scores = Instances(masks=masks.masks, scores=torch.linspace(0.2, 0.9, count)) if count else masks
        tile = TileObjects.of(Segmentation(scores), block, blocks)
        store.save(block, tile.label_map, **tile.columns())


def _painted(found):
    whole = np.zeros(found.blocks.size, dtype=np.uint32)
    for block in found.blocks:
        places, present = found.labels(block)
        whole[block.core] = np.concatenate([[0], present])[places]
    return whole


LAYOUTS = [
    ((61, 48), (21, 39), 0.23), ((75, 92), (38, 12), 0.5), ((98, 77), (98, 17), 0.4), ((40, 40), (9, 9), 0.1),
    ((19, 40, 25), (24, 37, 15), 0.25), ((24, 27, 44), (25, 23, 11), 0.39), ((22, 34, 43), (18, 12, 22), 0.43),
]  # fmt: skip


@pytest.mark.parametrize(("size", "tile", "overlap"), LAYOUTS)
@pytest.mark.parametrize("divisor", [1, 4])
def test_the_truth_in_windows_is_the_truth_of_the_volume(tmp_path, size, tile, overlap, divisor):
    truth = random_objects(size, 60, seed=sum(size))
    blocks = Blocks(size, tile, overlap, (divisor,) * len(size))
    store = TileStore(tmp_path, {})
    _fill(store, blocks, truth)
    found = StitchedObjects.of(blocks, store)
    whole = _painted(found)
    assert one_to_one(whole, truth)
    assert sorted(np.unique(whole[whole > 0]).tolist()) == list(range(1, len(found) + 1))


def test_threads_change_nothing(tmp_path):
    truth = random_objects((40, 50, 30), 80)
    blocks, store = Blocks(truth.shape, (20, 20, 20), 0.3), TileStore(tmp_path, {})
    _fill(store, blocks, truth)
    one, three = StitchedObjects.of(blocks, store), StitchedObjects.of(blocks, store, threads=3)
    assert np.array_equal(one.ids, three.ids)
    assert np.array_equal(_painted(one), _painted(three))


def _bar(size=(12, 60), place=slice(10, 50)):
    truth = np.zeros(size, dtype=np.int32)
    truth[4:8, place] = 1
    return truth


def test_an_object_through_many_blocks_has_one_id(tmp_path):
    """Fault 47."""
    truth = _bar(place=slice(0, 60))
    blocks, store = Blocks(truth.shape, (12, 12), 0.3), TileStore(tmp_path, {})
    _fill(store, blocks, truth)
    assert len(blocks) > 5
    assert np.array_equal(_painted(StitchedObjects.of(blocks, store)), truth)


def test_an_object_that_a_neighbour_overlooked_is_painted_into_its_block(tmp_path):
    truth = _bar(place=slice(20, 33))
    blocks, store = Blocks(truth.shape, (12, 40), 0.3), TileStore(tmp_path, {})
    assert [block.core[1] for block in blocks] == [slice(0, 30), slice(30, 60)]
    _fill(store, blocks, truth, lambda block, window: window * (block.number == 0))
    assert np.array_equal(_painted(StitchedObjects.of(blocks, store)), truth)


def test_a_fragment_that_only_the_farther_block_saw_is_left_out(tmp_path):
    truth = _bar(place=slice(29, 35))
    blocks, store = Blocks(truth.shape, (12, 40), 0.3), TileStore(tmp_path, {})
    _fill(store, blocks, truth, lambda block, window: window * (block.number == 0))
    found = StitchedObjects.of(blocks, store)
    assert len(found) == 0
    assert not _painted(found).any()


def test_class_and_score_are_those_of_the_block_that_saw_most(tmp_path):
    truth = _bar(place=slice(20, 33))
    blocks, store = Blocks(truth.shape, (12, 40), 0.3), TileStore(tmp_path, {})
    for block in blocks:
        window = torch.from_numpy(truth[block.window])
        instances = Instances(
            masks=window, labels=torch.tensor([block.number]), scores=torch.tensor([0.5 + block.number / 4])
        )
        tile = TileObjects.of(Segmentation(instances), block, blocks)
        store.save(block, tile.label_map, **tile.columns())
    found = StitchedObjects.of(blocks, store)
    assert (found.classes.tolist(), found.scores.tolist()) == ([0], [0.5])


def test_touching_objects_stay_apart_across_borders(tmp_path):
    truth = np.zeros((20, 60), dtype=np.int32)
    truth[:10], truth[10:] = 1, 2
    blocks, store = Blocks(truth.shape, (20, 16), 0.3), TileStore(tmp_path, {})
    _fill(store, blocks, truth)
    assert one_to_one(_painted(StitchedObjects.of(blocks, store)), truth)


def test_nothing_found_anywhere(tmp_path):
    truth = np.zeros((20, 60), dtype=np.int32)
    blocks, store = Blocks(truth.shape, (20, 16), 0.3), TileStore(tmp_path, {})
    _fill(store, blocks, truth)
    found = StitchedObjects.of(blocks, store)
    assert len(found) == 0
    assert not _painted(found).any()


class Bright:
    """A stand-in for a segmenter: objects are what is bright and connected."""

    size_divisor, class_names = (1, 1), ("cell",)

    def parameters(self):
        """Return what tells the device."""
        return iter([torch.zeros(())])

    def segment(self, batch):
        """Return the objects of a batch of one image."""
        labels, count = ndimage.label(batch.images[0, 0].numpy() > 0.5)
        masks = Instances(masks=torch.from_numpy(labels)) if count else Instances.empty(labels.shape)
        return [Segmentation(Instances(masks=masks.masks, scores=torch.full((count,), 0.5)))]


def test_objects_of_tiles_of_a_resampled_image_are_given_in_its_own_grid():
    image = torch.zeros(1, 20, 30)
    image[:, 2:8, 2:28] = image[:, 12:18, 20:26] = 1
    image[:, 19, 0] = 1  # less than a pixel of the original
    batch = Collate(1)([replace(Sample(image), original_size=(10, 15))])
    result = StitchedTiles(Bright(), (12, 12))(batch, 0)
    found = result.instances.masks
    assert (found.size, len(found), len(result.instances.labels)) == ((10, 15), 2, 2)
    expected = torch.zeros(10, 15, dtype=torch.bool)
    expected[1:4, 1:14] = expected[6:9, 10:13] = True
    assert torch.equal(found.dense().any(dim=0), expected)
