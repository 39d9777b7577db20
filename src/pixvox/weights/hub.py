"""Models of the Hugging Face hub by their id."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from pixvox.errors import WeightsError

log = logging.getLogger("pixvox")

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_ENDINGS = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")

_SAFE = ["config.json", "*.safetensors", "*.safetensors.index.json"]


def is_hub_id(path: str | Path) -> bool:
    """Tell whether a text is an id of the hub: ``owner/name``, and no path.

    What lies, or would lie, in a folder that exists is a path, and so is what would lie in ``runs``: a run that is
    mistyped is not looked for on the network.

    Example:
        >>> is_hub_id("facebook/mask2former-swin-small-coco-instance")
        True
        >>> is_hub_id("runs/lats"), is_hub_id("./model"), is_hub_id("models/best.ckpt")
        (False, False, False)
    """
    text = str(path)
    if not _ID.fullmatch(text) or text.endswith(_ENDINGS):
        return False
    owner = text.partition("/")[0]
    return owner != "runs" and not Path(owner).exists()


def fetch_model(name: str) -> Path:
    """Return the folder of a hub's model: that of the cache where it is complete, else fetched once.

    Safetensors are preferred; a ``pytorch_model.bin`` is fetched where there are none. Both are checked against the
    sums that the hub tells, by huggingface_hub.

    Args:
        name: ``owner/name``.

    Raises:
        WeightsError: If it is neither in the cache nor can be fetched; the message says where it was looked for.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        kept = Path(snapshot_download(name, local_files_only=True))
        if _is_complete(kept):
            return kept
    except (OSError, ValueError):
        pass
    log.info("fetching %s from the Hugging Face hub", name)
    try:
        folder = Path(snapshot_download(name, allow_patterns=_SAFE))
        if not _is_complete(folder):
            folder = Path(snapshot_download(name, allow_patterns=["config.json", "pytorch_model.bin"]))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{name}: there is no such run folder or file, no such model in {HF_HUB_CACHE}, and none could be fetched "
            f"from the Hugging Face hub ({type(error).__name__}); without network, copy the model's folder "
            "(config.json and model.safetensors) to this machine and give its path"
        ) from error
    return folder


def _is_complete(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (
        any(folder.glob("*.safetensors")) or (folder / "pytorch_model.bin").is_file()
    )
