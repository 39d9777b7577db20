"""The whole has no reference: its parts are held against torch's decoder, and volumes against images."""

import pytest
import torch
from torch import nn

from pixvox.backbones.darknet import DarkNet
from pixvox.backbones.simple import Simple
from pixvox.gradient_checkpointing import recompute_blocks
from pixvox.heads.hybrid import Hybrid
from pixvox.layers import resize
from pixvox.models import create_model
from pixvox.necks.concat_fpn import ConcatFPN
from pixvox.segmenter import Segmenter
from pixvox.structures import Features, Geometry, Instances

IN, CLASSES, QUERIES = 6, 3, 5


def _head(dims=2, stride=4, seed=0, **options):
    """A small head whose weights are far from where training begins: nothing hides behind zeros."""
    small = {
        "num_queries": QUERIES, "channels": 8, "num_layers": 2, "num_heads": 2, "feedforward": 12, "mask_convs": 1,
        **options,
    }  # fmt: skip
    strides = ((stride,) * dims if isinstance(stride, int) else stride,)
    head = Hybrid((IN,), strides, CLASSES, dims, **small).eval()
    generator = torch.Generator().manual_seed(seed)
    state = head.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator) * 0.5
            state[name] = 0.5 + noise.abs() if "running_var" in name else noise
    head.load_state_dict(state)
    return head


def _features(size, stride=4, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    steps = (stride,) * len(size) if isinstance(stride, int) else stride
    grid = tuple(-(-n // s) for n, s in zip(size, steps, strict=True))
    level = torch.randn(batch, IN, *grid, generator=generator)
    return Features((level,), (steps,), torch.zeros(batch, 1, *size), size, torch.tensor([size] * batch))


def _targets(size, batch=2):
    label_map = torch.zeros(size, dtype=torch.int64)
    label_map[..., : size[-2] // 2, 2:9], label_map[..., 3:, 12:20] = 1, 2
    some = Instances(masks=label_map, labels=torch.tensor([0, 2]))
    return [some] + [Instances.empty(size)] * (batch - 1)


def test_without_masks_the_decoder_is_torchs_on_tokens_with_sines():
    head = _head(masked_attention=False)
    features = _features((24, 40))
    decoder = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(8, 2, 12, batch_first=True), 2, norm=nn.LayerNorm(8)
    ).eval()
    decoder.layers.load_state_dict(head.layers.state_dict())
    decoder.norm.load_state_dict(head.norm.state_dict())
    patches = head.patchify(features.levels[0])
    memory = (patches + head.positions(patches)).flatten(2).transpose(1, 2)
    known = decoder(head.queries.expand(2, -1, -1), memory)
    outputs = head(features)
    assert torch.allclose(outputs["class_logits"], head.classifier(known), atol=1e-5)
    masks = torch.einsum("bqc,bchw->bqhw", head.mask_embedding(known), head.pixels(features.levels[0]))
    assert torch.allclose(outputs["mask_logits"], masks, atol=1e-4)
    assert len(outputs["auxiliary"]) == 2, "the learned queries and all layers but the last learn too"


@pytest.mark.parametrize(
    ("masks_from", "size"), [("features", (24, 40)), ("features", (20, 36)), ("tokens", (24, 40))]
)
def test_each_query_looks_only_where_its_mask_of_the_layer_before_is(masks_from, size):
    head, features = _head(masks_from=masks_from), _features(size)
    outputs = head(features)
    patches = head.patchify(head._whole_patches(features.levels[0]))
    memory = (patches + head.positions(patches)).flatten(2).transpose(1, 2)
    pixels = head.pixels(features.levels[0] if masks_from == "features" else patches)
    for i in range(2):
        queries = head.queries[None]
        for layer in head.layers:
            logits = torch.einsum("qc,c...->q...", head.mask_embedding(head.norm(queries))[0], pixels[i])
            if masks_from == "features":  # the logits of a patch are the mean of its cells'
                logits = head._whole_patches(logits[None])
            outside = (
                resize(logits.reshape(1, QUERIES, *logits.shape[-2:]), patches.shape[2:])[0].flatten(1) < 0
            )
            outside[outside.all(1)] = False
            assert outside.any(), "the test would prove nothing"
            queries = layer(queries, memory[i : i + 1], memory_mask=outside)
        known = head.norm(queries)
        assert torch.allclose(outputs["class_logits"][i], head.classifier(known)[0], atol=1e-5)


def test_there_are_logits_for_every_class_and_no_object():
    outputs = _head()(_features((24, 40)))
    assert outputs["class_logits"].shape == (2, QUERIES, CLASSES + 1)
    assert outputs["mask_logits"].shape == (2, QUERIES, 6, 10)
    assert _head(masks_from="tokens")(_features((24, 40)))["mask_logits"].shape == (2, QUERIES, 3, 5)
    assert _head(patch_size=1, mask_channels=4)(_features((20, 36)))["mask_logits"].shape == (
        2,
        QUERIES,
        5,
        9,
    )


@pytest.mark.parametrize("masked", [True, False])
def test_padding_changes_no_prediction(masked):
    head, features = _head(masked_attention=masked, mask_convs=0), _features((24, 40))
    level = torch.randn(2, IN, 10, 14)
    level[:, :, :6, :10] = features.levels[0]
    padded = Features((level,), features.strides, torch.zeros(2, 1, 40, 56), (40, 56), features.valid_sizes)
    own, expected = head(padded), head(features)
    assert torch.allclose(own["class_logits"], expected["class_logits"], atol=1e-5)
    assert torch.allclose(own["mask_logits"][..., :6, :10], expected["mask_logits"], atol=1e-4)


def test_results_have_labels_of_the_classes_and_the_original_size():
    head = _head(score_threshold=0.0)
    (result, _) = head.postprocess(head(_features((24, 40))), [Geometry((24, 40), (20, 40), (41, 77))] * 2)
    assert result.instances.size == (41, 77)
    assert len(result.instances) > 0
    assert set(result.instances.labels.tolist()) <= set(range(CLASSES))


def _without_depth(head, flat):
    """Let a volume's tokens have the sines of its slice."""
    head.positions.forward = lambda x, valid=None: flat.positions(x[:, :, 0], valid[:, 1:])[:, :, None]


def test_volume_of_one_slice_equals_the_image_with_the_centre_of_the_kernels():
    flat = _head(2)
    deep = _head(3, (1, 4, 4), patch_size=(1, 2, 2))
    state = deep.state_dict()
    for name, value in flat.state_dict().items():
        lifted = torch.zeros_like(state[name])
        if value.shape != lifted.shape:
            lifted[:, :, lifted.shape[2] // 2] = value
        state[name] = value if value.shape == lifted.shape else lifted
    deep.load_state_dict(state)
    _without_depth(deep, flat)
    features = _features((24, 40))
    volume = Features(
        (features.levels[0][:, :, None],), ((1, 4, 4),), features.images[:, :, None], (1, 24, 40),
        torch.tensor([[1, 24, 40]] * 2),
    )  # fmt: skip
    own, expected = deep(volume), flat(features)
    assert torch.allclose(own["class_logits"], expected["class_logits"], atol=1e-5)
    assert torch.allclose(own["mask_logits"][:, :, 0], expected["mask_logits"], atol=1e-4)
    (mine, _), (theirs, _) = (
        head.postprocess(outputs, [Geometry.identity(outputs["input_size"])] * 2)
        for head, outputs in ((deep, own), (flat, expected))
    )
    assert torch.allclose(mine.instances.scores, theirs.instances.scores, atol=1e-5)
    assert torch.equal(mine.instances.masks.dense()[:, 0], theirs.instances.masks.dense())
    targets = _targets((24, 40))
    deep_targets = [
        Instances(masks=t.masks.dense()[:, None], labels=t.labels) if len(t) else Instances.empty((1, 24, 40))
        for t in targets
    ]
    losses, others = deep.loss(own, deep_targets), flat.loss(expected, targets)
    assert losses.keys() == others.keys()
    for name, value in losses.items():
        assert torch.allclose(value, others[name], rtol=1e-4), name


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 1, 0), (0, 2, 1)])
def test_permuted_axes_permute_the_masks(order):
    """Without sines, which are not the same along depth as in the plane."""
    axes = (0, 1, *(axis + 2 for axis in order))
    strides, patch = (2, 4, 4), (1, 2, 2)
    head = _head(3, strides, patch_size=patch)
    turned = _head(3, tuple(strides[i] for i in order), patch_size=[patch[i] for i in order], seed=7)
    turned.load_state_dict({k: v.permute(axes) if v.dim() == 5 else v for k, v in head.state_dict().items()})
    for part in (head, turned):
        part.positions.forward = lambda x, valid=None: torch.zeros_like(x)
    features = _features((6, 16, 24), strides)
    permuted = Features(
        (features.levels[0].permute(axes),),
        (tuple(strides[i] for i in order),),
        features.images.permute(axes),
        tuple(features.input_size[i] for i in order),
        features.valid_sizes[:, list(order)],
    )
    own, expected = turned(permuted), head(features)
    assert torch.allclose(own["class_logits"], expected["class_logits"], atol=1e-5)
    assert torch.allclose(own["mask_logits"], expected["mask_logits"].permute(axes), atol=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"masks_from": "tokens"}, {"masked_attention": False, "mask_convs": 2}]
)
@pytest.mark.parametrize("size", [(24, 40), (8, 16, 24)])
def test_every_weight_learns(size, options):
    head = _head(len(size), **options).train()
    features = _features(size)
    losses = head.loss(head(features, _targets(size)), _targets(size))
    assert {"class", "mask", "dice", "auxiliary_class", "auxiliary_mask", "auxiliary_dice"} <= losses.keys()
    sum(losses.values()).backward()
    silent = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize("masked", [True, False])
def test_gradients_are_the_same_when_blocks_are_computed_twice(masked):
    size = (64, 96)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        backbone = DarkNet(2, 1, (1, 1, 1, 1, 1), width=4, out_levels=(2, 3))
        neck = ConcatFPN(backbone.channels, backbone.strides, 2, 8, 8)
        head = Hybrid(neck.channels, neck.strides, 3, num_queries=4, channels=8, num_layers=2, num_heads=2,
                      feedforward=8, masked_attention=masked)  # fmt: skip
        model = Segmenter(backbone, neck, head).train()
        if recompute:
            assert len(recompute_blocks(model)) == 3 + 3 + 2
        torch.manual_seed(1)
        sum(
            model(torch.randn(2, 1, *size), _targets(size), torch.tensor([size, (32, 64)]))["losses"].values()
        ).backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, twice in zip(*gradients, strict=True):
        assert torch.allclose(plain, twice, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: _head(patch_size=3), "patch_size must be 1 or 2 along each axis, got 3"),
        (lambda: _head(masks_from="tokens")(_features((20, 40))), r"size \(5, 10\) is not whole patches"),
    ],
)
def test_what_does_not_fit_is_refused(build, said):
    with pytest.raises(ValueError, match=said):
        build()


def test_the_configuration_has_the_documented_sizes():
    with torch.device("meta"):
        model = create_model("hybrid", "darknet53", num_classes=2)
    head = model.head
    assert head.queries.shape == (100, 384)
    assert len(head.layers) == 6
    assert head.layers[0].self_attn.num_heads == 6
    assert head.token_stride == (16, 16)
    assert model.neck.channels == (256, 256, 512)


def test_learns_the_objects_of_one_image_by_heart():
    torch.manual_seed(0)
    backbone = Simple(2, 1, (16, 24), (4, 8), norm="group")
    neck = ConcatFPN(backbone.channels, backbone.strides, 2, 16, 24, norm="group")
    options = {
        "channels": 32,
        "num_queries": 6,
        "num_layers": 2,
        "num_heads": 4,
        "feedforward": 32,
        "dropout": 0.0,
    }
    head = Hybrid(neck.channels, neck.strides, 2, norm="group", mask_convs=1, **options)
    model = Segmenter(backbone, neck, head)
    label_map = torch.zeros(32, 48, dtype=torch.int64)
    label_map[4:14, 5:20], label_map[18:30, 24:44], label_map[2:10, 30:40] = 1, 2, 3
    targets = [Instances(masks=label_map, labels=torch.tensor([0, 1, 0]))]
    image = torch.randn(1, 1, 32, 48) * 0.2 + (label_map > 0) * torch.where(label_map == 2, 1.0, -1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    totals = []
    for _ in range(60):
        loss = sum(model(image, targets)["losses"].values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(float(loss.detach()))
    assert totals[-1] < 0.2 * totals[0]
    model.eval()
    outputs = model(image)
    (result,) = model.postprocess(outputs, [Geometry.identity((32, 48))])
    found = result.instances[result.instances.scores > 0.5]
    assert sorted(found.labels.tolist()) == [0, 0, 1]
    masks, truth = found.masks.dense(), targets[0].masks.dense()
    shared = (masks[:, None] & truth).flatten(2).sum(2) / (masks[:, None] | truth).flatten(2).sum(2)
    assert shared.amax(1).min() > 0.7
