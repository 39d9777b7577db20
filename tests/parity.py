"""What comparisons with references share."""

import os

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def randomise(module, seed=0, wide=1.0):
    """Give every parameter, biases and norms too, a value that nothing can hide behind; return the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(module.named_parameters()):
            scale = 0.3 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
            centre = 1.0 if parameter.dim() == 1 and float(parameter.detach().mean()) == 1.0 else 0.0
            parameter.copy_(centre + torch.randn(parameter.shape, generator=generator) * scale * wide)
        for name, buffer in sorted(module.named_buffers()):
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.3)
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return module


def assert_near(value, wanted, relative=1e-5):
    """Compare tensors by the largest value of what is wanted."""
    value, wanted = value.detach(), wanted.detach()
    assert value.shape == wanted.shape, (value.shape, wanted.shape)
    error = float((value - wanted).abs().max()) / max(float(wanted.abs().max()), 1e-12)
    assert error <= relative, f"relative error {error:.2e} is above {relative:.0e}"
