import pytest
import torch

from parity import assert_near, randomise
from pixvox.heads.pixel_queries import PixelQueries

SIZES = {2: (4, 6), 3: (2, 4, 6)}


@pytest.mark.parametrize("dims", [2, 3])
def test_masks_are_products_of_refined_pixels_with_queries_and_a_bias(dims):
    branch = randomise(PixelQueries(8, dims, num_layers=2, feedforward=12))
    pixels, queries = torch.randn(2, 8, *SIZES[dims]), [torch.randn(2, 5, 8) for _ in range(2)]
    masks = branch(pixels, queries)
    refined = branch.blocks[1](branch.blocks[0](pixels))
    for layer, place in ((0, branch.blocks[0](pixels)), (1, refined)):
        known = branch.product(pixels, queries[layer]).embeddings[..., :-1]
        expected = torch.einsum("bqk,bk...->bq...", known, branch.pixel_projection(place)) + branch.bias
        assert_near(masks[layer].logits(), expected)


def test_the_last_layer_alone_equals_the_last_of_all():
    branch = randomise(PixelQueries(8, num_layers=3, feedforward=12))
    pixels, queries = torch.randn(1, 8, 4, 6), [torch.randn(1, 5, 8) for _ in range(3)]
    (last,) = branch(pixels, queries, last_only=True)
    assert torch.equal(last.logits(), branch(pixels, queries)[-1].logits())


def test_all_masks_begin_undecided():
    torch.manual_seed(0)
    branch = PixelQueries(256, num_layers=3)
    masks = branch(torch.randn(1, 256, 8, 12), [torch.randn(1, 20, 256)] * 3)
    assert masks[-1].logits().std() < 1.5
