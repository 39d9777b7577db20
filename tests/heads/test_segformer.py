import torch
from transformers import SegformerConfig
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from parity import assert_near, randomise
from pixvox.heads.segformer import SegFormer
from semantic_cases import features


def test_equals_transformers_with_its_weights():
    config = SegformerConfig(hidden_sizes=[8, 12, 16, 24], decoder_hidden_size=10, num_labels=5)
    reference = randomise(SegformerDecodeHead(config)).eval()
    head = SegFormer((8, 12, 16, 24), [(s, s) for s in (4, 8, 16, 32)], 5, channels=10).eval()
    given = {}
    for key, value in reference.state_dict().items():
        name = key.replace("linear_projections.", "projections.").replace(".proj.", ".")
        name = name.replace("linear_fuse.", "fusion.0.").replace("batch_norm.", "fusion.1.")
        name = name.replace("classifier.", "classifier.1.")
        if name.startswith("projections.") and value.dim() == 2:
            value = value[..., None, None]
        if name == "fusion.0.weight":  # coarse to fine there
            value = torch.cat(value.split(10, dim=1)[::-1], dim=1)
        given[name] = value
    head.load_state_dict(given)
    case = features(size=(64, 96))
    with torch.no_grad():
        assert_near(head.scores(case, auxiliary=False)[0], reference(case.levels))
