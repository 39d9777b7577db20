"""What deformable attention must show in a process of its own: ``python attention_process.py INPUTS OUTPUTS``.

Triton reads on import whether it interprets its kernels, and a graph stays whole only where no checker of types
is wrapped around the functions in it.
"""

import sys

import torch

from pixvox.ops import multi_scale_deformable_attention


def interpret(case):
    """Run the Triton backend on the CPU."""
    inputs = [tensor.requires_grad_() for tensor in case["inputs"]]
    output = multi_scale_deformable_attention(inputs[0], case["shapes"], *inputs[1:], "triton")
    return [output.detach(), *torch.autograd.grad(output, inputs, case["given"])]


def compile_whole(case):
    """Run the default backend as part of one compiled graph."""
    inputs = [tensor.detach().requires_grad_() for tensor in case["inputs"]]

    def attend(value, locations, attention):
        return multi_scale_deformable_attention(value * 1, case["shapes"], locations, attention)

    output = torch.compile(attend, backend="aot_eager", fullgraph=True)(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, case["given"])]


def main() -> None:
    cases = torch.load(sys.argv[1])
    results = {
        "triton": [interpret(case) for case in cases],
        "compiled": [compile_whole(case) for case in cases],
    }
    torch.save(results, sys.argv[2])


if __name__ == "__main__":
    main()
