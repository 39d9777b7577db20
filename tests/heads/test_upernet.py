import torch
from transformers import SwinConfig, UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from parity import assert_near, randomise
from pixvox.heads.upernet import UPerNet
from pixvox.weights.upernet import convert_head
from semantic_cases import features

CHANNELS = (8, 12, 16, 24)


def test_equals_transformers_with_its_weights_and_its_second_classifier():
    config = UperNetConfig(
        backbone_config=SwinConfig(), hidden_size=10, pool_scales=[1, 2, 3], num_labels=5, auxiliary_channels=6,
        auxiliary_in_channels=16,
    )  # fmt: skip
    reference = randomise(UperNetHead(config, CHANNELS)).eval()
    second = randomise(UperNetFCNHead(config, CHANNELS), seed=1).eval()
    head = UPerNet(
        CHANNELS,
        [(s, s) for s in (4, 8, 16, 32)],
        5,
        channels=10,
        bins=(1, 2, 3),
        aux_level=-2,
        aux_channels=6,
    ).eval()
    given = {f"decode_head.{key}": value for key, value in reference.state_dict().items()}
    given |= {f"auxiliary_head.{key}": value for key, value in second.state_dict().items()}
    converted, unknown = convert_head(given)
    assert unknown == []
    head.load_state_dict(converted)
    case = features(size=(72, 104))
    with torch.no_grad():
        scores, auxiliary = head.scores(case, auxiliary=True)
        assert_near(scores, reference(case.levels))
        assert_near(auxiliary["aux"], second(case.levels))


def test_scores_are_not_cut_off_at_zero():
    head = randomise(UPerNet((8, 12), ((4, 4), (8, 8)), 3, channels=8)).train()
    scores, _ = head.scores(features((8, 12), (4, 8), (40, 56)), auxiliary=False)
    assert (scores < 0).any()
