"""Features for heads of classes, and what lifts a head for images to volumes of equal slices."""

import torch

from pixvox.structures import Features


def features(channels=(8, 12, 16, 24), strides=(4, 8, 16, 32), size=(96, 160), batch=2, seed=0):
    """Return random levels of images or volumes; strides are one number for all axes, or one per axis."""
    generator = torch.Generator().manual_seed(seed)
    per_level = tuple((step,) * len(size) if isinstance(step, int) else tuple(step) for step in strides)
    maps = tuple(
        torch.randn(batch, width, *(-(-n // s) for n, s in zip(size, step, strict=True)), generator=generator)
        for width, step in zip(channels, per_level, strict=True)
    )
    return Features(maps, per_level, torch.zeros(batch, 1, *size), tuple(size), torch.tensor([size] * batch))


def as_volume(flat, slices):
    """Return the features of a volume whose slices are all the image, with no stride along depth."""
    size = (slices, *flat.input_size)
    return Features(
        tuple(level[:, :, None].expand(-1, -1, slices, -1, -1) for level in flat.levels),
        tuple((1, *stride) for stride in flat.strides),
        flat.images[:, :, None].expand(-1, -1, slices, -1, -1),
        size,
        torch.tensor([size] * len(flat.images)),
    )


def lift(flat, deep):
    """Give a head for volumes the kernels of one for images, in the centre slices; return it.

    A transposed convolution's kernel has one slice, as there is no stride along depth.
    """
    state = deep.state_dict()
    for key, value in flat.state_dict().items():
        if state[key].dim() == 5:
            state[key].zero_()[:, :, state[key].shape[2] // 2] = value
        else:
            state[key] = value
    deep.load_state_dict(state)
    return deep
