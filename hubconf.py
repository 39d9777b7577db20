"""Models for ``torch.hub``: ``torch.hub.load("OWNER/pixvox", "maskrcnn", backbone="resnet50", num_classes=3)``.

``torch.hub.list`` names what there is, ``torch.hub.help`` describes it. Nothing has to be installed but
``dependencies``.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "src"))

import torch

import pixvox
from pixvox.models import split_name as _split_name
from pixvox.weights.published import get_model as _get_model
from pixvox.weights.published import get_model_weights, get_weight  # noqa: F401 - entries, as torchvision's
from pixvox.weights.published import list_models as _list_models

dependencies = ["torch", "torchvision", "timm", "hydra", "omegaconf", "numpy", "jaxtyping"]


class _SemanticOutputs(torch.nn.Module):
    """A semantic model whose outputs are named as torchvision's: ``{"out": logits}``, and ``"aux"`` where it has them.

    Args:
        model: The model; its images are un-normalised, of shape ``(batch, channels, *spatial)``.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model
        model.head.gives_aux = True

    def forward(self, images):
        """Return the logits of the classes at the size of the images."""
        outputs = self.model(self.model.normalize(images))
        return {"out": outputs["logits"], **outputs.get("aux_logits", {})}


def load(path):
    """Load a model from a run folder, a file of weights, a folder of transformers or a Hugging Face id."""
    return pixvox.load(path)


def create_model(**options):
    """Build a model of any head and backbone; the options are those of ``pixvox.create_model``."""
    return pixvox.create_model(**options)


def _entry(name, semantic):
    classes = 21 if semantic else 1

    def build(backbone=None, num_classes=classes, pretrained=False, weights=None, aux_loss=False, **options):
        if weights is None:
            options |= {"backbone": backbone, "num_classes": num_classes, "pretrained": pretrained}
            options |= {"aux_level": -2} if aux_loss else {}
        model = _get_model(name, weights, **options)
        return _SemanticOutputs(model) if semantic else model

    what = "classes of pixels, given out as torchvision's models do" if semantic else "objects with masks"
    build.__name__ = name
    build.__doc__ = (
        f"Build {name}, which finds {what}.\n\n"
        "Args:\n"
        '    backbone: Its name, such as "resnet50", where the model is not named with one; pixvox.list_backbones() '
        "lists all.\n"
        "    num_classes: Classes of the data.\n"
        "    pretrained: Load published weights of the backbone, or those of a file at this path.\n"
        '    weights: Published ones of the whole model, such as "DEFAULT" (pixvox.weights.published lists them); the '
        "backbone and classes are then theirs.\n"
        "    aux_loss: A second classifier on the level before the coarsest learns too, for semantic models that can "
        "have one.\n"
        "    options: Further arguments of pixvox.create_model, such as spatial_dims=3.\n"
    )
    return build


_semantic = {*pixvox.list_heads(task="semantic")} - {*pixvox.list_heads(task="instance")}
for _name in _list_models():
    globals()[_name] = _entry(_name, _split_name(_name)[0] in _semantic)
