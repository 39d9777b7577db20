"""Where the time of a prediction goes: backbone, neck, head, post-processing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixvox.devices import default_device
from pixvox.errors import ConfigError
from pixvox.segmenter import Segmenter
from pixvox.structures import Batch, Geometry

PARTS = ("normalizer", "backbone", "neck", "head")
"""Parts of a model whose forward pass is timed; post-processing and the total are timed beside them."""

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ComponentTimes:
    """Median times of repeated passes.

    Args:
        milliseconds: Per batch, by part, with ``"postprocess"`` and ``"total"``.
        parameters: Number of each part, with ``"total"``.
        images_per_second: Of the whole pass.
        peak_memory_mib: ``"cuda"``: most that was allocated in a pass; ``"host"``: most that the process ever took.
        device: Name of the device.
        image_size: Spatial size of the images in array order.
        batch_size: Images per pass.
        repeats: Passes that the medians are over.
        instances: Objects that post-processing gave out, in all images; it takes longer with more.
    """

    milliseconds: dict[str, float]
    parameters: dict[str, int]
    images_per_second: float
    peak_memory_mib: dict[str, float]
    device: str
    image_size: tuple[int, ...]
    batch_size: int
    repeats: int
    instances: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return part, milliseconds, share of the total and parameters, for a table."""
        total = self.milliseconds["total"]
        return [
            (
                part,
                f"{value:.2f}",
                f"{100 * value / total:.0f}%",
                f"{self.parameters[part]:,}" if part in self.parameters else "",
            )
            for part, value in self.milliseconds.items()
        ]


def time_components(
    model: Segmenter,
    image_size: Sequence[int] | int = 640,
    batch_size: int = 1,
    repeats: int = 20,
    warmup: int = 3,
    image: str | Path | None = None,
    precision: str = "fp32",
    device: torch.device | str | None = None,
) -> ComponentTimes:
    """Time the parts of a prediction over repeated passes, after some that do not count.

    Every part is waited for, so that nothing of a GPU's work is counted for the part after it. The model's mode is
    restored.

    Args:
        model: The model.
        image_size: Side in pixels or voxels, or one per axis in array order.
        batch_size: Images per pass.
        repeats: Passes that count.
        warmup: Passes before, which choose algorithms and fill caches.
        image: A file to segment, resized to ``image_size``; by default seeded noise, in which there may be nothing
            to post-process.
        precision: ``"fp32"``, or ``"bf16"`` or ``"fp16"`` for autocast.
        device: Where; by default where the model would run.

    Raises:
        ConfigError: If a number or the precision makes no sense.
        DataError: If the image cannot be read.

    Example:
        >>> from pixvox.models import create_model
        >>> times = time_components(create_model("fcn", "simple", 2), image_size=32, repeats=2, warmup=1, device="cpu")
        >>> list(times.milliseconds), times.repeats
        (['normalizer', 'backbone', 'neck', 'head', 'postprocess', 'total'], 2)
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    batch = _batch(model, _size(image_size, model.spatial_dims), batch_size, image)
    return time_batch(model, batch, repeats, warmup, precision, device)


def time_batch(
    model: Segmenter,
    batch: Batch,
    repeats: int = 20,
    warmup: int = 3,
    precision: str = "fp32",
    device: torch.device | str | None = None,
) -> ComponentTimes:
    """Time the parts of a prediction of one batch, as ``time_components`` does.

    Args:
        model: The model.
        batch: Images as a loader gives them, not normalised.
        repeats: Passes that count.
        warmup: Passes before, which choose algorithms and fill caches.
        precision: ``"fp32"``, or ``"bf16"`` or ``"fp16"`` for autocast.
        device: Where; by default where the model would run.

    Raises:
        ConfigError: If a number or the precision makes no sense.
    """
    if repeats < 1 or warmup < 0:
        raise ConfigError(f"repeats must be at least 1 and warmup at least 0, got {repeats}, {warmup}")
    if precision not in _PRECISIONS:
        raise ConfigError(f"precision must be one of {', '.join(_PRECISIONS)}; got {precision!r}")
    place = torch.device(device) if device is not None else default_device()
    model, batch = model.to(place), batch.to(place)
    clock = _Clock(model, place)
    modes = [(module, module.training) for module in model.modules()]
    autocast = torch.autocast(place.type, _PRECISIONS[precision], enabled=precision != "fp32")
    instances = 0
    try:
        model.eval()
        with clock.listening(), torch.inference_mode(), autocast:
            for step in range(warmup + repeats):
                if step == warmup:
                    clock.start_over()
                instances = clock.time_pass(batch)
    finally:
        for module, training in modes:
            module.training = training
    milliseconds = {name: 1000 * statistics.median(times) for name, times in clock.seconds.items()}
    return ComponentTimes(
        milliseconds={name: round(value, 4) for name, value in milliseconds.items()},
        parameters=_parameters(model),
        images_per_second=round(1000 * len(batch) / milliseconds["total"], 3),
        peak_memory_mib=_peak_memory(place),
        device=device_name(place),
        image_size=tuple(batch.images.shape[2:]),
        batch_size=len(batch),
        repeats=repeats,
        instances=instances,
    )


def device_name(device: torch.device | None = None) -> str:
    """Return the name of a device, by default of that where a model would run: of a GPU its own."""
    place = default_device() if device is None else device
    return torch.cuda.get_device_name(place) if place.type == "cuda" else place.type


def model_to_time(words: Sequence[str]) -> Segmenter:
    """Return the model of a run or checkpoint, or a new one from ``key=value`` overrides.

    Args:
        words: One path, or overrides such as ``head=hybrid`` and ``backbone=darknet53``.

    Raises:
        ConfigError: If there is neither, or both.
    """
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    paths = [word for word in words if word not in overrides]
    if len(paths) > 1 or (paths and overrides) or not words:
        raise ConfigError(
            "give one run or checkpoint, or the parts of a new model (backbone=darknet53 head=hybrid), not "
            f"{' '.join(words) or 'nothing'}"
        )
    if overrides:
        from pixvox.models import model_of

        return model_of(overrides)
    from pixvox.weights import load

    return load(paths[0])


class _Clock:
    """Times the parts of passes by hooks before and after them, so that the model's own flow is what is timed."""

    def __init__(self, model: Segmenter, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.seconds: dict[str, list[float]] = {}
        self._started: dict[str, float] = {}
        self.start_over()

    def start_over(self) -> None:
        """Forget the passes so far."""
        self.seconds = {name: [] for name in (*PARTS, "postprocess", "total")}
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def now(self) -> float:
        """Return the time at which all work handed out so far is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    def time_pass(self, batch: Batch) -> int:
        """Segment a batch once; return the number of objects found."""
        start = self.now()
        outputs = self.model.run(batch)
        middle = self.now()
        results = self.model.postprocess(outputs, batch.geometries)
        end = self.now()
        self.seconds["postprocess"].append(end - middle)
        self.seconds["total"].append(end - start)
        return sum(len(result.instances) for result in results if result.instances is not None)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Time the parts while this lasts."""
        handles = []
        for name in PARTS:
            part: nn.Module = getattr(self.model, name)
            handles.append(part.register_forward_pre_hook(self._starter(name)))
            handles.append(part.register_forward_hook(self._stopper(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _starter(self, name: str) -> Callable[..., None]:
        def start(*_: Any) -> None:
            self._started[name] = self.now()

        return start

    def _stopper(self, name: str) -> Callable[..., None]:
        def stop(*_: Any) -> None:
            self.seconds[name].append(self.now() - self._started[name])

        return stop


def _size(image_size: Sequence[int] | int, spatial_dims: int) -> tuple[int, ...]:
    """Return one length per axis."""
    size = (image_size,) * spatial_dims if isinstance(image_size, int) else tuple(image_size)
    if len(size) != spatial_dims or min(size) < 1:
        raise ConfigError(
            f"image_size is one length or {spatial_dims} in array order, each at least 1; got {image_size}"
        )
    return size


def _batch(model: Segmenter, size: tuple[int, ...], batch_size: int, image: str | Path | None) -> Batch:
    """Return un-normalised images: of a file, or of seeded noise."""
    if image is None:
        generator = torch.Generator().manual_seed(0)
        noise: Tensor = torch.rand((batch_size, model.in_channels, *size), generator=generator) * 255
        return Batch(noise, None, [Geometry.identity(size)] * batch_size)
    from pixvox.data.collate import Collate
    from pixvox.data.transforms.resize import Resize
    from pixvox.inference.inputs import samples

    (sample,) = samples(str(image), model.spatial_dims, model.in_channels)
    return Collate(model.size_divisor)([Resize(size, "exact")(sample, torch.Generator())] * batch_size)


def _parameters(model: Segmenter) -> dict[str, int]:
    parts: Mapping[str, nn.Module] = {name: getattr(model, name) for name in PARTS}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    return {**counts, "total": sum(p.numel() for p in model.parameters())}


def _peak_memory(device: torch.device) -> dict[str, float]:
    from pixvox.callbacks.summary import peak_memory_mib

    peak = peak_memory_mib()
    return peak if device.type == "cuda" else {name: peak[name] for name in peak if name != "cuda"}
