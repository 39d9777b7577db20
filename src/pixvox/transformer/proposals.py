"""Two stages: every token proposes one box, and the best become queries."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pixvox.transformer.levels import Tokens

_EDGE = 0.01


@dataclass
class Proposals:
    """The best boxes that the tokens of each image propose, best first.

    Args:
        class_logits: Scores of each.
        boxes: Boxes ``(centre, sides)`` relative to the valid part of each image, with their gradient.
        memory: The projected token of each.
        indices: Which token it is.
    """

    class_logits: Float[Tensor, "batch proposals classes"]
    boxes: Float[Tensor, "batch proposals sides"]
    memory: Float[Tensor, "batch proposals channels"]
    indices: Int[Tensor, "batch proposals"]


class ProposalBranch(nn.Module):
    """Projects the tokens, scores them, and gives the boxes of the best.

    Appendix A.4 of "Deformable DETR" (Zhu et al., 2020, https://arxiv.org/abs/2010.04159). Who scores and who moves
    boxes is handed to ``forward``, for heads share these with their decoder or not. Padding, and tokens whose centre
    lies within 1 % of the border, come last.

    Args:
        channels: Channels of the tokens.
        strides: Strides of the levels, per axis in array order, finest first.
        side: Sides of the finest level's boxes before they are moved, as a share of the image; those of coarser
            levels grow with the stride, per axis.

    Example:
        >>> strides = [(8, 8), (16, 16)]
        >>> tokens = Tokens.of([torch.randn(1, 8, 4, 6), torch.randn(1, 8, 2, 3)], strides)
        >>> branch = ProposalBranch(8, strides)
        >>> proposals = branch(tokens, 5, classify=nn.Linear(8, 3), move=lambda memory, boxes: boxes)
        >>> tuple(proposals.class_logits.shape), tuple(proposals.boxes.shape)
        ((1, 5, 3), (1, 5, 4))
    """

    def __init__(self, channels: int, strides: Sequence[Sequence[int]], side: float = 0.05) -> None:
        super().__init__()
        self.sides = [
            [side * step / first for step, first in zip(stride, strides[0], strict=True)]
            for stride in strides
        ]
        self.projection = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(
        self,
        tokens: Tokens,
        number: int,
        classify: Callable[[Tensor], Tensor],
        move: Callable[[Tensor, Tensor], Tensor],
        score: Callable[[Tensor], Tensor] | None = None,
    ) -> Proposals:
        """Return the best proposals of each image, and all of them where there are fewer tokens.

        Args:
            tokens: What the encoder gives.
            number: Proposals per image.
            classify: Projected tokens to class logits.
            move: Projected tokens and their boxes to moved boxes; asked for the best ones alone.
            score: Class logits to what ranks the tokens; by default the largest logit.
        """
        boxes, inside = grid_boxes(tokens, self.sides)
        memory = self.norm(self.projection(tokens.values))
        class_logits = classify(memory)
        ranks = class_logits.detach()
        scores = ranks.amax(dim=-1) if score is None else score(ranks)
        scores = scores.float().masked_fill(~inside, float("-inf"))
        indices = scores.topk(min(number, scores.shape[1]), dim=1).indices
        best = _take(memory, indices)
        return Proposals(_take(class_logits, indices), move(best, _take(boxes, indices)), best, indices)


def grid_boxes(
    tokens: Tokens, sides: Sequence[Sequence[float]]
) -> tuple[Float[Tensor, "batch positions sides"], Bool[Tensor, "batch positions"]]:
    """Return a box round the centre of each token, and which of them lie inside their image.

    Args:
        tokens: Tokens of all levels.
        sides: Sides of the boxes of each level as shares of the valid part, per axis in array order; nothing is
            longer than 0.8.
    """
    centres = tokens.references()
    per_level = [
        centres.new_tensor(level[::-1]).clamp(max=0.8).expand(math.prod(shape), -1)
        for level, shape in zip(sides, tokens.shapes, strict=True)
    ]
    extents = torch.cat(per_level).expand(centres.shape[0], -1, -1)
    inside = ((centres > _EDGE) & (centres < 1 - _EDGE)).all(dim=-1)
    if tokens.padding is not None:
        inside = inside & ~tokens.padding
    return torch.cat([centres, extents], dim=-1), inside


def _take(values: Tensor, indices: Tensor) -> Tensor:
    """Return the values of some positions of each image."""
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[-1]))
