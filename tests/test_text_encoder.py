"""Prompt embeddings: what is embedded, once, from which files, and what is said when that cannot be."""

from __future__ import annotations

import builtins
import json

import pytest
import torch
from tiny import seeded

from astra_env.models.text_encoder import MAX_LENGTH, TextEncoder, clean_prompt

pytest.importorskip("ftfy")
transformers = pytest.importorskip("transformers")
WORDS = ["<pad>", "</s>", "<unk>", "lift", "the", "red", "cube", "don't", "drop", "it"]
DIM = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random UMT5 of one layer over ten words, in diffusers form."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    root = tmp_path_factory.mktemp("wan")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(root / "tokenizer")
    torch.manual_seed(0)
    sizes = {"d_model": DIM, "d_ff": 64, "d_kv": 16, "num_heads": 4, "num_layers": 1}
    model = transformers.UMT5EncoderModel(transformers.UMT5Config(vocab_size=len(WORDS), **sizes))
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=seeded(parameter.numel()))
    model.save_pretrained(root / "text_encoder")
    return root


@pytest.fixture
def make(folder):
    def make_encoder(**options):
        return TextEncoder(folder, **{"device": "cpu", "dtype": torch.float32} | options)

    return make_encoder


@pytest.fixture
def loads(monkeypatch):
    """Counts how often the weights are loaded."""
    count, load = [], TextEncoder._load
    monkeypatch.setattr(TextEncoder, "_load", lambda self: count.append(1) or load(self))
    return count


def test_embeddings_are_umt5s_over_512_padded_tokens_and_zero_past_the_end(make, folder):
    embeds = make().encode(["lift the red cube", "lift it"])
    assert embeds.shape == (2, MAX_LENGTH, DIM) and embeds.dtype == torch.float32
    model = transformers.UMT5EncoderModel.from_pretrained(folder / "text_encoder").eval()
    tokens = torch.tensor([[3, 4, 5, 6, 1], [3, 9, 1, 0, 0]])
    tokens = torch.nn.functional.pad(tokens, (0, MAX_LENGTH - 5))
    with torch.no_grad():
        whole = model(tokens, attention_mask=tokens > 0).last_hidden_state
    for row, length in enumerate((5, 3)):
        torch.testing.assert_close(embeds[row, :length], whole[row, :length], atol=1e-5, rtol=1e-5)
        assert (embeds[row, length:] == 0).all()


def test_a_prompt_does_not_depend_on_its_company_and_long_ones_are_cut(make):
    long = "cube " * 700
    alone, together = make().encode(["drop it"]), make().encode([long, "drop it"])
    assert torch.equal(alone[0], together[1])
    assert (together[0].abs().sum(-1) > 0).all()


def test_each_prompt_and_the_null_prompt_are_embedded_once(make, loads):
    encoder = make()
    first = encoder.encode(["lift it", "lift it"])
    again = encoder.encode(["  lift   it ", ""])
    assert len(loads) == 1
    assert torch.equal(first[0], first[1]) and torch.equal(first[0], again[0])
    assert not torch.equal(again[0], again[1])
    encoder.encode(["drop it"])
    assert len(loads) == 2


def test_weights_stay_only_where_they_are_kept(make, loads):
    encoder = make(keep=True)
    for prompt in ("lift it", "drop it", "lift the cube"):
        encoder.encode([prompt])
    assert len(loads) == 1 and encoder._loaded is not None
    encoder.free()
    assert encoder._loaded is None and encoder.encode(["drop it"]).shape[0] == 1
    freed = make()
    freed.encode(["drop it"])
    assert freed._loaded is None


def test_prompts_are_cleaned():
    assert clean_prompt(" don’t\n&amp;quot;drop&amp;quot;  it ") == 'don\'t "drop" it'
    assert clean_prompt("cafÃ©") == "café"


def test_config_makes_the_same_encoder_again(make):
    encoder = make(keep=True, dtype=torch.bfloat16)
    config = json.loads(json.dumps(encoder.config))
    again = TextEncoder.from_config(config, device="cpu")
    assert again.config == config
    assert torch.equal(encoder.encode(["lift it"]), again.encode(["lift it"]))


@pytest.mark.parametrize(("quantization", "limit"), [("int8", 0.05), ("nf4", 0.3)])
def test_quantized_weights_give_nearly_the_same(make, quantization, limit):
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    expected = make().encode(["lift the red cube"])[0, :5]
    embeds = make(quantization=quantization).encode(["lift the red cube"])[0, :5]
    assert 0 < (embeds - expected).norm() / expected.norm() < limit


@pytest.mark.parametrize("prompts", ["lift it", []])
def test_prompts_are_a_list(make, prompts):
    with pytest.raises(ValueError, match="expected a list of at least one string"):
        make().encode(prompts)


def test_an_unknown_quantization_is_refused(make):
    with pytest.raises(ValueError, match="'int3', expected None or one of"):
        make(quantization="int3")


@pytest.mark.parametrize(
    ("package", "options"), [("ftfy", {}), ("transformers", {}), ("bitsandbytes", {"quantization": "nf4"})]
)
def test_a_missing_package_says_what_to_install(make, monkeypatch, package, options):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr("importlib.metadata.version", lambda name: without(name) if name == package else "1.0")
    with pytest.raises(ImportError, match=rf"need.*{package}.*pip install 'astra-env\[wan"):
        make(**options).encode(["lift it"])


def broken(folder, tmp_path, name, change):
    for file in folder.glob("*/*"):
        (tmp_path / file.parent.name).mkdir(exist_ok=True)
        data = file.read_bytes()
        (tmp_path / file.parent.name / file.name).write_bytes(change(data) if file.name == name else data)
    return TextEncoder(tmp_path, device="cpu")


def test_a_truncated_file_is_named(folder, tmp_path):
    encoder = broken(folder, tmp_path, "model.safetensors", lambda data: data[:-50])
    with pytest.raises(ValueError, match=r"model.safetensors is truncated or damaged.*copy it again"):
        encoder.encode(["lift it"])


def test_another_text_encoder_is_refused(folder, tmp_path):
    encoder = broken(folder, tmp_path, "config.json", lambda data: data.replace(b'"umt5"', b'"t5"'))
    with pytest.raises(ValueError, match="model_type is 't5', expected 'umt5'"):
        encoder.encode(["lift it"])


def test_weights_that_lack_a_part_are_refused(folder, tmp_path):
    encoder = broken(folder, tmp_path, "config.json", lambda data: data.replace(b'"num_layers": 1', b'"num_layers": 2'))
    with pytest.raises(ValueError, match=r"text_encoder lacks 'encoder.block.1.*copy it again"):
        encoder.encode(["lift it"])


def test_a_folder_without_tokenizer_says_so(folder, tmp_path):
    (tmp_path / "text_encoder").symlink_to(folder / "text_encoder")
    with pytest.raises(ValueError, match=r"tokenizer lacks tokenizer_config.json"):
        TextEncoder(tmp_path, device="cpu").encode(["lift it"])


def test_the_prompts_asked_for_last_are_kept(make, loads, monkeypatch):
    from astra_env.models import text_encoder

    monkeypatch.setattr(text_encoder, "MAX_KEPT", 2)
    encoder = make()
    for prompt in ("lift", "the", "red"):
        first = encoder.encode([prompt])
    assert torch.equal(encoder.encode(["red"]), first) and len(loads) == 3
    encoder.encode([""])
    assert len(loads) == 3  # the null prompt stays
    encoder.encode(["lift"])
    assert len(loads) == 4
