"""Memory of whole-volume prediction follows the tile, not the volume: peaks of processes of their own."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import truth_predictor
from pixvox.data.volumes.ome_zarr import create_ome_zarr
from pixvox.inference.blocks import Blocks

TILE, SHORT, LONG = (64, 160, 160), (64, 320, 320), (64, 320, 1280)
THREADS = 2
SLACK = 32 * 2**20
"""What is allowed beside the arrays: chunks that are unpacked, tables, free room of the allocator."""

RUN = """
import resource, sys
from pathlib import Path
import torch
from pixvox.data.volumes.open import open_volume
from pixvox.inference import volume_prediction
from pixvox.inference.volume_prediction import BlockOptions, predict_volume
from pixvox.structures import Instances, Segmentation
from truth_predictor import TruthPredictor

class Slabs(TruthPredictor):
    def predict_samples(self, samples):
        size = samples[0].image.shape[1:]
        labels = torch.zeros(size, dtype=torch.int32)
        labels[: size[0] // 2], labels[size[0] // 2 + 4 :] = 1, 2
        return [Segmentation(Instances(masks=labels, scores=torch.ones(2)))]

def stop(*arguments):
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    sys.exit()

def predict(path, tile):
    options = BlockOptions(tile, threads=int(sys.argv[4]), page=False)
    predict_volume(Slabs(), open_volume(path), Path(sys.argv[3]), Path(path).name, options)

predict(sys.argv[1], (12, 12, 12))  # imports and compiles all there is
print("base", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
if sys.argv[5] == "find":
    volume_prediction.StitchedObjects.of = stop
predict(sys.argv[2], tuple(map(int, sys.argv[6:])))
stop()
"""


def growth(tmp_path, path, phase):
    """Return the bytes by which a process grows over what it needs for a volume of a few voxels."""
    small = tmp_path / "small.ome.zarr"
    create_ome_zarr(small, (16, 16, 16), np.uint16, (16, 16, 16), overwrite=True)[:] = 1
    here = str(Path(truth_predictor.__file__).parent)
    # Freed memory goes back at once: otherwise the peak is that of the allocator.
    environment = os.environ | {
        "PYTHONPATH": here, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1",
    }  # fmt: skip
    arguments = [small, path, tmp_path / "out", THREADS, phase, *TILE]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = dict(line.split() for line in done.stdout.splitlines())
    unit = 1 if sys.platform == "darwin" else 1024
    return (int(told["peak"]) - int(told["base"])) * unit


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "getrusage"), reason="peaks are not told here")
def test_memory_follows_the_tile(tmp_path):
    peaks = {}
    for size in (SHORT, LONG):
        path = tmp_path / f"{size[-1]}.ome.zarr"
        array = create_ome_zarr(path, size, np.uint16, (64, 64, 64))
        for start in range(0, size[-1], 320):
            array[..., start : start + 320] = start % 1000
        for phase in ("find", "write"):  # the second process goes on where the first one ended
            peaks[phase, size] = growth(tmp_path, path, phase)
    block = np.prod(Blocks(LONG, TILE).length)
    assert peaks["write", LONG] <= THREADS * block * (12 + 9) + SLACK, peaks
    for phase in ("find", "write"):
        assert peaks[phase, LONG] <= peaks[phase, SHORT] + SLACK // 2, peaks
