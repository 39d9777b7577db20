"""Peak memory of a 3-D training step, of a thousand instances and of a thousand queries; what one more query keeps.

    python benchmarks/memory.py [--json PATH]

Each case runs in a process of its own; the figure is the growth of its peak resident memory over what it had after
building model and data. What a query keeps is counted, not measured: the bytes of all tensors that the forward pass and
the loss of a head save for the backward pass, with 600 queries less with 300, for its default options in float32.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MIB = 2**20


def forget_peak() -> float:
    """Start a new peak (Linux only) and return the resident memory now, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def peak_mib() -> float:
    """Return the peak resident memory of this process in MiB."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


def segmenter(overrides: list[str]) -> Any:
    """Return a new model that these overrides describe."""
    import torch
    from omegaconf import OmegaConf

    from pixvox.configuration import compose
    from pixvox.segmenter import PARTS, Segmenter

    torch.manual_seed(0)
    config = compose("train", overrides)
    return Segmenter.from_config({part: OmegaConf.to_container(config[part], resolve=True) for part in PARTS})


def training_step() -> dict[str, float]:
    """One forward, backward and optimiser step on a volume of 64 x 128 x 128 with 60 nuclei."""
    import torch

    from pixvox.data.synthetic.nuclei3d import Nuclei3d

    overrides = ["experiment=embryos", "data=nuclei3d", "spatial_dims=3", "in_channels=1", "num_classes=1"]
    model = segmenter(overrides).train().to(memory_format=torch.channels_last_3d)
    sample = Nuclei3d(num_images=1, image_size=(64, 128, 128), count=(60, 60), radius=(4.0, 6.0))[0]
    targets = [sample.targets()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    before, start = forget_peak(), time.process_time()
    with torch.autocast("cpu", torch.bfloat16):
        images = model.normalize(sample.image[None]).contiguous(memory_format=torch.channels_last_3d)
        losses = model.loss(images, targets)
    sum(losses.values()).backward()
    optimizer.step()
    return {
        "instances": len(targets[0]),
        "peak_growth_mib": peak_mib() - before,
        "cpu_seconds": time.process_time() - start,
        "canvases_mib": len(targets[0]) * sample.image.numel() / MIB,
    }


def thousand_instances() -> dict[str, float]:
    """Predict an image of 2048 x 2048 with 1,000 instances, then make label map and run lengths of them."""
    import torch

    from pixvox.models import create_model
    from pixvox.structures import Geometry

    size, count = (2048, 2048), 1000
    torch.manual_seed(0)
    model = create_model(
        "maskrcnn", "simple", in_channels=1, backbone__channels=[16, 32, 64], backbone__strides=[4, 8, 16],
        neck__out_channels=32, box_features=64, mask_channels=32, score_threshold=0.0, nms_threshold=1.0,
        num_candidates=[count, count], num_proposals=[count, count], rpn_nms_threshold=1.0, detections_per_image=count,
    ).eval()  # fmt: skip
    images = torch.rand(1, 1, *size)
    start, before = time.process_time(), forget_peak()
    with torch.inference_mode():
        outputs = model(images)
        network = peak_mib() - before
        before = forget_peak()
        (result,) = model.postprocess(outputs, [Geometry.identity(size)])
        result.label_map()
        result.to_coco()
    return {
        "instances": len(result.instances),
        "network_peak_growth_mib": network,
        "results_peak_growth_mib": peak_mib() - before,
        "cpu_seconds": time.process_time() - start,
        "canvases_mib": len(result.instances) * size[0] * size[1] / MIB,
    }


def thousand_queries() -> dict[str, float]:
    """Match, learn from and read off 1,000 queries for 1,000 objects in an image of 512 x 512, network aside."""
    import scipy.optimize  # noqa: F401
    import torch

    from pixvox.heads.query_predictions import QueryMasks, QueryPrediction
    from pixvox.masks import Masks
    from pixvox.models import create_model
    from pixvox.structures import Features, Geometry, Instances

    size, grid, count, channels = (512, 512), (128, 128), 1000, 256
    head = create_model("mask2former", "simple", in_channels=1, num_classes=1, num_points=None).head
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, size[0] - 12, (count, 2), generator=generator)
    truth = Instances(masks=Masks.from_crops([torch.ones(12, 12)] * count, corners, size))
    centres = (corners + 6) / 4 - 0.5  # in cells
    rows, columns = torch.meshgrid(*(torch.arange(float(n)) for n in grid), indexing="ij")
    pixels = torch.zeros(1, channels, *grid)
    pixels[0, :4] = torch.stack([torch.ones(grid), rows, columns, rows**2 + columns**2])
    embeddings = torch.zeros(1, count, channels)  # of discs around the objects' centres
    embeddings[0, :, 0], embeddings[0, :, 1:3] = 4 - centres.square().sum(dim=1), 2 * centres
    embeddings[0, :, 3] = -1
    masks = QueryMasks(embeddings.requires_grad_(), pixels.requires_grad_())
    prediction = QueryPrediction(torch.ones(1, count, 2).requires_grad_(), masks=masks)
    features = Features((), (), torch.zeros(1, 1, *size), size, torch.tensor([size]))
    outputs = head.train().outputs(features, [prediction], targets=[truth])
    start, before = time.process_time(), forget_peak()
    (result,) = head.postprocess(outputs, [Geometry.identity(size)])
    results = peak_mib() - before
    before = forget_peak()
    sum(head.loss(outputs, [truth]).values()).backward()
    return {
        "instances": len(result.instances),
        "results_peak_growth_mib": results,
        "loss_peak_growth_mib": peak_mib() - before,
        "cpu_seconds": time.process_time() - start,
        "canvases_mib": count * size[0] * size[1] / MIB,
    }


def one_query() -> dict[str, float]:
    """Count the KiB that a query keeps from the forward to the backward pass of each head, with 100 objects."""
    import torch
    from torch.autograd.graph import saved_tensors_hooks

    from pixvox.structures import Instances

    size = (256, 256)
    label_map = torch.zeros(size, dtype=torch.int64)
    for i in range(100):
        row, column = divmod(i, 10)
        label_map[row * 25 : row * 25 + 12, column * 25 : column * 25 + 12] = i + 1
    images, targets = torch.rand(1, 1, *size), [Instances(masks=label_map)]

    def kept(overrides: list[str], queries: int) -> int:
        model = segmenter([*overrides, f"head.num_queries={queries}", "head.num_points=4096"]).train()
        storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is given out twice

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            sum(model.loss(images, targets).values())
        return sum(storage.nbytes() for storage in storages.values())

    heads = ("deformable_detr", "lw_detr", "mask2former", "maskdino", "hybrid")
    cases = {head: [f"head={head}", "backbone=simple"] for head in heads}
    cases["nuclei_dense"] = ["experiment=nuclei_dense"]
    given = ["spatial_dims=2", "in_channels=1", "num_classes=1"]
    return {
        f"{name}_kib": (kept(overrides + given, 600) - kept(overrides + given, 300)) / 300 / 1024
        for name, overrides in cases.items()
    }


CASES = {
    "3-D training step": training_step,
    "2-D prediction": thousand_instances,
    "1,000 queries": thousand_queries,
    "one query": one_query,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(CASES[arguments.case]()))
        return
    figures = {}
    for case in CASES:
        run = subprocess.run(
            [sys.executable, __file__, "--case", case], stdout=subprocess.PIPE, text=True, check=True
        )
        figures[case] = json.loads(run.stdout.splitlines()[-1])
        shown = ", ".join(f"{name} {value:,.1f}" for name, value in figures[case].items())
        print(f"{case}: {shown}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
