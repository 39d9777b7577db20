import torch

from pixvox.transformer.positions import SinePositionalEncoding, sine_of_boxes


def test_sine_encoding_equals_the_worked_formula():
    encoding = SinePositionalEncoding(2, 8)(torch.zeros(1, 1, 3, 5))
    y = torch.tensor(2.0) / (3 + 1e-6) * 2 * torch.pi  # second row
    x = torch.tensor(5.0) / (5 + 1e-6) * 2 * torch.pi  # last column
    expected = torch.stack([y.sin(), y.cos(), (y / 100).sin(), (y / 100).cos()])
    assert torch.allclose(encoding[0, :4, 1, 4], expected, atol=1e-5)
    assert torch.allclose(encoding[0, 4:6, 1, 4], torch.stack([x.sin(), x.cos()]), atol=1e-5)


def test_sine_encoding_of_a_volume_is_that_of_its_slices_plus_a_depth_term():
    plane = SinePositionalEncoding(2, 8)(torch.zeros(1, 1, 3, 5))
    volume = SinePositionalEncoding(3, 8)(torch.zeros(1, 1, 2, 3, 5))
    depth_term = volume - plane[:, :, None]
    assert torch.allclose(depth_term, depth_term[..., :1, :1].expand_as(depth_term), atol=1e-6)


def test_sine_encoding_scales_to_the_valid_part():
    x = torch.zeros(1, 1, 4, 6)
    padded = SinePositionalEncoding(2, 8)(x, torch.tensor([[3, 5]]))
    tight = SinePositionalEncoding(2, 8)(x[..., :3, :5])
    assert torch.allclose(padded[..., :3, :5], tight)


def test_sine_of_boxes_equals_the_worked_formula_block_by_block():
    encoding = sine_of_boxes(torch.tensor([[0.25, 0.5, 0.1]]), 4)
    assert encoding.shape == (1, 12)
    angle = torch.tensor(0.5) * 2 * torch.pi
    expected = torch.stack([angle.sin(), angle.cos(), (angle / 100).sin(), (angle / 100).cos()])
    assert torch.allclose(encoding[0, 4:8], expected, atol=1e-6)
