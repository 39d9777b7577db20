import pytest
import torch
from torchvision.models.segmentation import fcn_resnet50
from torchvision.models.segmentation.fcn import FCNHead

from pixvox.errors import WeightsError
from pixvox.heads.fcn import FCN
from pixvox.losses.dice import Dice
from pixvox.structures import Features, Geometry, Instances
from pixvox.weights import load


def _features(size, levels=((4, 4), (8, 8))):
    torch.manual_seed(0)
    strides = tuple(tuple(level) for level in levels)
    maps = tuple(
        torch.randn(2, 8 * (i + 1), *(n // s for n, s in zip(size, stride, strict=True)))
        for i, stride in enumerate(strides)
    )
    return Features(maps, strides, torch.zeros(2, 1, *size), size, torch.tensor([size] * 2))


def test_on_one_level_equals_torchvisions_with_its_weights():
    head = FCN((8, 16), ((4, 4), (8, 8)), 3, in_levels=[-1]).eval()
    reference = FCNHead(16, 3).eval()
    keys = ["0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"]
    keys += ["4.weight", "4.bias"]
    own = [k for k in head.state_dict() if k.startswith("classifiers")]
    reference.load_state_dict(dict(zip(keys, (head.state_dict()[k] for k in own), strict=True)))
    features = _features((40, 56))
    expected = torch.nn.functional.interpolate(reference(features.levels[1]), (40, 56), mode="bilinear")
    assert torch.allclose(head(features)["logits"], expected, atol=1e-5)


def test_volume_of_one_slice_equals_the_image():
    flat = FCN((8, 16), ((4, 4), (8, 8)), 3).eval()
    deep = FCN((8, 16), ((1, 4, 4), (1, 8, 8)), 3, spatial_dims=3).eval()
    state = deep.state_dict()
    for key, value in flat.state_dict().items():
        if value.dim() == 4:
            state[key].zero_()[:, :, state[key].shape[2] // 2] = value
        else:
            state[key] = value
    deep.load_state_dict(state)
    features = _features((40, 56))
    volume = Features(
        tuple(level[:, :, None] for level in features.levels),
        ((1, 4, 4), (1, 8, 8)),
        features.images[:, :, None],
        (1, 40, 56),
        torch.tensor([[1, 40, 56]] * 2),
    )
    assert torch.allclose(deep(volume)["logits"][:, :, 0], flat(features)["logits"], atol=1e-5)


def test_padding_is_left_out_of_the_loss():
    head = FCN((8, 16), ((4, 4), (8, 8)), 3).eval()
    features = _features((40, 56))
    labels = torch.randint(0, 3, (2, 40, 56))
    features.valid_sizes[:] = torch.tensor([32, 48])
    loss = head.loss(head(features), labels)["cross_entropy"]
    labels[:, 32:], labels[:, :, 48:] = 1, 2
    assert torch.equal(head.loss(head(features), labels)["cross_entropy"], loss)
    assert (labels[:, 32:] == 1).any(), "the caller's label maps stay as they are"


def test_each_configured_term_is_named():
    head = FCN((8, 16), ((4, 4), (8, 8)), 3, losses={"dice": Dice()})
    features = _features((40, 56))
    assert head.loss(head(features), torch.zeros(2, 40, 56, dtype=torch.int64)).keys() == {"dice"}


def test_results_have_the_original_size_and_leave_padding_out():
    head = FCN((8, 16), ((4, 4), (8, 8)), 3).eval()
    logits = torch.zeros(1, 3, 40, 56)
    logits[:, 1, :20] = 9
    logits[:, 2, 20:] = 9  # padding
    (result,) = head.postprocess({"logits": logits}, [Geometry((40, 56), (20, 56), (10, 28))])
    assert result.class_map.shape == (10, 28)
    assert (result.class_map == 1).all()


def test_instances_are_refused_with_the_form_that_would_be_right():
    head = FCN((8, 16), ((4, 4), (8, 8)), 3)
    with pytest.raises(ValueError, match=r"label maps \(batch, \*spatial\)"):
        head.loss(head(_features((40, 56))), [Instances.empty((40, 56))])


@pytest.mark.parametrize("aux", [True, False])
def test_torchvisions_fcn_loads_with_equal_outputs(tmp_path, aux):
    torch.manual_seed(0)
    reference = fcn_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=aux).eval()
    torch.save(reference.state_dict(), tmp_path / "fcn.pth")
    model = load(tmp_path / "fcn.pth")
    assert model.class_names[0] == "background" and model.class_names[-1] == "tvmonitor"
    images = torch.rand(1, 3, 96, 128)
    assert "aux_logits" not in model(images)  # predictions do without
    model.head.gives_aux = True
    with torch.no_grad():
        expected, outputs = reference(images), model(images)
    torch.testing.assert_close(outputs["logits"], expected["out"], rtol=1e-3, atol=1e-4)
    assert ("aux_logits" in outputs) == aux
    if aux:
        torch.testing.assert_close(outputs["aux_logits"]["aux"], expected["aux"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("level", [2, -3])
def test_second_classifier_on_a_level_that_is_not_there_is_refused(level):
    with pytest.raises(ValueError, match=f"aux_level={level}: there are 2 levels, 0 to 1 or -2 to -1"):
        FCN((8, 16), ((4, 4), (8, 8)), 3, aux_level=level)


def test_torchvisions_fcn_that_is_incomplete_or_wider_is_refused(tmp_path):
    state = fcn_resnet50(weights=None, weights_backbone=None, num_classes=3).state_dict()
    lacking = {key: value for key, value in state.items() if key != "backbone.layer2.0.conv1.weight"}
    wide = {**state, "backbone.layer1.0.conv2.weight": torch.zeros(128, 128, 3, 3)}
    for wrong, message in ((lacking, "1 missing"), (wide, "1 of another shape")):
        torch.save(wrong, tmp_path / "wrong.pth")
        with pytest.raises(WeightsError, match=rf"wrong.pth: the weights do not fit the model: {message}"):
            load(tmp_path / "wrong.pth")


def test_a_second_classifier_learns_with_its_weight():
    torch.manual_seed(0)
    head = FCN((8, 16), ((4, 4), (8, 8)), 3, aux_level=-2, aux_weight=0.25, in_levels=[-1], dropout=0.0)
    features = _features((16, 24))
    labels = torch.randint(0, 3, (2, 16, 24))
    outputs = head(features, labels)
    losses = head.loss(outputs, labels)
    bare = head.losses["cross_entropy"](outputs["aux_logits"]["aux"], labels)
    assert losses["aux_cross_entropy"].item() == pytest.approx(0.25 * bare.item())
    sum(losses.values()).backward()
    assert head.aux_classifier[2].weight.grad.abs().sum() > 0
