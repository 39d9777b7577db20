import torch
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from parity import assert_near, randomise
from pixvox.heads.deeplabv3 import DeepLabV3
from semantic_cases import features


def test_equals_torchvisions_with_its_weights():
    reference = randomise(DeepLabHead(16, 5, (2, 3, 5))).eval()
    head = DeepLabV3((8, 16), ((4, 4), (8, 8)), 5, atrous_rates=(2, 3, 5)).eval()
    own = list(head.state_dict())
    assert len(own) == len(reference.state_dict())  # the same layers in the same order
    head.load_state_dict(dict(zip(own, reference.state_dict().values(), strict=True)))
    case = features((8, 16), (4, 8), (40, 56))
    with torch.no_grad():
        assert_near(head.scores(case, auxiliary=False)[0], reference(case.levels[1]))


def test_rates_reach_equally_far_at_each_stride():
    def rates(stride, **options):
        look = (
            DeepLabV3((8, 16), ((4, 4), (stride, stride)), 5, channels=4, **options)
            .classifier[0]
            .neighbourhoods
        )
        return [block[0].dilation[0] for block in look]

    assert rates(8) == [12, 24, 36]
    assert rates(16) == [6, 12, 18]
    assert rates(16, atrous_rates=(12, 24, 36)) == [12, 24, 36]
