import torch
from torchvision.models.segmentation.lraspp import LRASPPHead

from parity import assert_near, randomise
from pixvox.heads.lraspp import LRASPP
from semantic_cases import features


def test_equals_torchvisions_with_its_weights():
    reference = randomise(LRASPPHead(12, 16, 5, 10)).eval()
    head = LRASPP((8, 12, 16), ((4, 4), (8, 8), (16, 16)), 5, channels=10).eval()
    own = list(head.state_dict())
    head.load_state_dict(dict(zip(own, reference.state_dict().values(), strict=True)))
    case = features((8, 12, 16), (4, 8, 16), (40, 56))
    with torch.no_grad():
        expected = reference({"low": case.levels[1], "high": case.levels[2]})
        assert_near(head.scores(case, auxiliary=False)[0], expected)
