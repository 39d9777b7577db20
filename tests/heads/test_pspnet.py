import segmentation_models_pytorch.decoders.pspnet.decoder as smp
import torch
from torch import nn

from parity import assert_near, randomise
from pixvox.heads.pspnet import PSPNet
from semantic_cases import features


def test_equals_smps_with_its_weights(monkeypatch):
    reference = smp.PSPDecoder((3, 8, 16), out_channels=4, dropout=0.2)
    # smp leaves out the norm of the whole map's mean.
    first = nn.Sequential(nn.Conv2d(16, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    reference.psp.blocks[0].pool[1] = first
    randomise(reference).eval()
    plain = nn.functional.interpolate
    # smp resizes with the centres of corners on each other, which shifts the frame of pixels.
    monkeypatch.setattr(
        nn.functional, "interpolate", lambda *a, **k: plain(*a, **{**k, "align_corners": False})
    )
    head = PSPNet((8, 16), ((4, 4), (8, 8)), 3, channels=4).eval()
    pooling = head.classifier[0]
    for block, mean in zip(reference.psp.blocks, pooling.means, strict=True):
        mean.load_state_dict(dict(zip(mean.state_dict(), block.pool[1].state_dict().values(), strict=True)))
    mixing, norm = reference.conv[0].weight, reference.conv[1]
    pooling.bottleneck[1].load_state_dict(norm.state_dict())
    # smp puts the map behind its means, and mixes them pixel by pixel.
    kernel = torch.zeros_like(pooling.bottleneck[0].weight)
    kernel[:, :, 1, 1] = torch.cat([mixing[:, 16:], mixing[:, :16]], dim=1)[..., 0, 0]
    pooling.bottleneck[0].weight.data = kernel.detach()
    case = features((8, 16), (4, 8), (72, 104))
    with torch.no_grad():
        scores = head.scores(case, auxiliary=False)[0]
        assert_near(scores, head.classifier[2](reference([None, *case.levels])))


def test_bottleneck_is_as_wide_as_the_level_allows_and_never_narrower_than_the_classes():
    strides = ((4, 4), (8, 8))
    widths = {
        classes: PSPNet((8, 64), strides, classes).classifier[2].in_channels for classes in (2, 20, 151)
    }
    assert widths == {2: 16, 20: 20, 151: 151}
