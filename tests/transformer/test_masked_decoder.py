"""The masked-attention decoder equals transformers'; in 3-D, one slice and permuted axes; padding changes nothing."""

import pytest
import torch

from parity import assert_near, randomise
from pixvox.transformer.masked_decoder import MaskedDecoder, outside_masks
from pixvox.weights.mask2former import DECODER_TRANSFORMERS, convert_decoder


def _reference(**options):
    from transformers import Mask2FormerConfig, SwinConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerTransformerModule

    config = Mask2FormerConfig(
        backbone_config=SwinConfig(embed_dim=6, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]), **options
    )
    return randomise(Mask2FormerTransformerModule(config.feature_size, config).eval())


def _levels(channels, sizes, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, channels, *size, generator=generator) for size in sizes]


@pytest.mark.parametrize(
    ("channels", "features", "heads", "layers", "queries", "project", "empty"),
    [(16, 16, 4, 4, 7, False, False), (24, 16, 3, 2, 5, False, True), (16, 16, 2, 1, 6, True, False)],
)
def test_every_step_equals_transformers(channels, features, heads, layers, queries, project, empty):
    reference = _reference(
        feature_size=features, hidden_dim=channels, mask_feature_size=12, num_attention_heads=heads,
        decoder_layers=layers + 1, dim_feedforward=20, num_queries=queries, enforce_input_projection=project,
    )  # fmt: skip
    decoder = MaskedDecoder(
        (features,) * 3, 2, 12, queries, channels, layers, heads, feedforward=20, project=project
    ).eval()
    state, unknown = convert_decoder(reference.state_dict(), DECODER_TRANSFORMERS)
    assert unknown == []
    decoder.load_state_dict(state)
    levels = _levels(features, [(8, 12), (4, 6), (2, 3)])
    pixels = _levels(12, [(16, 24)], seed=2)[0]
    if empty:  # the first channel decides: masks are everywhere or, and then they block nothing, nowhere
        pixels[:, 0] = -50.0
    with torch.no_grad():
        expected = reference(levels[::-1], pixels)
        steps = decoder(levels, [(8, 8), (16, 16), (32, 32)], pixels)
    nowhere = [bool((masks < 0).flatten(2).all(dim=2).any()) for masks in expected.masks_queries_logits]
    assert any(nowhere[:-1]) == empty
    assert len(steps) == len(expected.masks_queries_logits) == layers + 1
    for (known, embeddings), masks, hidden in zip(
        steps, expected.masks_queries_logits, expected.intermediate_hidden_states, strict=True
    ):
        assert_near(known, hidden.transpose(0, 1))
        assert_near(torch.einsum("bqc,bchw->bqhw", embeddings, pixels), masks)


def test_an_empty_mask_blocks_nothing_but_padding():
    embeddings, pixels = torch.tensor([[[1.0], [-1.0]]]), torch.tensor([[[2.0, 1.0, 3.0]]])
    padding = torch.tensor([[False, False, True]])
    assert outside_masks(embeddings, pixels).tolist() == [[[False] * 3, [False] * 3]]
    assert outside_masks(embeddings, pixels, padding).tolist() == [[[False, False, True]] * 2]
    assert outside_masks(embeddings, -pixels * torch.tensor([1.0, -1.0, -1.0])).tolist() == [
        [[True, False, False], [False, True, True]]
    ]


def test_padding_of_a_level_that_rounds_up_is_that_of_the_padded_image(monkeypatch):
    # Images of 24 pixels: three cells at stride 8, and at stride 16 two, which would make 32 pixels.
    seen = []
    decoder = MaskedDecoder((8, 8), 2, mask_channels=4, num_queries=3, channels=8, num_layers=2, num_heads=2)
    monkeypatch.setattr(
        "pixvox.transformer.masked_decoder.outside_masks",
        lambda embeddings, pixels, padding: (
            seen.append(padding) or torch.zeros(1, 3, pixels.shape[2], dtype=torch.bool)
        ),
    )
    levels = _levels(8, [(3, 3), (2, 2)], batch=1)
    decoder(levels, [(8, 8), (16, 16)], torch.randn(1, 4, 6, 6), torch.tensor([[16, 24]]))
    coarse, fine = (padding[0].reshape(n, n) for padding, n in zip(seen, (2, 3), strict=True))
    assert not coarse.any()
    assert fine.tolist() == [[False] * 3, [False] * 3, [True] * 3]


def test_a_level_that_no_layer_looks_at_leaves_no_weight_without_a_gradient():
    decoder = MaskedDecoder(
        (6, 6, 6), 2, mask_channels=4, num_queries=3, channels=8, num_layers=2, num_heads=2
    )
    levels = _levels(6, [(4, 6), (2, 3), (1, 2)])
    steps = decoder(levels, [(8, 8), (16, 16), (32, 32)], torch.randn(2, 4, 8, 12))
    sum(known.sum() + masks.sum() for known, masks in steps).backward()
    assert [name for name, weight in decoder.named_parameters() if weight.grad is None] == []
