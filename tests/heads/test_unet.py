from pathlib import Path

import pytest
import torch
from monai.networks.nets import DynUNet
from safetensors.torch import load_file
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

from parity import assert_near, randomise
from pixvox.heads.unet import UNet
from semantic_cases import features

RECORDED = Path(__file__).parents[1] / "fixtures" / "unet" / "decoder.safetensors"


def in_order(head, reference):
    """Give a head the weights of a list of modules, in the order in which they are used."""
    own = [part for pair in zip(head.ups, head.steps, strict=True) for part in pair]
    keys = [(part, key) for part in own for key in part.state_dict()]
    values = [value for part in reference for value in part.state_dict().values()]
    assert len(keys) == len(values)
    with torch.no_grad():
        for (part, key), value in zip(keys, values, strict=True):
            part.state_dict()[key].copy_(value)


def test_equals_smps_over_the_levels_of_a_resnet():
    channels, strides = (6, 8, 12, 16), (2, 4, 8, 16)
    reference = randomise(UnetDecoder((3, *channels), (12, 8, 6, 4), 4)).eval()
    head = UNet(
        channels, [(s, s) for s in strides], 3, channels=(12, 8, 6, 4), upsampling="nearest", norm="batch",
        negative_slope=0.0,
    ).eval()  # fmt: skip
    in_order(head, list(reference.blocks))
    case = features(channels, strides, (64, 96))
    with torch.no_grad():
        expected = reference([case.images, *case.levels])
        assert expected.shape[2:] == (64, 96)
        assert_near(head.scores(case, auxiliary=False)[0], head.classifier(expected))


@pytest.mark.parametrize("dims", [2, 3])
def test_equals_monais_with_strides_per_axis_and_deep_supervision(dims):
    steps = [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 1)]
    steps = [step[-dims:] for step in steps]
    kernels = [(1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)]
    kernels = [kernel[-dims:] for kernel in kernels]
    channels = (4, 6, 8, 10)
    reference = randomise(
        DynUNet(
            dims, 1, 3, kernels, steps, steps[1:], filters=channels, deep_supervision=True, deep_supr_num=1,
            norm_name=("instance", {"affine": True}),
        )
    ).train()  # fmt: skip
    size = (16, 32, 24)[-dims:]
    images = torch.randn(2, 1, *size)
    levels = [reference.input_block(images)]
    for block in (*reference.downsamples, reference.bottleneck):
        levels.append(block(levels[-1]))
    strides = [(1,) * dims]
    for step in steps[1:]:
        strides.append(tuple(a * b for a, b in zip(strides[-1], step, strict=True)))
    head = UNet(channels, strides, 3, dims, kernel_sizes=kernels[:0:-1])  # MONAI takes the coarser level's
    for up in head.ups:
        torch.nn.init.zeros_(up.conv.bias)  # MONAI's has none
        up.conv.register_parameter("bias", None)
    in_order(
        head,
        [
            part
            for up in reference.upsamples
            for part in (
                up.transp_conv,
                up.conv_block.conv1,
                up.conv_block.norm1,
                up.conv_block.conv2,
                up.conv_block.norm2,
            )
        ],
    )
    head.classifier.load_state_dict(reference.output_block.conv.conv.state_dict())
    head.aux_classifiers[0].load_state_dict(reference.deep_supervision_heads[0].conv.conv.state_dict())
    case = features(channels, strides, size)
    case.levels = tuple(levels)
    with torch.no_grad():
        expected = reference(images)
        scores, auxiliary = head.scores(case, auxiliary=True)
        assert_near(scores, expected[:, 0])
        assert list(auxiliary) == ["aux1"]
        # MONAI resizes to the nearest pixel.
        assert_near(torch.nn.functional.interpolate(auxiliary["aux1"], size), expected[:, 1])


NNUNET = {
    "plane": ((3, 4, 5, 6), ((1, 1), (2, 2), (4, 4), (8, 8)), 3),
    "volume": ((2, 3, 4), ((1, 1, 1), (1, 2, 2), (2, 4, 4)), (3, (1, 3, 3))),
}


@pytest.mark.parametrize("case", NNUNET)
def test_equals_nnunets_at_every_depth(case):
    recorded = {
        key.removeprefix(f"{case}."): v for key, v in load_file(RECORDED).items() if key.startswith(case)
    }
    channels, strides, kernels = NNUNET[case]
    kernels = kernels if isinstance(kernels, tuple) else (kernels,) * 3
    head = UNet(channels, strides, 3, len(strides[0]), kernel_sizes=kernels, convs=1)
    classifiers = [
        *reversed(head.aux_classifiers),
        head.classifier,
    ]  # nnU-Net's coarsest scores count for nothing
    with torch.no_grad():
        for i, (up, step) in enumerate(zip(head.ups, head.steps, strict=True)):
            parts = {"up": up.conv, "conv": step[0], "norm": step[1]}
            if i:
                parts["scores"] = classifiers[i - 1]
            for name, part in parts.items():
                for key, value in part.state_dict().items():
                    value.copy_(recorded[f"weights.{i}.{name}.{key}"])
    levels = [recorded[f"level{i}"] for i in range(len(channels))]
    case = features(channels, strides, tuple(levels[0].shape[2:]))
    case.levels = tuple(levels)
    with torch.no_grad():
        scores, auxiliary = head.scores(case, auxiliary=True)
    assert_near(scores, recorded["scores0"])
    assert len(auxiliary) == len(channels) - 3
    for i, maps in enumerate(auxiliary.values(), 1):
        assert_near(maps, recorded[f"scores{i}"])


def test_weights_of_coarser_steps_halve():
    channels, strides = (4, 5, 6, 7, 8), (1, 2, 4, 8, 16)
    head = UNet(channels, [(s, s) for s in strides], 3, losses={"ones": Ones()})
    case = features(channels, strides, (24, 40))
    labels = torch.zeros(2, 24, 40, dtype=torch.int64)
    losses = head.loss(head(case, labels), labels)
    assert {name: float(value) for name, value in losses.items()} == {
        "ones": 1.0,
        "aux1_ones": 0.5,
        "aux2_ones": 0.25,
    }


class Ones(torch.nn.Module):
    def forward(self, logits, labels):
        return logits.new_ones(())


def test_steps_lead_from_any_finest_level_to_the_pixels_of_the_image():
    head = UNet((8, 16), ((2, 4, 4), (4, 8, 8)), 3, 3)
    assert head.strides == [(2, 4, 4), (1, 2, 2), (1, 1, 1)]
    case = features((8, 16), ((2, 4, 4), (4, 8, 8)), (5, 13, 19))
    assert head.scores(case, auxiliary=False)[0].shape == (2, 3, 5, 13, 19)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": (8,)}, r"channels needs one entry for each of the 3 steps up .* got \[8\]"),
        ({"kernel_sizes": (3,) * 4}, "kernel_sizes needs one entry for each of the 3 steps"),
        ({"upsampling": "cubic"}, "upsampling must be one of transposed, nearest, linear, got 'cubic'"),
        ({"strides": ((4, 4), (6, 8))}, r"stride \(6, 8\) of a level is not a multiple of the finer one's"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        UNet((8, 16), **{"strides": ((4, 4), (8, 8)), "num_classes": 3, **options})
