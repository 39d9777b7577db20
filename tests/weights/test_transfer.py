import pytest
import torch

from pixvox.cli import run
from pixvox.errors import WeightsError
from pixvox.models import create_model
from pixvox.training.train import train
from pixvox.weights.checkpoint import save_safetensors
from pixvox.weights.loading import load
from pixvox.weights.transfer import copy_fitting, transfer

pytestmark = pytest.mark.usefixtures("no_pictures")

RUN = [
    "head=fcn", "backbone=resnet18", "backbone.out_levels=[2,3]", "neck=none", "data=shapes",
    "data.train.task=semantic", "data.train.num_images=4",
    "data.val.num_images=2", "data.train.radius=[4,8]", "data.train.image_size=32",
    "image_size=32", "batch_size=2", "num_workers=0", "logger=none", "trainer.accelerator=cpu", "max_steps=1",
    "epochs=-1", "learning_rate=0.0",
]  # fmt: skip


def small(**options):
    return create_model(
        head="fcn", backbone="simple", backbone__channels=[4, 8], backbone__strides=[2, 4], hidden_channels=4,
        in_levels=[0], **options,
    )  # fmt: skip


def test_what_fits_is_taken_and_the_rest_is_told(tmp_path):
    torch.manual_seed(0)
    source, model = small(num_classes=2, in_channels=1), small(num_classes=5, in_channels=1)
    start = model.state_dict()["head.classifiers.0.2.weight"].clone()
    result = transfer(model, save_safetensors(source, tmp_path / "source.safetensors"))
    assert set(result.misfits) == {"head.classifiers.0.2.weight", "head.classifiers.0.2.bias"}
    assert not result.missing and not result.unused and not result.lifted
    state = model.state_dict()
    for name, value in source.state_dict().items():
        if name not in result.misfits:
            assert torch.equal(state[name], value)
    assert torch.equal(state["head.classifiers.0.2.weight"], start)
    assert "2 of another shape: head.classifiers.0.2.weight ([5, " in str(result)


def test_weights_of_images_become_the_centre_slices_of_volumes():
    plane, volume = small(num_classes=2), small(num_classes=2, spatial_dims=3)
    result = copy_fitting(volume, plane.state_dict())
    assert result.lifted and not result.misfits
    image = torch.randn(1, 3, 16, 24)
    flat, deep = plane.eval().backbone(image), volume.eval().backbone(image[:, :, None])
    for level, expected in zip(deep, flat, strict=True):
        assert torch.allclose(level[:, :, 0], expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("dims", [2, 3])
def test_first_layer_is_adapted_to_the_channels_as_timm_does(channels, dims):
    from timm.models import adapt_input_conv

    source, model = small(num_classes=2), small(num_classes=2, in_channels=channels, spatial_dims=dims)
    result = copy_fitting(model, source.state_dict())
    (name,) = result.adapted
    kernel = model.state_dict()[name]
    flat = kernel[:, :, kernel.shape[2] // 2] if dims == 3 else kernel
    torch.testing.assert_close(flat, adapt_input_conv(channels, source.state_dict()[name].clone()))
    assert name not in result.misfits
    assert "1 adapted to other channels" in str(result)


def test_other_layers_are_not_adapted():
    source, model = small(num_classes=2), small(num_classes=2)
    state = source.state_dict()
    name = next(key for key, value in state.items() if value.dim() == 4 and value.shape[1] == 4)
    state[name] = torch.cat([state[name]] * 2, dim=1)
    assert name in copy_fitting(model, state).misfits


def test_nothing_that_fits_is_an_error(tmp_path):
    torch.save({"alien.weight": torch.zeros(2), "head.strange": torch.zeros(1)}, tmp_path / "alien.pth")
    with pytest.raises(WeightsError, match="none of its weights fit the model; 0 of"):
        transfer(small(num_classes=2), tmp_path / "alien.pth")
    assert run(["train", *RUN, f"weights={tmp_path}/absent", f"runs_dir={tmp_path}"]) == 2
    assert not list(tmp_path.glob("20*"))


def test_a_run_starts_from_the_weights_of_another(tmp_path):
    first = train([*RUN, "seed=1", f"run_dir={tmp_path}/first"])
    second = train([*RUN, "seed=2", f"run_dir={tmp_path}/second", f"weights={first.dir}"])
    before, after = (load(folder.dir).state_dict() for folder in (first, second))
    kept = [name for name in before if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert f"weights of {first.dir}: " in (second.dir / "run.log").read_text()


def test_a_backbone_starts_from_the_weights_of_a_run_in_any_dimension(tmp_path):
    first = train(
        [*RUN, "method=mean_teacher", "num_labeled_images=2", "warmup_steps=9", f"run_dir={tmp_path}/first"]
    )
    trained = load(first.dir).backbone.network.state_dict()["layer1.0.conv1.weight"]
    for dims in (2, 3):
        model = create_model(
            head="fcn", backbone="resnet18", num_classes=4, spatial_dims=dims, pretrained=str(first.dir),
            backbone__out_levels=[2, 3],
        )  # fmt: skip
        own = model.backbone.network.state_dict()["layer1.0.conv1.weight"]
        assert torch.equal(own if dims == 2 else own[:, :, 1], trained)
