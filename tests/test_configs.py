from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from pixvox.assembly import build_metrics, build_segmenter, complete
from pixvox.configuration import CONFIG_FOLDER, compose, instantiate
from pixvox.data.metadata import Metadata
from pixvox.optimizers.schedules import lr_scheduler
from small_heads import slow_if_alike

ADDED = {"loss": ["head=fcn"]}
"""Groups that a part's own choice is added to, with what they need."""

CHOICES = sorted((path.parent.name, path.stem) for path in Path(CONFIG_FOLDER).glob("*/*.yaml"))
ALONE = ("experiment", *ADDED)
"""Groups whose choices make choices of other groups, or need them."""


def side_by_side():
    """Give out choices of all other groups together: the first of each, the second of each, until all had a turn."""
    groups = {
        group: [choice for of, choice in CHOICES if of == group]
        for group in dict(CHOICES)
        if group not in ALONE
    }
    return [
        {group: choices[i % len(choices)] for group, choices in groups.items()}
        for i in range(max(map(len, groups.values())))
    ]


@pytest.mark.parametrize("choices", side_by_side())
def test_configurations_compose_and_their_values_fit(choices):
    config = compose("train", [f"{group}={choice}" for group, choice in choices.items()])
    assert {group: config.choices[group] for group in choices} == choices
    OmegaConf.to_yaml(config)


@pytest.mark.parametrize(
    ("group", "choice"), [pair for pair in CHOICES if pair[0] in ALONE], ids=lambda word: word
)
def test_configuration_composes_by_itself_and_its_values_fit(group, choice):
    overrides = [*ADDED[group], f"+{group}={choice}"] if group in ADDED else [f"{group}={choice}"]
    config = compose("train", overrides)
    assert config.choices[group] == choice
    OmegaConf.to_yaml(config)


SLIM = Path(__file__).parents[1] / "benchmarks" / "configs"


@pytest.mark.parametrize("head", sorted(path.stem for path in SLIM.glob("head/*.yaml")))
def test_heads_of_the_benchmarks_compose_with_their_experiment(head):
    config = compose("train", ["experiment=shapes", f"head={head}", "image_size=64"], SLIM)
    assert config.choices.head == head


@pytest.mark.parametrize("name", sorted(path.stem for path in Path(CONFIG_FOLDER).glob("*.yaml")))
def test_primary_configuration_composes(name):
    assert OmegaConf.to_yaml(compose(name))


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids="=".join)
def test_configuration_says_what_it_is(group, choice):
    lines = (CONFIG_FOLDER / group / f"{choice}.yaml").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("# @package ")).startswith("# ")


@pytest.mark.parametrize("choice", [choice for group, choice in CHOICES if group == "optimizer"])
def test_optimizer_takes_parameter_groups(choice):
    group = {"params": [torch.zeros(2, 2, requires_grad=True)], "lr": 0.5}
    optimizer = instantiate(compose("train", [f"optimizer={choice}"]).optimizer)([group])
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("choice", [choice for group, choice in CHOICES if group == "scheduler"])
def test_scheduler_never_exceeds_the_peak(choice):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0, momentum=0.9)
    config = compose("train", [f"scheduler={choice}"]).scheduler
    mapping = lr_scheduler(instantiate(config), optimizer, 40, 1)
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        mapping["scheduler"].step(*([1.0] if "monitor" in mapping else []))
    if "warmup" in config:
        assert rates[0] < rates[1] < rates[3] <= 2.0
    assert max(rates) <= 2.0 + 1e-9
    assert rates[-1] <= rates[10]


@pytest.mark.parametrize(
    ("head", "dims"),
    [
        slow_if_alike(head, dims) if dims == 3 else (head, dims)
        for group, head in CHOICES
        if group == "head"
        for dims in (2, 3)
    ],
)
def test_model_is_built_from_the_configuration_of_each_head(head, dims):
    from pixvox.models import part_class

    kind = part_class("head", head)
    if dims not in kind.supported_dims:
        pytest.skip(f"{head} exists for {kind.supported_dims}")
    backbone = [] if kind.branches else ["backbone=simple", "backbone.channels=[4,8,8,8]"]
    config = compose("train", [f"head={head}", *backbone])
    metadata = Metadata(kind.task, dims, ("one", "two"), in_channels=1)
    complete(config, metadata)
    segmenter = build_segmenter(config, metadata)
    assert (segmenter.spatial_dims, segmenter.num_classes, segmenter.in_channels) == (dims, 2, 1)
    assert segmenter.class_names == ("one", "two")
    metrics = build_metrics(config, metadata, segmenter.head)
    assert metrics.monitor
