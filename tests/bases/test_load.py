from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlamaTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from softprompt.bases import load as base_module
from softprompt.bases import sources
from softprompt.bases.base import Base, suppressed_ids
from softprompt.bases.load import load_base
from softprompt.bases.machine import fast_dtype
from softprompt.errors import SoftPromptError
from tests.conftest import make_base

SHAPE = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "gpt2": GPT2Config(
        vocab_size=258,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "gemma2": Gemma2Config(**SHAPE),
    "gemma3": Gemma3TextConfig(**SHAPE),
}
IDS = torch.tensor([[5, 77, 8, 200, 31, 9]])


def build(family: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    capped = {"attn_implementation": "eager"} if family == "gemma2" else {}  # SDPA would leave out its capping
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[family], **capped).eval()


@pytest.fixture
def save(tmp_path, tiny_tokenizer):
    """Save a model with the tiny tokenizer into a new folder."""

    def save_model(model: PreTrainedModel, name: str = "model") -> Path:
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save_model


@pytest.fixture
def folder(save) -> Path:
    return save(build("llama"))


def refusal(name: str | Path, **options) -> str:
    """The one line with which a base is refused; it names the base."""
    with pytest.raises(SoftPromptError) as caught:
        load_base(name, **options)
    assert str(name) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestLoading:
    @pytest.mark.parametrize("family", CONFIGS)
    def test_a_folder_gives_the_model_as_it_was_saved_and_frozen(self, save, family):
        model = build(family)
        base = load_base(save(model), dtype="float32", device="cpu")
        assert torch.equal(base.model(IDS).logits, model(IDS).logits)
        assert not base.model.training
        assert not any(parameter.requires_grad for parameter in base.model.parameters())
        assert (base.hidden_size, base.vocab_size, base.embedding_count, base.max_positions) == (32, 258, 258, 256)
        assert (base.device, base.dtype) == (torch.device("cpu"), torch.float32)
        assert base.tokenizer.decode(base.tokenizer("hallo").input_ids) == "hallo"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("family", CONFIGS)
    def test_embeddings_are_what_the_model_computes_with(self, save, family, dtype):
        base = load_base(save(build(family)), dtype=dtype)
        embeddings = base.embed(IDS)
        assert embeddings.dtype == torch.float32
        assert embeddings.shape == (1, 6, 32)
        assert not embeddings.requires_grad
        assert base.embed(IDS[0]).shape == (6, 32)
        given = base.model(inputs_embeds=embeddings.to(dtype)).logits
        assert torch.equal(given, base.model(IDS).logits)

    def test_scaled_embeddings_are_not_rows_of_the_table(self, save):
        base = load_base(save(build("gemma3")), dtype="float32")
        rows = base.model.get_input_embeddings().weight[IDS]
        torch.testing.assert_close(base.embed(IDS), rows * 32**0.5)

    def test_capped_scores_are_capped(self, save):
        model = build("gemma2")
        model.config.attn_logit_softcapping = 0.01  # low enough that it decides the answer
        for layer in model.model.layers:
            layer.self_attn.attn_logit_softcapping = 0.01
        base = load_base(save(model), dtype="float32")
        torch.testing.assert_close(base.model(IDS).logits, model(IDS).logits)
        for layer in model.model.layers:
            layer.self_attn.attn_logit_softcapping = None
        assert (base.model(IDS).logits - model(IDS).logits).abs().max() > 1e-4

    def test_a_padded_table_has_more_rows_than_the_configuration_states(self):
        base = make_base()
        base.model.model.embed_tokens = torch.nn.Embedding(320, 32)
        assert (base.embedding_count, base.vocab_size) == (320, 258)

    def test_the_context_may_be_unlimited(self, tiny_tokenizer):
        model = BloomForCausalLM(BloomConfig(vocab_size=258, hidden_size=32, n_layer=1, n_head=2))
        assert Base(model, tiny_tokenizer, "bloom").max_positions is None

    @pytest.mark.parametrize(
        ("stated", "ends"), [(None, {0}), (5, {0, 5}), ([5, 0, 7], {0, 5, 7}), ([-1, 5, 258, 99999], {0, 5})]
    )
    def test_the_ends_are_those_of_tokenizer_and_generation_config(self, folder, stated, ends):
        file = folder / "generation_config.json"
        config = json.loads(file.read_text())
        file.write_text(json.dumps(config | {"eos_token_id": stated, "suppress_tokens": [*ends, -1]}))
        base = load_base(folder)
        assert base.end_ids == ends
        assert suppressed_ids(base.model) == ends

    def test_a_base_may_have_no_end(self, tiny_base):
        tiny_base.tokenizer.eos_token = None
        tiny_base.model.generation_config.eos_token_id = None
        assert tiny_base.end_ids == frozenset()

    def test_nothing_is_printed(self, folder, capfd):
        load_base(folder)
        assert capfd.readouterr() == ("", "")

    def test_logging_is_as_it_was(self, folder):
        before = transformers.utils.logging.get_verbosity()
        load_base(folder)
        refusal("no/such/base")
        assert transformers.utils.logging.get_verbosity() == before

    def test_a_home_folder_is_found(self, folder, monkeypatch):
        monkeypatch.setenv("HOME", str(folder.parent))
        assert load_base("~/model").name == "~/model"

    @pytest.mark.parametrize("shards", ["50KB", "10GB"])
    def test_weights_may_be_in_several_files(self, tmp_path, tiny_tokenizer, shards):
        model = build("llama")
        model.save_pretrained(tmp_path / "model", max_shard_size=shards)
        tiny_tokenizer.save_pretrained(tmp_path / "model")
        base = load_base(tmp_path / "model", dtype="float32")
        assert torch.equal(base.model(IDS).logits, model(IDS).logits)


class TestDtypeAndDevice:
    @pytest.mark.parametrize(
        ("dtype", "loaded"),
        [
            ("float32", torch.float32),
            ("bfloat16", torch.bfloat16),
            ("float16", torch.float16),
            (torch.float64, torch.float64),
        ],
    )
    def test_it_is_as_asked(self, folder, dtype, loaded):
        base = load_base(folder, dtype=dtype)
        assert base.dtype == loaded
        assert {parameter.dtype for parameter in base.model.parameters()} == {loaded}

    @pytest.mark.parametrize("dtype", ["float", "int8", "", torch.int8, 32, None])
    def test_another_is_refused(self, folder, dtype):
        with pytest.raises(SoftPromptError, match=r"dtype '.*' is not one for weights: use 'auto'"):
            load_base(folder, dtype=dtype)

    @pytest.mark.parametrize("loaded", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
    def test_auto_is_what_the_cpu_has_instructions_for(self, folder, monkeypatch, caplog, machine, loaded):
        monkeypatch.delenv("SOFTPROMPT_DTYPE", raising=False)
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        has, lacks = (lambda: loaded == torch.bfloat16), (lambda: loaded != torch.bfloat16)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", has if machine == "x86_64" else lacks)
        # Of x86 oneDNN says yes where it emulates.
        fake = SimpleNamespace(_is_mkldnn_bf16_supported=lacks if machine == "x86_64" else has)
        monkeypatch.setattr(torch.ops, "mkldnn", fake)
        with caplog.at_level("INFO", logger="softprompt"):
            assert load_base(folder, device="cpu").dtype == loaded
        assert caplog.messages == [f"dtype auto is {str(loaded)[6:]}, as fits this machine's cpu"]

    def test_auto_needs_onednn_and_is_float32_on_mps(self, monkeypatch):
        monkeypatch.delenv("SOFTPROMPT_DTYPE", raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert fast_dtype(torch.device("cpu")) == fast_dtype(torch.device("mps")) == torch.float32

    def test_bfloat16_that_is_emulated_is_said_to_be_slow(self, folder, monkeypatch, caplog):
        monkeypatch.setattr("softprompt.bases.machine._has_bfloat16", lambda device: False)
        with caplog.at_level("WARNING", logger="softprompt"):
            assert load_base(folder, dtype="float32", device="cpu").dtype == torch.float32
            assert caplog.messages == []
            assert load_base(folder, dtype="bfloat16", device="cpu").dtype == torch.bfloat16
        (line,) = caplog.messages
        assert re.fullmatch(r"bfloat16 is emulated on this cpu: a product takes [\d.]+ times as long as .*", line)

    @pytest.mark.parametrize("name", ["float32", "bfloat16"])
    def test_a_variable_says_what_auto_is(self, folder, monkeypatch, caplog, name):
        monkeypatch.setattr("softprompt.bases.machine._has_bfloat16", lambda device: True)
        monkeypatch.setenv("SOFTPROMPT_DTYPE", name)
        with caplog.at_level("INFO", logger="softprompt"):
            assert load_base(folder).dtype == getattr(torch, name)
            assert load_base(folder, dtype="float16").dtype == torch.float16
        assert caplog.messages == [f"dtype auto is {name}, as SOFTPROMPT_DTYPE says"]

    def test_a_variable_that_says_something_else_is_refused(self, folder, monkeypatch):
        monkeypatch.setenv("SOFTPROMPT_DTYPE", "fp16")
        with pytest.raises(SoftPromptError, match="SOFTPROMPT_DTYPE is 'fp16': set it to float32 or bfloat16"):
            load_base(folder)

    @pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", ""])
    def test_a_device_that_is_not_here_is_refused(self, folder, device):
        with pytest.raises(SoftPromptError, match=rf"device '{device}' cannot be used: .*'auto'"):
            load_base(folder, device=device)


class TestIdentity:
    @pytest.mark.parametrize("family", CONFIGS)
    def test_a_copy_in_another_dtype_is_the_same_base(self, save, family):
        folder = save(build(family))
        first = load_base(folder, dtype="float32")
        first.model.save_pretrained(folder.parent / "copy")
        first.tokenizer.save_pretrained(folder.parent / "copy")
        second = load_base(folder.parent / "copy", dtype="bfloat16")
        assert second.identity == first.identity.model_copy(update={"name": str(folder.parent / "copy")})
        assert first.identity.architecture == type(first.model).__name__
        assert len(first.identity.fingerprint) == 64

    def test_it_is_computed_once(self, tiny_base):
        assert tiny_base.identity is tiny_base.identity

    def test_padding_and_truncation_do_not_count(self):
        used = make_base()
        used.tokenizer(["a", "longer"], padding=True, truncation=True, max_length=4)
        used.tokenizer.padding_side = "left"
        assert used.identity == make_base().identity

    @pytest.mark.parametrize(
        "change",
        [
            lambda base: base.model.model.layers[1].mlp.up_proj.weight.neg_(),
            lambda base: base.model.model.norm.weight.add_(1),
            lambda base: base.tokenizer.add_tokens(["new"]),
            lambda base: setattr(base.tokenizer, "eos_token", "<pad>"),
            lambda base: setattr(
                base.tokenizer.backend_tokenizer, "pre_tokenizer", pre_tokenizers.Split("a", "removed")
            ),
        ],
        ids=["weights", "norm", "vocabulary", "eos", "splitting"],
    )
    def test_a_change_counts(self, change):
        changed = make_base()
        change(changed)
        assert changed.identity.fingerprint != make_base().identity.fingerprint

    def test_merges_count(self):
        def with_merges(merges: list[tuple[str, str]]) -> Base:
            vocabulary = {symbol: i for i, symbol in enumerate(["<eos>", "x", "y", "z", "xy", "yz"])}
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=merges)), eos_token="<eos>"
            )
            return Base(make_base().model, tokenizer, "tiny")

        merges = [("x", "y"), ("y", "z")]
        assert with_merges(merges).identity == with_merges(merges).identity
        assert with_merges(merges).identity != with_merges(merges[::-1]).identity

    @pytest.mark.parametrize("kind", ["sentencepiece-like", "word-level", "unigram"])
    def test_any_tokenizer_is_stable_when_saved_and_loaded(self, tmp_path, tiny_base, kind):
        if kind == "sentencepiece-like":
            symbols = ["<unk>", "<s>", "</s>", "▁", "t", "h", "e", "th", "the", "▁the"]
            merges = [("t", "h"), ("th", "e"), ("▁", "the")]
            tokenizer = LlamaTokenizer(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=merges)
        elif kind == "word-level":
            model = models.WordLevel({"<unk>": 0, "the": 1, "plan": 2}, unk_token="<unk>")
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>")
        else:
            model = models.Unigram([("<unk>", 0.0), ("the", -1.25), ("t", -3.1), ("h", -2.0), ("e", -2.5)], unk_id=0)
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>")
        tokenizer.save_pretrained(tmp_path)
        loaded = type(tokenizer).from_pretrained(tmp_path)
        assert Base(tiny_base.model, tokenizer, "a").identity == Base(tiny_base.model, loaded, "a").identity


class TestRefusals:
    def test_a_folder_without_a_model(self, tmp_path):
        assert "without a config.json" in refusal(tmp_path)

    def test_an_adapter(self, folder):
        (folder / "adapter_config.json").write_text("{}")
        assert "adapter" in refusal(folder)

    def test_pickles(self, folder):
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")
        assert "pickles" in refusal(folder)

    def test_truncated_weights(self, folder):
        file = folder / "model.safetensors"
        os.truncate(file, file.stat().st_size // 2)
        assert "cannot be loaded: SafetensorError" in refusal(folder)

    def test_missing_weights(self, folder):
        weights = load_file(folder / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        assert "lacks weights, such as model.layers.1.mlp.up_proj.weight" in refusal(folder)

    @pytest.mark.parametrize(
        ("family", "stated"),
        [("gemma", True), ("gemma2", True), ("gemma3", True), ("gemma4", "all"), ("llama", None), ("qwen2", None)],
    )
    def test_attention_to_what_follows(self, tmp_path, family, stated):
        folder, kinds = tmp_path / family, {"gemma3": "gemma3_text", "gemma4": "gemma4_text"}
        how = {"is_causal": False} if stated is None else {"use_bidirectional_attention": stated}
        config = transformers.AutoConfig.for_model(kinds.get(family, family), **how)
        config.save_pretrained(folder)
        save_file({"a": torch.ones(1)}, folder / "model.safetensors")
        assert "looks at what follows a token" in refusal(folder)

    def test_weights_of_another_shape(self, folder):
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"] = torch.ones(16)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        assert "cannot be loaded" in refusal(folder)

    def test_a_broken_configuration(self, folder):
        (folder / "config.json").write_text("{")
        assert "cannot be loaded" in refusal(folder)

    @pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
    @pytest.mark.parametrize("stated", [None, "LlamaTokenizer", "GPT2Tokenizer", "GemmaTokenizer", "Qwen2Tokenizer"])
    def test_a_missing_tokenizer(self, save, family, stated):
        """Transformers makes an empty one for some classes, which reads nothing."""
        folder = save(build(family), family)
        for file in folder.glob("tokenizer*"):
            file.unlink()
        if stated is not None:
            (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": stated}))
        assert "has no tokenizer that can be read: put its tokenizer.json" in refusal(folder)

    def test_an_encoder(self, save):
        config = BertConfig(
            vocab_size=258, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
        )
        base = load_base(save(BertForMaskedLM(config)), dtype="float32")
        assert (base.family.task_type, base.hidden_size) == ("FEATURE_EXTRACTION", 8)

    def test_a_model_that_writes_nothing(self, folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "vit", "architectures": ["ViTModel"]}))
        assert "(vit) is not a causal language model" in refusal(folder)

    def test_a_file_that_is_no_model(self, tmp_path):
        (tmp_path / "notes.txt").write_text("")
        assert "neither a folder nor a .gguf file" in refusal(tmp_path / "notes.txt")

    @pytest.mark.parametrize("name", ["/no/such/folder", "a/b/c", "no such base", "../up", "~nobody/x", "x" * 5000])
    def test_a_name_that_the_hub_cannot_have(self, name):
        assert "no local folder, no .gguf file, no public model on the hub, nor 'smollm2-135m'" in refusal(name)

    def test_a_revision_of_what_has_none(self, folder):
        assert "revision 'main' is for models on the hub" in refusal(folder, revision="main")


class TestHub:
    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (hub_errors.GatedRepoError, "is gated: accept its terms"),
            (hub_errors.RepositoryNotFoundError, "no public model on the hub"),
            (hub_errors.RevisionNotFoundError, "no such revision"),
        ],
    )
    def test_what_the_hub_refuses_is_one_line(self, monkeypatch, error, said):
        response = SimpleNamespace(headers={}, request=None)

        def refuse(*arguments, **options):
            try:
                raise error("refused", response=response)
            except error as cause:
                raise OSError("many\nlines") from cause

        monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
        assert said in refusal("owner/name")

    def test_pickles_on_the_hub(self, monkeypatch):
        def refuse(*arguments, **options):
            raise OSError("no model.safetensors. Please do not set `use_safetensors=True`.")

        monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
        assert "pickles" in refusal("owner/name")

    def test_offline_a_model_that_is_not_here_is_one_line(self, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "not on this machine, and the hub cannot be reached" in refusal("owner/name")

    @pytest.mark.slow
    def test_offline_a_model_that_the_hub_gave_before_is_loaded(self, tmp_path, folder):
        commit = "0123456789abcdef0123456789abcdef01234567"
        model = tmp_path / "hub/models--owner--name"
        (model / "refs").mkdir(parents=True)
        (model / "refs/main").write_text(commit)
        (model / "snapshots").mkdir()
        folder.rename(model / "snapshots" / commit)
        program = "from softprompt.bases.load import load_base; print(load_base('owner/name').identity.name)"
        environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
        run = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert (run.stdout, run.stderr) == ("owner/name\n", "")


class TestRemoteCode:
    CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class TinyConfig(LlamaConfig):
    model_type = "tiny-of-its-own"

class TinyForCausalLM(LlamaForCausalLM):
    config_class = TinyConfig
"""

    @pytest.fixture
    def with_code(self, folder, tmp_path, monkeypatch) -> Path:
        config = json.loads((folder / "config.json").read_text())
        config |= {
            "model_type": "tiny-of-its-own",
            "architectures": ["TinyForCausalLM"],
            "auto_map": {"AutoConfig": "code.TinyConfig", "AutoModelForCausalLM": "code.TinyForCausalLM"},
        }
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "code.py").write_text(self.CODE)
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
        monkeypatch.setattr(sys, "path", [*sys.path])
        return folder

    def test_it_is_refused_unless_asked_for(self, with_code, tmp_path):
        assert "pass trust_remote_code=True" in refusal(with_code)
        assert not (tmp_path / "modules").exists()

    def test_it_runs_where_it_is_asked_for(self, with_code):
        base = load_base(with_code, dtype="float32", trust_remote_code=True)
        assert type(base.model).__name__ == base.identity.architecture == "TinyForCausalLM"
        assert torch.equal(base.model(IDS).logits, build("llama")(IDS).logits)


def write_gguf(
    file: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, split: str | None = None
) -> Path:
    """A tiny Llama as llama.cpp would write it, in float32; `split` names how its tokenizer splits texts."""
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    symbols = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    symbols[-3:] = ["ab", "ĠĠ", "12"]  # transformers asks for merges
    writer.add_tokenizer_model("gpt2")
    if split is not None:
        writer.add_tokenizer_pre(split)
    writer.add_token_list(symbols)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(symbols) - 2))
    writer.add_token_merges(["a b", "Ġ Ġ", "1 2"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        values = weight.numpy()
        for projection, count in heads.items():
            if projection in name:  # llama.cpp rotates neighbours, transformers halves
                halves = values.reshape(count, 2, -1, values.shape[1])
                values = halves.swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


class TestGguf:
    @pytest.fixture
    def file(self, tmp_path, tiny_tokenizer) -> Path:
        return write_gguf(tmp_path / "tiny.gguf", build("llama"), tiny_tokenizer)

    def test_it_is_an_ordinary_model(self, file, capfd):
        base = load_base(file, dtype="float32")
        torch.testing.assert_close(base.model(IDS).logits, build("llama")(IDS).logits)
        assert base.identity.architecture == "LlamaForCausalLM"
        assert base.max_positions == 256
        assert not hasattr(base.model, "hf_quantizer")
        assert base.tokenizer.decode(base.tokenizer("hallo").input_ids) == "hallo"
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("split", "pieces"),
        [
            (None, ["a", "Ġ", "Ġ", "12"]),
            ("gpt-2", ["a", "Ġ", "Ġ", "12"]),
            ("smollm", ["a", "ĠĠ", "1", "2"]),
            ("starcoder", ["a", "ĠĠ", "1", "2"]),
            ("command-r", ["a", "ĠĠ", "1", "2"]),
        ],
    )
    def test_texts_are_split_as_the_file_says(self, tmp_path, tiny_tokenizer, split, pieces):
        file = write_gguf(tmp_path / "tiny.gguf", build("llama"), tiny_tokenizer, split=split)
        assert load_base(file).tokenizer.tokenize("a  12") == pieces

    @pytest.mark.parametrize("beside", [False, True])
    def test_a_folder_with_nothing_else(self, file, folder, beside):
        if beside:  # as the hub has them: a configuration and GGUF weights
            (file.parent / "config.json").write_text((folder / "config.json").read_text())
        said = f"base {str(file.parent)!r} is a folder with GGUF weights: name the file, such as {str(file)!r}"
        assert refusal(file.parent) == said

    def test_it_may_be_named_from_its_own_folder(self, file, monkeypatch):
        monkeypatch.chdir(file.parent)
        assert load_base("tiny.gguf", dtype="bfloat16").dtype == torch.bfloat16

    def test_a_missing_one_is_refused(self, tmp_path):
        assert "there is no such file" in refusal(tmp_path / "none.gguf")

    @pytest.mark.parametrize("size", [0, 100, 2000, 60_000])
    def test_a_truncated_one_is_refused(self, file, size):
        os.truncate(file, size)
        assert "cannot be loaded" in refusal(file)

    def test_one_of_something_else_is_refused(self, tmp_path):
        (tmp_path / "page.gguf").write_text("<html>404 not found</html>" * 100)
        assert "cannot be loaded" in refusal(tmp_path / "page.gguf")


class TestEmbedded:
    def test_it_is_unpacked_once_and_again_when_damaged(self, tmp_path, tiny_tokenizer, monkeypatch):
        file = write_gguf(tmp_path / "tiny.gguf", build("llama"), tiny_tokenizer)
        fetched = []
        monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(sources, "fetch_base_file", lambda: fetched.append(file) or file)
        first = load_base("smollm2-135m", dtype="float32")
        logits = first.model(IDS).logits
        torch.testing.assert_close(logits, build("llama")(IDS).logits)
        assert first.tokenizer.model_max_length == 256
        assert load_base("smollm2-135m").identity == first.identity
        assert len(fetched) == 1

        (weights,) = (tmp_path / "cache").glob("smollm2-135m-*/model.safetensors")
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        assert torch.equal(load_base("smollm2-135m", dtype="float32").model(IDS).logits, logits)
        assert len(fetched) == 2

    def test_a_full_disk_is_one_line_and_leaves_nothing(self, tmp_path, tiny_tokenizer, monkeypatch):
        def fail(*arguments, **options):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        file = write_gguf(tmp_path / "tiny.gguf", build("llama"), tiny_tokenizer)
        monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(sources, "fetch_base_file", lambda: file)
        monkeypatch.setattr(PreTrainedModel, "save_pretrained", fail)
        assert re.search(r"cache folder .*No space left.*set SOFTPROMPT_CACHE", refusal("smollm2-135m"))
        assert [entry.suffix for entry in (tmp_path / "cache").iterdir()] in ([], [".lock"])

    def test_it_has_no_revision(self):
        assert "revision 'main' is for models on the hub" in refusal("smollm2-135m", revision="main")


@pytest.fixture(scope="module")
def smollm2() -> Base:
    return load_base("smollm2-135m", dtype="float32", device="cpu")


@pytest.mark.real
class TestSmolLM2:
    def test_it_is_whole(self, smollm2):
        assert sum(parameter.numel() for parameter in smollm2.model.parameters()) == 134_515_008
        assert smollm2.model.get_output_embeddings().weight is smollm2.model.get_input_embeddings().weight
        assert (smollm2.hidden_size, smollm2.vocab_size, smollm2.embedding_count) == (576, 49152, 49152)
        assert smollm2.max_positions == smollm2.tokenizer.model_max_length == 8192

    def test_its_identity_never_changes(self, smollm2):
        """Every prompt that anybody trained on it names this fingerprint."""
        assert smollm2.identity.fingerprint == "dd0b8c9ddbde8eabd37faf2341e125160b8ef5cdd7a67aea9b4820adda609773"
        assert load_base("smollm2-135m", dtype="bfloat16").identity == smollm2.identity

    def test_it_speaks_english(self, smollm2):
        inputs = smollm2.tokenizer("The capital of France is", return_tensors="pt")
        output = smollm2.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        assert "Paris" in smollm2.tokenizer.decode(output[0])

    def test_its_tokenizer_splits_as_the_original_does(self, smollm2):
        split = smollm2.tokenizer.tokenize
        assert split("2024") == ["2", "0", "2", "4"]
        assert split("in 2024 a  2") == ["in", "Ġ", "2", "0", "2", "4", "Ġa", "ĠĠ", "2"]
        assert split("Hello world") == ["Hello", "Ġworld"]

    @pytest.mark.long
    def test_its_file_given_by_path_splits_as_it_does(self, smollm2):
        base = load_base(sources.fetch_base_file(), dtype="float32", device="cpu")
        assert base.identity.fingerprint == smollm2.identity.fingerprint
        for text in ("in 2024 a  2", "x\n\n 3", "Hello  world"):
            assert base.tokenizer.tokenize(text) == smollm2.tokenizer.tokenize(text)

    def test_its_special_tokens_are_the_instruct_models(self, smollm2):
        tokenizer = smollm2.tokenizer
        assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
        assert tokenizer("hi").input_ids == tokenizer("hi", add_special_tokens=False).input_ids
        assert tokenizer("<|im_end|>").input_ids == [2]
        assert smollm2.model.generation_config.eos_token_id == 2

    def test_its_chat_template_has_a_default_system_prompt(self, smollm2):
        chat = [{"role": "user", "content": "Hi"}]
        assert smollm2.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        )

    def test_loading_it_again_neither_downloads_nor_unpacks(self, smollm2, monkeypatch):
        def refuse(*arguments):
            raise AssertionError("fetched or unpacked again")

        monkeypatch.setattr(sources, "fetch_base_file", refuse)
        monkeypatch.setattr(base_module, "_unpack", refuse)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        again = load_base("smollm2-135m", dtype="float32")
        assert torch.equal(again.model(IDS).logits, smollm2.model(IDS).logits)
