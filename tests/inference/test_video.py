import logging
import os
import signal

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import pixvox.weights
from pixvox.cli import run
from pixvox.errors import DataError
from pixvox.inference.predictor import Predictor
from pixvox.inference.video import Video, segment_video
from pointwise import pointwise

SIZE, FRAMES = (36, 48), 6


@pytest.fixture
def suffix():
    return ".mp4"


@pytest.fixture
def film(tmp_path, suffix):
    """A bright square that moves to the right, 8 pixels a frame, on black."""
    path = tmp_path / f"film{suffix}"
    codec = cv2.VideoWriter.fourcc(*{".mp4": "mp4v", ".avi": "MJPG"}[suffix])
    writer = cv2.VideoWriter(str(path), codec, 7.5, SIZE[::-1])
    for number in range(FRAMES):
        frame = np.zeros((*SIZE, 3), dtype=np.uint8)
        frame[12:24, 8 * number : 8 * number + 8] = 250
        writer.write(frame)
    writer.release()
    return path


def read(path):
    return np.stack(list(Video.open(path).frames()))


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_frames_keep_order_size_and_speed(film, suffix, tmp_path):
    row = segment_video(Predictor(pointwise(), batch_size=4), film, tmp_path / "out", "film", labels=True)
    written = Video.open(row["files"][0])
    assert written.path.suffix == suffix
    assert (written.size, written.count) == (SIZE, FRAMES)
    assert written.speed == pytest.approx(7.5)
    assert row["found"] == f"{FRAMES} frames"
    maps = sorted(os.listdir(row["files"][1]))
    assert maps == [f"{number:06d}.png" for number in range(FRAMES)]
    for number, name in enumerate(maps):
        square = np.array(Image.open(tmp_path / "out" / "film_labels" / name)) == 3
        assert square[14:22, 8 * number + 2 : 8 * number + 6].all()
        assert square.sum() < 16 * 16
    assert np.abs(read(written.path).astype(int) - read(film)).mean() > 5  # something is painted


def test_the_command_takes_videos_and_options_beside_images(film, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pixvox.weights, "load", lambda run: pointwise())
    Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20)).save(tmp_path / "inference.a=b.png")
    inputs = [str(film), str(tmp_path / "inference.a=b.png")]
    monkeypatch.chdir(tmp_path)
    options = ["inference.tile_size=[8,16]", "inference.tta.flips=[-1]", "inference.clean_up.min_area=4"]
    assert run(["predict", "run", *inputs, "inference.a=b.png", *options, "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert f"{FRAMES} frames" in printed
    assert sorted(path.name for path in (tmp_path / "out").glob("*_overlay*")) == [
        f"film_overlay{film.suffix}", "inference.a=b_2_overlay.png", "inference.a=b_overlay.png",
    ]  # fmt: skip
    assert run(["predict", "run", *inputs, "inference.tile_sise=8"]) == 2
    assert "did you mean inference.tile_size" in capsys.readouterr().err
    assert run(["predict", "run", "inference.tile_size=8"]) == 2
    assert "give the images" in capsys.readouterr().err


@pytest.fixture
def listening():
    """Let Ctrl-C be heard; a shell lets what it starts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_video_plays_up_to_the_last_frame(film, tmp_path, number, caplog):
    predictor = Predictor(pointwise())
    once, seen = predictor.predict_samples, []

    def stops_at_the_fourth(batch):
        seen.append(batch[0].source)
        if len(seen) == 4:
            os.kill(os.getpid(), number)
        return once(batch)

    predictor.predict_samples = stops_at_the_fourth
    with pytest.raises((KeyboardInterrupt, SystemExit)) as stopped, caplog.at_level(logging.WARNING):
        segment_video(predictor, film, tmp_path / "out", "film")
    assert number == signal.SIGINT or stopped.value.code == 143
    assert "holds the first 3 frames" in caplog.text
    assert len(read(tmp_path / "out" / f"film_overlay{film.suffix}")) == 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"film_overlay{film.suffix}"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    (tmp_path / "empty.avi").write_bytes(b"")
    for name in ("broken.mp4", "empty.avi"):
        with pytest.raises(DataError, match=f"{name} cannot be opened as a video"):
            segment_video(Predictor(pointwise()), tmp_path / name, tmp_path / "out", "film")
    assert not (tmp_path / "out").exists()


def test_a_cut_video_gives_what_can_be_decoded(tmp_path, caplog):
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, SIZE[::-1])
    noise = np.random.default_rng(0)
    for _ in range(FRAMES):
        writer.write(noise.integers(0, 255, (*SIZE, 3), dtype=np.uint8))
    writer.release()
    path.write_bytes(path.read_bytes()[: os.path.getsize(path) // 2])
    with caplog.at_level(logging.WARNING):
        segment_video(Predictor(pointwise()), path, tmp_path, "half")
    assert 1 <= len(read(tmp_path / "half_overlay.avi")) < FRAMES


def test_models_for_volumes_refuse_videos(film, tmp_path):
    with pytest.raises(DataError, match="segments volumes"):
        segment_video(Predictor(pointwise(3)), film, tmp_path, "film")
    assert torch.is_grad_enabled()
