"""What `test_shards.py` starts in two processes: each base of a folder, whole and spread, has to be the same.

torchrun --nproc_per_node 2 -m tests.bases.spread FOLDER
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

import softprompt as sp
from softprompt.models.prompted import PromptedModel

TASK = sp.Task(template="{text}", labels=["a", "b"])
FREE = sp.Task(template="{text}", target="{answer}", max_new_tokens=4)
TEXTS = ["good", "not so good", "x"]


def gradients(base: sp.Base) -> list[Tensor]:
    """Of this process's own batch: the loss and the prompt's gradient, also with layers that are computed again."""
    found = []
    for again in (False, True):
        model = PromptedModel(base, [sp.SoftPrompt.random(base, 4, seed=0)], gradient_checkpointing=again)
        rank = dist.get_rank()
        ids = (torch.arange(20).view(2, 10) + 5 + rank) % 60
        loss = model(ids, labels=ids).loss
        loss.backward()
        found += [loss.detach(), model.prompts[0].grad]
    return found


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for path in sorted(folder.iterdir()):
        whole, spread = (sp.load_base(path, dtype="float32", mesh=one) for one in (None, mesh))
        assert spread.sharded, path
        assert spread.identity == whole.identity, path
        for name, weight in spread.model.named_parameters():
            full = whole.model.get_parameter(name)
            if isinstance(weight, DTensor):
                assert weight.to_local().numel() <= -(-full.shape[0] // 2) * full[0].numel(), (path, name)
                assert torch.equal(weight.full_tensor(), full), (path, name)
            else:
                assert torch.equal(weight, full), (path, name)
        kinds = [isinstance(weight, DTensor) for weight in spread.model.parameters()]
        assert sum(kinds) > len(kinds) / 2, path
        for one, other in zip(gradients(whole), gradients(spread), strict=True):
            torch.testing.assert_close(other, one, rtol=0, atol=1e-6, msg=str(path))  # T5 adds in another order
        prompt = sp.SoftPrompt.random(whole, 4, seed=0)
        for task in (TASK, FREE):
            assert sp.predict(spread, prompt, task, TEXTS) == sp.predict(whole, prompt, task, TEXTS), path
        sys.stdout.write(f"same {dist.get_rank()} {path.name}\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
