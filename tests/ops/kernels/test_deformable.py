"""The compiled twins of deformable attention against the plain form, where they need a process of their own.

Triton's kernels run in its interpreter and are compiled for a GPU that is not here: their arithmetic is proven,
their speed is not.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pixvox.ops import multi_scale_deformable_attention

pytest.importorskip("triton", reason="triton is not installed: there is no build of it for this platform")

SHAPES = {2: [(3, 4), (1, 2)], 3: [(2, 3, 4), (1, 2, 1)]}


def _case(dims: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(dims)
    shapes = SHAPES[dims]
    value = torch.randn(1, sum(map(math.prod, shapes)), 2, 3, generator=generator)
    locations = torch.rand(1, 18, 2, 2, 1, dims, generator=generator) * 1.6 - 0.3  # 18: more than one block
    attention = torch.rand(1, 18, 2, 2, 1, generator=generator)
    given = torch.randn(1, 18, 6, generator=generator)
    return {"shapes": shapes, "inputs": [value, locations, attention], "given": given}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attention")
    torch.save([_case(2), _case(3)], folder / "inputs.pt")
    script = Path(__file__).with_name("attention_process.py")
    done = subprocess.run(
        [sys.executable, script, folder / "inputs.pt", folder / "outputs.pt"],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "outputs.pt")


@pytest.mark.parametrize("form", ["triton", "compiled"])
@pytest.mark.parametrize("dims", [2, 3])
def test_twins_equal_the_plain_form_in_value_and_gradients(results, dims, form):
    case = _case(dims)
    inputs = [tensor.requires_grad_() for tensor in case["inputs"]]
    expected = multi_scale_deformable_attention(inputs[0], case["shapes"], *inputs[1:], "gather")
    expected = [expected, *torch.autograd.grad(expected, inputs, case["given"])]
    for ours, plain in zip(results[form][dims - 2], expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", ["_weighted_sums", "_gradients"])
@pytest.mark.parametrize("dims", [2, 3])
def test_triton_makes_code_for_a_gpu_that_is_not_here(dims, kernel):
    from triton import compiler
    from triton.backends.compiler import GPUTarget

    from pixvox.ops.kernels import cuda

    sizes = {"heads": 2, "channels": 8, "channel_block": 8, "levels": 2, "points": 1, "dims": dims}
    constants = {**sizes, "query_block": 16}
    types = {"level_table": "*i32", "positions": "i32", "queries": "i32"}
    function = getattr(cuda, kernel)
    signature = {
        name: "constexpr" if name in constants else types.get(name, "*fp32") for name in function.arg_names
    }
    source = compiler.ASTSource(function, signature, constants)
    assert compiler.compile(source, target=GPUTarget("cuda", 80, 32)).asm["cubin"]


def test_the_operator_is_registered_as_torch_asks():
    from pixvox.ops.kernels.deformable import _operator

    case = _case(2)
    inputs = [tensor.double().requires_grad_() for tensor in case["inputs"]]
    torch.library.opcheck(_operator, (*inputs, [3, 4, 1, 2], "numba"))
