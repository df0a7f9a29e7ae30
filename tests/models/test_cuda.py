"""What only a GPU can show: the kernel itself against the plain reference, and that a step asks the device for nothing.

The index work is proven without one, in `test_varlen.py` and `test_without_waiting.py`.
"""

from __future__ import annotations

import pytest
import torch

from softprompt.models import attention
from softprompt.models.attention import objection_to_device
from softprompt.models.packed import build_layout
from tests.models.based import with_prompts
from tests.models.batches import distance, make_example
from tests.models.families import make_model
from tests.models.varlen import Varlen

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
CUDA = torch.device("cuda")
FAMILIES = ["llama", "qwen2", "gpt2", "gemma", "mistral"]


def need(dtype: torch.dtype) -> None:
    if reason := objection_to_device(CUDA, dtype):
        pytest.skip(reason)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (8, 1)])
@pytest.mark.parametrize("width", [8, 64, 128])
def test_the_kernel_is_what_its_stand_in_says(dtype, heads, width):
    need(dtype)
    torch.manual_seed(0)
    layout = build_layout([3, 5, 1], [0, 1, 1, 2], [4, 1, 130, 1])
    layout.device = CUDA
    places = len(layout.positions)
    shapes = [(places, count, width) for count in (heads[0], heads[1], heads[1])]
    inputs = [torch.randn(shape, device=CUDA).to(dtype).requires_grad_() for shape in shapes]
    weight = torch.randn(shapes[0], device=CUDA)
    found = attention._varlen_attention(*inputs, layout.sequences, 0.3)
    grads = torch.autograd.grad((found * weight).sum(), inputs)
    wide = [one.detach().double().requires_grad_() for one in inputs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "varlen_kernel", Varlen)
        right = attention._varlen_attention(*wide, layout.sequences, 0.3)
    expected = torch.autograd.grad((right * weight).sum(), wide)
    assert distance([found], [right]) < 0.02
    for ours, theirs in zip(grads, expected, strict=True):
        assert distance([ours], [theirs]) < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_by_the_kernel_is_as_near_to_float64_as_the_concatenation(family, dtype):
    need(dtype)
    changes = {} if family in ("gpt2", "gemma") else {"head_dim": 8}
    changes |= {"sliding_window": 64} if family == "mistral" else {}
    model = make_model(family, dtype, **changes).to(CUDA)
    wide = make_model(family, dtype, **changes).double()
    found = []
    for seed in range(6):
        example = make_example([7, 1, 12, 3, 9, 14], [5, 8], [0, 1, 1, 0, 1, 1], seed=seed)
        right, row = example.reference(wide), []
        for route in ("packed", "concatenated"):
            prompts = [torch.nn.Parameter(p.to(CUDA, torch.float32)) for p in example.prompts]
            loss = with_prompts(model, prompts, route=route)(**example.batch).loss
            row.append(distance([g.cpu() for g in torch.autograd.grad(loss, prompts)], right.grads))
        found.append(row)
    ours, theirs = torch.tensor(found).square().mean(0).sqrt().tolist()
    assert ours <= 1.5 * theirs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_step_on_cuda_equals_the_cpus(dtype):
    example = make_example([7, 1, 12, 3], [5, 8], [0, 1, 1, 0])
    losses = []
    for device in (CUDA, torch.device("cpu")):
        model = make_model("llama", dtype, head_dim=8).to(device)
        prompts = [torch.nn.Parameter(p.to(device, torch.float32)) for p in example.prompts]
        losses.append(with_prompts(model, prompts)(**example.batch).loss.detach().cpu())
    assert distance(losses[:1], losses[1:]) < (0.05 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_step_waits_for_nothing(dtype):
    example = make_example([7, 1, 12, 3], [5, 8], [0, 1, 1, 0])
    model = make_model("llama", dtype, head_dim=8).to(CUDA)
    prompts = [torch.nn.Parameter(p.to(CUDA, torch.float32)) for p in example.prompts]
    prompted = with_prompts(model, prompts)
    optimiser = torch.optim.AdamW(prompts)

    def step() -> None:
        prompted(**example.batch).loss.backward()
        optimiser.step()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
