"""Feed mutated files and overrides to the readers: no crash, no hang, no excess of memory, only pixvox's own errors.

    python benchmarks/fuzz.py --cases 10000 --seed 0 --save fuzz_findings

Each case is made from (kind, seed, number) alone and runs in a worker process with a limit of memory and an alarm (of
its own CPU time, so that other work on the machine does no harm; one that sleeps is ended after two minutes), so that a
crash or a hang is caught, counted and saved. ``--only KIND --first N --cases 1`` repeats one case.
"""

import argparse
import contextlib
import json
import logging
import math
import multiprocessing
import random
import resource
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

SECONDS = 10
GIBIBYTES = 2.0
SHARES = {
    "coco": 0.4,
    "tiff": 0.2,
    "config": 0.1,
    "png": 0.06,
    "jpeg": 0.04,
    "zarr": 0.08,
    "npy": 0.06,
    "nifti": 0.06,
}
"""Kinds of input, and their share of the cases."""

NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    7,
    127,
    128,
    255,
    256,
    32767,
    65535,
    65536,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    10**30,
]
VALUES = [
    None, True, False, *NUMBERS, 0.5, -0.5, 1e9, -1e9, 1e300, math.nan, math.inf, -math.inf, "", "a", "\u0000", "../x",
    "1", [], [[]], [None], {}, {"id": 1}, [1, 2, 3], [[1, 2, 3, 4, 5, 6]], "9" * 50,
]  # fmt: skip


class Hang(BaseException):
    """The alarm of a case; not an Exception, so that no reader mistakes it for its own."""


# Mutations


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
    """Change, cut, insert or overwrite; beginnings, where headers are, are hit most."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        if not changed:
            break
        reach = len(changed) if draw.random() < 0.4 else min(len(changed), 256)
        place = draw.randrange(reach)
        kind = draw.randrange(7)
        if kind == 0:
            changed[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[place] = draw.randrange(256)
        elif kind == 2:
            size = draw.choice((1, 2, 4, 8))
            value = draw.choice(NUMBERS) % 2 ** (8 * size)
            changed[place : place + size] = value.to_bytes(size, draw.choice(("little", "big")))
        elif kind == 3:
            del changed[place:]
        elif kind == 4:
            del changed[place : place + draw.randrange(1, 20)]
        elif kind == 5:
            changed[place:place] = draw.randbytes(draw.randrange(1, 20))
        else:
            other = draw.randrange(len(changed))
            changed[place : place + 8] = changed[other : other + 8]
    return bytes(changed)


def mutate_tree(tree: object, draw: random.Random) -> object:
    """Replace, delete or double some nodes of a JSON tree."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            return tree
        parent, key = draw.choice(places)
        kind = draw.randrange(6)
        if kind <= 2:
            parent[key] = _deep(draw.choice(VALUES))
        elif kind == 3:
            del parent[key]
        elif kind == 4 and isinstance(parent, list):
            parent.insert(key, _deep(parent[key]))
        elif isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool):
            parent[key] = draw.choice((parent[key] + 1, -parent[key], parent[key] * 1e6, str(parent[key])))
        else:
            other, name = draw.choice(places)
            parent[key] = _deep(other[name])
    return tree


def _places(node: object):
    keys = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in list(keys):
        yield node, key
        yield from _places(node[key])


def _deep(value: object) -> object:
    return json.loads(json.dumps(value))


# Cases: each makes an input in a folder, then gives it to pixvox


def coco(folder: Path, draw: random.Random) -> None:
    from PIL import Image

    from pixvox.data.datasets.coco import CocoDataset

    counts = [40, 5, 19, 5, 699]
    tree = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 24, "width": 32} for i in (1, 2)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0, "bbox": [2, 2, 8, 8], "area": 64,
             "segmentation": [[2, 2, 10, 2, 10, 10, 2, 10]]},
            {"id": 2, "image_id": 1, "category_id": 7, "iscrowd": 1, "bbox": [1, 1, 2, 5], "area": 10,
             "segmentation": {"size": [24, 32], "counts": counts}},
            {"id": 3, "image_id": 2, "category_id": 7, "iscrowd": 0, "bbox": [4, 4, 9, 9], "area": 40,
             "segmentation": [[4, 4, 12.5, 4, 12, 12], [20, 3, 28, 3, 28.2, 9, 20, 9]]},
            {"id": 4, "image_id": 2, "category_id": 3, "iscrowd": 0, "bbox": [1, 1, 2, 5], "area": 10,
             "segmentation": {"size": [24, 32], "counts": _compressed(counts, (24, 32))}},
        ],
    }  # fmt: skip
    for i in (1, 2):
        Image.fromarray(np.full((24, 32), 9 * i, np.uint8)).save(folder / f"{i}.png")
    file = folder / "instances.json"
    if draw.random() < 0.8:
        file.write_text(json.dumps(mutate_tree(tree, draw)))
    else:
        file.write_bytes(mutate_bytes(json.dumps(tree).encode(), draw))
    dataset = CocoDataset(folder, file, on_invalid=draw.choice(("raise", "drop")))
    for index in range(len(dataset)):
        dataset[index].targets()


def _compressed(counts: list[int], size: tuple[int, int]) -> str:
    from pixvox.ops.masks import RLE
    from pixvox.structures import Masks

    text = Masks.from_rle([RLE(size=list(size), counts=counts)]).rle()[0]["counts"]
    return text if isinstance(text, str) else text.decode()


def tiff(folder: Path, draw: random.Random) -> None:
    import tifffile

    path = folder / "image.tif"
    grey, colour = _pattern((20, 24), np.uint8), _pattern((20, 24, 3), np.uint8)
    kind = draw.randrange(8)
    if kind == 0:
        tifffile.imwrite(path, grey)
    elif kind == 1:
        tifffile.imwrite(path, colour, photometric="rgb", compression="zlib")
    elif kind == 2:
        tifffile.imwrite(
            path, _pattern((5, 20, 24), np.uint16), imagej=True, metadata={"spacing": 2.0, "unit": "um"}
        )
    elif kind == 3:
        tifffile.imwrite(
            path, _pattern((64, 48), np.uint16), tile=(16, 16), compression="zlib", predictor=True
        )
    elif kind == 4:
        tifffile.imwrite(path, grey, bigtiff=True)
    elif kind == 5:
        tifffile.imwrite(path, _pattern((3, 2, 20, 24), np.float32), metadata={"axes": "ZCYX"}, ome=True)
    elif kind == 6:
        tifffile.imwrite(path, grey % 7, photometric="palette", colormap=_pattern((3, 256), np.uint16))
    else:
        tifffile.imwrite(path, _pattern((6, 20, 24), np.uint8), compression="zlib", byteorder=">")
    _mutate_file(path, draw)
    _read(path, draw)


def png(folder: Path, draw: random.Random) -> None:
    from PIL import Image

    shape, dtype = draw.choice(
        (((20, 24), np.uint8), ((20, 24), np.uint16), ((20, 24, 3), np.uint8), ((20, 24, 4), np.uint8))
    )
    picture = Image.fromarray(_pattern(shape, dtype))
    if len(shape) == 3 and draw.random() < 0.3:
        picture = picture.convert("P")
    picture.save(folder / "image.png")
    _mutate_file(folder / "image.png", draw)
    _read(folder / "image.png", draw)


def jpeg(folder: Path, draw: random.Random) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[274] = draw.randrange(1, 9)  # orientation
    Image.fromarray(_pattern((20, 24, 3), np.uint8)).save(folder / "image.jpg", exif=exif)
    _mutate_file(folder / "image.jpg", draw)
    _read(folder / "image.jpg", draw)


def npy(folder: Path, draw: random.Random) -> None:
    path = folder / "image.npy"
    dtype = draw.choice((np.uint8, np.uint16, np.int64, np.float32, np.complex64, bool))
    np.save(path, _pattern((4, 20, 24), np.uint8).astype(dtype))
    if draw.random() < 0.3:
        data = path.read_bytes()
        shape = f"({draw.choice(NUMBERS)}, {draw.choice(NUMBERS)}, {draw.choice(NUMBERS)})".encode()
        path.write_bytes(data.replace(b"(4, 20, 24)", shape.ljust(11)))
    else:
        _mutate_file(path, draw)
    _read(path, draw)


def nifti(folder: Path, draw: random.Random) -> None:
    import nibabel

    path = folder / draw.choice(("image.nii", "image.nii.gz"))
    image = nibabel.Nifti1Image(_pattern((6, 10, 12), np.int16), np.diag([0.5, 0.5, 2.0, 1.0]))
    if draw.random() < 0.3:
        image.header.set_slope_inter(2.0, 1.0)
    nibabel.save(image, path)
    if path.suffix == ".gz" and draw.random() < 0.5:  # mutate what is inside
        import gzip

        path.write_bytes(gzip.compress(mutate_bytes(gzip.decompress(path.read_bytes()), draw)))
    else:
        _mutate_file(path, draw)
    _read(path, draw)


def zarr(folder: Path, draw: random.Random) -> None:
    import zarr as library

    path = folder / "image.zarr"
    array = library.create_array(
        str(path), shape=(8, 20, 24), chunks=(4, 10, 24), dtype=draw.choice(("uint8", "uint16", "float32")),
        zarr_format=draw.choice((2, 3)), fill_value=0,
    )  # fmt: skip
    array[...] = _pattern((8, 20, 24), np.uint8)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    described = [file for file in files if file.name in ("zarr.json", ".zarray", ".zattrs")]
    chosen = draw.choice(described if draw.random() < 0.6 else files)
    if chosen in described and draw.random() < 0.7:
        chosen.write_text(json.dumps(mutate_tree(json.loads(chosen.read_text()), draw)))
    elif draw.random() < 0.2:
        chosen.unlink()
    else:
        _mutate_file(chosen, draw)
    _read(path, draw)


def config(folder: Path, draw: random.Random) -> None:
    from pixvox.configuration import compose, resolved

    known = [
        "head=fcn", "head=maskrcnn", "backbone=simple", "backbone=resnet18", "data=shapes", "data=nuclei3d",
        "transforms=fit", "image_size=64", "image_size=[32,48]", "batch_size=2", "learning_rate=1e-3", "epochs=3",
        "max_steps=10", "precision=bf16-mixed", "seed=1", "early_stopping.patience=3", "best_by=max:AP",
        "head.anchor_sizes=[[8],[16]]", "backbone.channels=[8,16]", "head.aspect_ratios=[0.5,1]", "auto=true",
        "optimizer.weight_decay=0.1", "trainer.gradient_clip_val=1", "transforms.train.steps.flip=null", "resume=null",
        "data.train.radius=[4,8]", "+head.norm=group", "~transforms.train.steps.blur", "scheduler.warmup=0.1",
    ]  # fmt: skip
    lines = draw.sample(known, draw.randrange(1, 4))
    place = draw.randrange(len(lines))
    key, _, value = lines[place].partition("=")
    kind = draw.randrange(5)
    if kind == 0:
        lines[place] = f"{key}={json.dumps(draw.choice(VALUES))}"
    elif kind == 1:
        text = mutate_bytes(lines[place].encode(), draw).decode("utf-8", "replace")
        lines[place] = text
    elif kind == 2:
        words = (
            "[",
            "]",
            "{",
            "}",
            "${",
            "${seed}",
            "${head}",
            "${oc.env:HOME}",
            ",",
            ":",
            "'",
            '"',
            "\\",
            "()",
            "a:b",
            "_target_",
        )
        lines[place] = f"{key}={''.join(draw.choice(words) for _ in range(draw.randrange(1, 6)))}"
    elif kind == 3:
        lines[place] = f"{key}.{draw.choice(('x', '0', '_target_', '', 'a.b', '${x}'))}={value}"
    else:
        (folder / "experiment").mkdir()
        text = "# @package _global_\nimage_size: 64\nhead:\n  num_proposals: [10, 20]\n"
        text += "backbone: {channels: [8, 16, 32, 64]}\n"
        (folder / "experiment" / "own.yaml").write_bytes(mutate_bytes(text.encode(), draw))
        lines.append("experiment=own")
    resolved(compose("train", lines, folder))


def _pattern(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return (np.arange(math.prod(shape)) * 37 % 251).reshape(shape).astype(dtype)


def _mutate_file(path: Path, draw: random.Random) -> None:
    path.write_bytes(mutate_bytes(path.read_bytes(), draw))


def _read(path: Path, draw: random.Random) -> None:
    from pixvox.data.images import read_image, read_labels

    reader = read_image if draw.random() < 0.7 else read_labels
    reader(path, spatial_dims=draw.choice((None, None, 2, 3)))


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "coco": coco, "tiff": tiff, "png": png, "jpeg": jpeg, "zarr": zarr, "npy": npy, "nifti": nifti, "config": config,
}  # fmt: skip


# Running


def run_case(kind: str, seed: int, number: int, folder: Path) -> tuple[str, str]:
    """Run one case in an empty folder; return the outcome, ``ok``, an error's name or a finding, and a message."""
    from pixvox.errors import PixvoxError

    folder.mkdir(parents=True, exist_ok=True)
    try:
        KINDS[kind](folder, random.Random(f"{kind}/{seed}/{number}"))
    except PixvoxError as error:
        causes = [error, error.__cause__, error.__context__]
        if any(isinstance(cause, MemoryError) for cause in causes):
            return "FINDING memory", str(error)
        return type(error).__name__, str(error)
    except Hang:
        return "FINDING hang", f"longer than {SECONDS} s"
    except MemoryError as error:
        return "FINDING memory", str(error)
    except Exception as error:
        import traceback

        return f"FINDING {type(error).__name__}", traceback.format_exc(limit=-4) + str(error)[:500]
    return "ok", ""


def work(kind: str, seed: int, numbers: range, root: str, results, current) -> None:
    """Run cases one after the other, in a process that may die of any of them."""
    import pixvox  # noqa: F401
    from pixvox.data.datasets.coco import CocoDataset  # noqa: F401  (imports are not part of a case)

    logging.disable(logging.CRITICAL)
    _warm_up(kind, seed, Path(root))
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = pages + int(GIBIBYTES * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGPROF, _ring)
    for number in numbers:
        current.value = number
        folder = Path(root) / f"{kind}_{number}"
        begun = time.monotonic()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        outcome, message = run_case(kind, seed, number, folder)
        signal.setitimer(signal.ITIMER_PROF, 0)
        results.put((number, outcome, message, time.monotonic() - begun))
        if not outcome.startswith("FINDING"):
            shutil.rmtree(folder, ignore_errors=True)


def _warm_up(kind: str, seed: int, root: Path) -> None:
    """Import whatever a case imports before memory is limited and time counts."""
    from pixvox.configuration import compose

    with contextlib.suppress(ValueError):
        compose("train", ["no_such_key=1"])  # looks at all parts for the nearest name
    for number in range(-3, 0):
        with contextlib.suppress(Exception):
            run_case(kind, seed, number, root / "warm_up")
        shutil.rmtree(root / "warm_up", ignore_errors=True)


def _ring(*_: object) -> None:
    raise Hang


def fuzz(
    kind: str, seed: int, first: int, cases: int, root: Path
) -> tuple[Counter, list[tuple[int, str, str]]]:
    """Run the cases of one kind; a worker that dies or hangs is counted and replaced."""
    context = multiprocessing.get_context("spawn")
    outcomes: Counter = Counter()
    findings = []
    next_number, end = first, first + cases
    while next_number < end:
        results, current = context.SimpleQueue(), context.Value("q", next_number)
        worker = context.Process(
            target=work, args=(kind, seed, range(next_number, end), str(root), results, current)
        )
        worker.start()
        done, heard = next_number, time.monotonic()
        while done < end and (worker.is_alive() or not results.empty()):
            if results.empty():
                time.sleep(0.01)
                if time.monotonic() - heard > 120 + SECONDS:  # the alarm was not heeded
                    worker.kill()
                    worker.join()
                continue
            number, outcome, message, _ = results.get()
            heard, done = time.monotonic(), number + 1
            outcomes[outcome] += 1
            if outcome.startswith("FINDING"):
                findings.append((number, outcome, message))
        worker.join(10)
        if done < end:
            code = worker.exitcode
            outcomes["FINDING crash"] += 1
            findings.append((current.value, "FINDING crash", f"the process ended with {code}"))
            done = current.value + 1
        next_number = done
    return outcomes, findings


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each kind")
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--save", type=Path, help="folder for the inputs of findings")
    arguments = parser.parse_args()
    shares = {arguments.only: 1.0} if arguments.only else SHARES
    print(f"seed {arguments.seed}, limits {SECONDS} s and {GIBIBYTES:g} GiB per case", flush=True)
    print("| kind | cases | ok | refused | findings | seconds |\n|---|---|---|---|---|---|", flush=True)
    total = Counter()
    listed = []
    for kind, share in shares.items():
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="pixvox_fuzz_") as name:
            root = Path(name)
            outcomes, findings = fuzz(
                kind, arguments.seed, arguments.first, round(arguments.cases * share), root
            )
            for number, _, _ in findings if arguments.save else ():
                shutil.copytree(
                    root / f"{kind}_{number}", arguments.save / f"{kind}_{number}", dirs_exist_ok=True
                )
        refused = sum(
            count for name, count in outcomes.items() if name.endswith("Error") and "FINDING" not in name
        )
        row = {
            "cases": sum(outcomes.values()),
            "ok": outcomes["ok"],
            "refused": refused,
            "findings": len(findings),
        }
        total.update(row)
        print(
            f"| {kind} | {' | '.join(map(str, row.values()))} | {time.monotonic() - begun:.0f} |", flush=True
        )
        listed += [(kind, *finding) for finding in findings]
    print(f"| all | {' | '.join(str(total[name]) for name in ('cases', 'ok', 'refused', 'findings'))} | |")
    for kind, number, outcome, message in listed:
        print(f"\n{kind} {number}: {outcome}\n{message}")
    raise SystemExit(1 if listed else 0)


if __name__ == "__main__":
    main()
