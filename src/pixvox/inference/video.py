"""Videos frame by frame: read, segment, paint, write; of the same size, speed and order."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from pixvox.errors import DataError
from pixvox.files import whole_file
from pixvox.inference.inputs import samples
from pixvox.inference.results import save_labels
from pixvox.structures import Segmentation
from pixvox.visualization.views import blend, paint_layer

if TYPE_CHECKING:
    from pixvox.inference.predictor import Predictor

log = logging.getLogger("pixvox")

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
"""Files that are read as videos."""

_CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
"""What is written, by suffix: both codecs are part of OpenCV."""
_USUAL_SPEED = 25.0
_SECONDS_BETWEEN_LINES = 10.0


def is_video(path: str | Path) -> bool:
    """Tell by its suffix whether a file is a video.

    Example:
        >>> is_video("drive.MP4"), is_video("frame.png")
        (True, False)
    """
    return Path(path).suffix.lower() in SUFFIXES


@dataclass(frozen=True)
class Video:
    """A video file and what it tells of itself.

    Args:
        path: The file.
        speed: Frames per second.
        size: Height and width, in pixels.
        count: Frames as the file tells, 0 when it does not; the frames themselves decide.
    """

    path: Path
    speed: float
    size: tuple[int, int]
    count: int

    @classmethod
    def open(cls, path: str | Path) -> Video:
        """Look into a file.

        Raises:
            DataError: If it is no video, or its first frame cannot be decoded.
        """
        first = next(_frames(Path(path)))
        with _capture(Path(path)) as capture:
            import cv2

            speed, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        if not 0 < speed < math.inf:
            log.warning("%s does not tell its speed; %g frames per second are taken", path, _USUAL_SPEED)
            speed = _USUAL_SPEED
        height, width, _ = first.shape
        return cls(Path(path), speed, (height, width), max(0, int(count)))

    def frames(self) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """Yield the frames in their order, as RGB."""
        return _frames(self.path)


def segment_video(
    predictor: Predictor, path: str | Path, folder: str | Path, name: str, labels: bool = False
) -> dict[str, Any]:
    """Write a video with what is found painted over every frame.

    The file plays whenever the process was stopped: Ctrl-C and SIGTERM end it with the last finished frame. Codecs
    take pairs of rows and columns: of an odd length the last one is cut off.

    Args:
        predictor: Of a model for images; ``batch_size`` frames go through it together.
        path: The video.
        folder: For the results; made when missing.
        name: Beginning of the file names.
        labels: Write also the label map of each frame, as ``NAME_labels/000000.png``, ...

    Returns:
        The source, how many frames were segmented, and the files: ``NAME_overlay.avi`` for an ``.avi``, else ``.mp4``.

    Raises:
        DataError: If the video cannot be read, the model is for volumes, or the result cannot be written.
    """
    if predictor.model.spatial_dims != 2:
        raise DataError(f"{path} is a video, but this model segments volumes; give it a model for images")
    video = Video.open(path)
    target = Path(folder) / f"{name}_overlay{'.avi' if video.path.suffix.lower() == '.avi' else '.mp4'}"
    maps = Path(folder) / f"{name}_labels"
    for made in (target.parent, *([maps] if labels else [])):
        made.mkdir(parents=True, exist_ok=True)
    written, stopped = 0, None
    with whole_file(target) as part, _writer(part, video) as writer, _stopped_by_signals():
        try:
            for frame, result in _results(predictor, video):
                writer.write(np.ascontiguousarray(_painted(frame, result)[..., ::-1]))
                if labels:
                    save_labels(result, maps, f"{written:06d}")
                written += 1
        except (KeyboardInterrupt, SystemExit) as error:
            if not written:
                raise
            stopped = error
    if stopped is not None:
        log.warning("stopped: %s holds the first %d frames", target, written)
        raise stopped
    if written < video.count:
        log.warning("%s ends after %d of %d frames; the rest cannot be decoded", path, written, video.count)
    files = [str(target), *([str(maps)] if labels else [])]
    return {"source": str(path), "found": f"{written} frames", "files": files}


def _results(
    predictor: Predictor, video: Video
) -> Iterator[tuple[UInt8[np.ndarray, "height width 3"], Segmentation]]:
    """Yield each frame with its result, and say every few seconds how far it is."""
    frames = video.frames()
    started = said = time.perf_counter()
    done = 0
    while batch := list(islice(frames, predictor.batch_size)):
        inputs = [sample for frame in batch for sample in samples(frame, 2, predictor.model.in_channels)]
        for number, sample in enumerate(inputs):
            sample.source = f"{video.path.name}[{done + number}]"
        yield from zip(batch, predictor.predict_samples(inputs), strict=True)
        done += len(batch)
        now = time.perf_counter()
        if now - said >= _SECONDS_BETWEEN_LINES:
            total = f" of {video.count}" if video.count else ""
            log.info("%s: frame %d%s, %.1f frames/s", video.path.name, done, total, done / (now - started))
            said = now


def _painted(
    frame: UInt8[np.ndarray, "height width 3"], result: Segmentation
) -> UInt8[np.ndarray, "height width 3"]:
    """Paint a result over the frame itself: a contrast of its own for each frame would flicker."""
    layer = paint_layer(replace(result, image=None))
    return blend(frame, layer.ids, layer.colors)


def _frames(path: Path) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    with _capture(path) as capture:
        read, frame = capture.read()
        if not read:
            raise DataError(
                f"{path}: no frame of this video can be decoded; is it damaged, or of a rare codec?"
            )
        while read:
            yield np.ascontiguousarray(frame[..., ::-1])
            read, frame = capture.read()


@contextlib.contextmanager
def _capture(path: Path) -> Iterator[Any]:
    import cv2

    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise DataError(
                f"{path} cannot be opened as a video; give a file that OpenCV decodes, such as .mp4 (H.264) or .avi"
            )
        yield capture
    finally:
        capture.release()


@contextlib.contextmanager
def _writer(path: Path, video: Video) -> Iterator[Any]:
    """Open a file for frames of the video's size and speed; it plays once the block has ended, however it ends."""
    import cv2

    height, width = video.size
    codec = cv2.VideoWriter.fourcc(*_CODECS[path.suffix])
    writer = cv2.VideoWriter(str(path), codec, video.speed, (width, height))
    try:
        if not writer.isOpened():
            raise DataError(f"{path.parent} takes no video {path.suffix}; check its rights and the space")
        yield writer
    finally:
        writer.release()


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, with exit code 143."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
