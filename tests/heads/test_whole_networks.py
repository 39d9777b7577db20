"""What must hold for networks that come as backbone and head: odd sizes, one image alone, their own backbone."""

import pytest
import torch

from pixvox.errors import ConfigError
from pixvox.models import create_model
from pixvox.structures import Geometry
from small_backbones import OPTIONS
from small_heads import small

OWN = ("bisenetv2", "enet", "pidnet", "regseg")
CHANNELS = {"backbone__channels": [4, 8, 8, 8]}
CASES = [(head, dims) for head in OWN for dims in (2, 3) if dims == 2 or head in ("enet", "regseg")]
CASES += [(head, dims) for head in ("bisenet", "sfnet", "sfnet_lite") for dims in (2, 3)]


def build(head, dims=2, **options):
    torch.manual_seed(0)
    if head in OWN:
        options = {f"backbone__{key}": value for key, value in OPTIONS[head].items()} | options
    else:
        options = {"backbone": "simple", **CHANNELS, **options}
    return create_model(head, num_classes=3, spatial_dims=dims, in_channels=1, **small(head, **options))


@pytest.mark.parametrize(("head", "dims"), CASES)
def test_one_image_of_any_size_teaches_every_weight_and_gets_classes_at_its_size(head, dims):
    model = build(head, dims)
    for size in ((61, 63), (65, 67), (64, 64), (17, 33)) if dims == 2 else ((9, 37, 25), (16, 32, 32)):
        labels = torch.randint(0, 3, (1, *size))
        model.zero_grad()
        outputs = model.train()(torch.randn(1, 1, *size), labels)
        maps = [outputs["logits"], *outputs.get("aux_logits", {}).values()]
        assert all(each.shape == (1, 3, *size) for each in maps)
        sum(outputs["losses"].values()).backward()
        without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert without == []
        with torch.no_grad():
            (found,) = model.eval().postprocess(model(torch.randn(1, 1, *size)), [Geometry.identity(size)])
        assert found.class_map.shape == size


@pytest.mark.parametrize("head", ["bisenetv2", "pidnet"])
def test_labels_of_nothing_give_finite_losses_and_padding_changes_no_class(head):
    model = build(head)
    losses = model.loss(torch.randn(2, 1, 33, 61), torch.full((2, 33, 61), 255))
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    image = torch.randn(1, 1, 33, 61)
    padded = torch.nn.functional.pad(image, [0, -61 % model.size_divisor[1], 0, -33 % model.size_divisor[0]])
    with torch.no_grad():
        found = model.eval()(padded, valid_sizes=torch.tensor([[33, 61]]))["logits"][..., :33, :61]
        torch.testing.assert_close(found, model(image)["logits"])


@pytest.mark.parametrize("head", ["bisenetv2", "pidnet"])
def test_branches_are_for_their_own_head_alone(head):
    repair = f"leave backbone= out, or choose backbone={head}"
    with pytest.raises(ConfigError, match=f"takes the branches .* Simple does not give; {repair}"):
        create_model(head, "simple")
    with pytest.raises(
        ConfigError, match="no pyramid, to its own head alone, not to FCN; choose another backbone"
    ):
        create_model("fcn", head)
    with pytest.raises(ConfigError, match=r"exists for spatial_dims in \(2,\), got 3"):
        create_model(head, spatial_dims=3)


@pytest.mark.parametrize("head", OWN)
def test_the_head_alone_chooses_its_backbone_and_recomputes_its_blocks(head):
    from pixvox.gradient_checkpointing import recompute_blocks

    model = build(head)
    assert type(model.backbone).__module__ == f"pixvox.backbones.{head}"
    images, labels = torch.randn(2, 1, 32, 48), torch.randint(0, 3, (2, 32, 48))
    expected = build(head).train()
    recompute_blocks(model.train())
    for each in (model, expected):
        torch.manual_seed(1)
        sum(each.loss(images, labels).values()).backward()
    for ours, plain in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-5)
