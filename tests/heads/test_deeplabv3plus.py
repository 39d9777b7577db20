import pytest
import torch
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder

from parity import assert_near, randomise
from pixvox.heads.deeplabv3plus import DeepLabV3Plus
from semantic_cases import features


@pytest.mark.parametrize("separable", [True, False])
def test_equals_smps_with_its_weights(separable):
    channels, strides = (8, 12, 16, 16), (4, 8, 16, 16)
    reference = DeepLabV3PlusDecoder(
        (3, 6, *channels), 5, 10, (2, 3, 5), 16, aspp_separable=separable, aspp_dropout=0.5
    )
    # smp resizes with the centres of corners on each other, which shifts the frame of pixels.
    reference.up = torch.nn.Upsample(scale_factor=4, mode="bilinear")
    if not separable:  # smp has separable convolutions outside the pyramid all the same
        for block, width in ((reference.aspp, 10), (reference.block2, 58)):
            place = 1 if block is reference.aspp else 0
            block[place] = torch.nn.Conv2d(width, 10, 3, padding=1, bias=False)
    randomise(reference).eval()
    head = DeepLabV3Plus(
        channels, [(s, s) for s in strides], 3, atrous_rates=(2, 3, 5), channels=10, separable=separable
    ).eval()
    own = [key for key in head.state_dict() if not key.startswith("classifier.1.")]
    given = reference.state_dict()
    assert len(own) == len(given)
    head.load_state_dict(dict(zip(own, given.values(), strict=True)), strict=False)
    case = features(channels, strides, (64, 96))
    with torch.no_grad():
        expected = reference([None, None, *case.levels])
        scores, _ = head.scores(case, auxiliary=False)
        assert_near(scores, head.classifier[1](expected))


def test_fine_level_has_a_stride_of_four_unless_told_otherwise():
    strides = [(s, s) for s in (1, 2, 4, 8)]
    options = {"channels": 4, "low_channels": 4}
    assert DeepLabV3Plus((2, 3, 4, 5), strides, 3, **options).low[0].in_channels == 4
    assert DeepLabV3Plus((2, 3, 4, 5), strides, 3, low_level=0, **options).low[0].in_channels == 2
