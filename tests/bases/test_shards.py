"""A base whose layers are spread over two processes computes what the whole one computes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from softprompt.bases import shards
from softprompt.errors import SoftPromptError
from tests.bases.test_checkpoint import WEIGHTS, llama_config, save
from tests.bases.test_load import write_gguf
from tests.conftest import make_tokenizer
from tests.models.families import make_model

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_spread_base_is_the_whole_one(tmp_path: Path) -> None:
    """Tied and scaled embeddings, experts that the class fuses, an odd number of rows, an encoder-decoder.

    Where the files are not sure, or are GGUF, each process reads all first.
    """
    for family in ("llama", "gpt2", "gemma3", "gpt_oss", "mamba"):
        save(make_model(family, vocab_size=258), tmp_path / family)
    t5 = T5Config(vocab_size=258, d_model=16, d_kv=5, d_ff=24, num_layers=2, num_heads=3, decoder_start_token_id=1)
    save(T5ForConditionalGeneration(t5), tmp_path / "t5")
    unsure = save(make_model("qwen2", vocab_size=258), tmp_path / "unsure")
    (unsure / WEIGHTS).rename(unsure / "other.safetensors")
    config = (unsure / "config.json").read_text().rstrip().removesuffix("}")
    (unsure / "config.json").write_text(config + ', "transformers_weights": "other.safetensors"}')
    write_gguf(tmp_path / "tiny.gguf", make_llama(), make_tokenizer())
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"),
            *("-m", "tests.bases.spread", str(tmp_path)),
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    bases = ("gemma3", "gpt2", "gpt_oss", "llama", "mamba", "t5", "tiny.gguf", "unsure")
    assert sorted(done.stdout.splitlines()) == [f"same {rank} {name}" for rank in (0, 1) for name in bases]
    read = [line.partition("base ")[2] for line in done.stderr.splitlines() if "reads all its weights" in line]
    assert {line.partition(":")[0].strip("'").rpartition("/")[2] for line in read} == {"tiny.gguf", "unsure"}


def make_llama() -> nn.Module:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(llama_config())


def test_what_has_no_layers_is_refused() -> None:
    model = make_model("llama")
    model.model.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    with pytest.raises(SoftPromptError, match="LlamaForCausalLM can't be spread over processes: it names no layers"):
        shards.shard(model, None, None)
    model = make_model("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    with pytest.raises(SoftPromptError, match="its layers share weights"):
        shards.shard(model, None, None)
