import pytest
import torch

from pixvox.flops import count_flops
from pixvox.models import create_model
from small_heads import SMALL


def test_a_convolution_counts_two_operations_per_multiply_add():
    model = create_model("fcn", "simple", 2, in_levels=[0], hidden_channels=4, neck="none")
    fine = model.backbone.channels[0]
    cells = (32 // 4) * (64 // 4)
    expected = 2 * cells * (9 * fine * 4 + 4 * 2)
    assert count_flops(model, (32, 64))["head"] == expected
    assert count_flops(model, (32, 64), batch_size=2)["head"] == 2 * expected


@pytest.mark.parametrize("head", ["mask2former", "deformable_detr"])
def test_models_with_learned_queries_are_counted_and_stay_as_they_were(head):
    model = create_model(head, "simple", 2, **SMALL[head])
    model.head.requires_grad_(True)
    model.backbone.requires_grad_(False)
    learning = {name for name, value in model.named_parameters() if value.requires_grad}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    counts = count_flops(model.train(), (32, 32))
    assert counts["head"] > 0 and counts["total"] == sum(
        counts[part] for part in ("backbone", "neck", "head")
    )
    assert learning == {name for name, value in model.named_parameters() if value.requires_grad}
    assert model.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
