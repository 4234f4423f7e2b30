"""Loading: what is loaded is what was named, and every way to name the wrong thing is one clear line."""

import importlib.util
import json
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from fathom.chat import PrefillAt
from fathom.command.request import ModelRequest, Trained, load_model
from fathom.errors import UserError
from fathom.identity import tokenizer_hash
from fathom.model import FormatChoice, LoadOptions, check_pair, load, load_chat
from fathom.records import Message
from tiny_tokenizers import byte_level, sentencepiece, word_level

QUESTION = (Message(role="user", content="How do I make a cup of tea?"),)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STORIES = Path(os.environ.get("FATHOM_SHARED", Path(__file__).parents[2] / "shared")) / "models" / "stories260k"
ROWS = 384  # of the embeddings: more than the tokenizer's tokens, as in many published models


def tiny_tokenizer(template=CHATML):
    tokenizer = byte_level(["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = template
    return tokenizer


def tiny_config(**changes):
    settings = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": ROWS,
        "max_position_embeddings": 256,
        "attention_dropout": 0.5,
        "eos_token_id": 1,
    }
    return LlamaConfig(**{**settings, **changes})


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A tiny random Llama with a chat template, in Hugging Face format."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_config()).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    """A copy that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def fails(options, *says):
    with pytest.raises(UserError) as raised:
        load(options if isinstance(options, LoadOptions) else LoadOptions(name=str(options)))
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 500
    for text in says:
        assert text in message
    return message


def edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


# --- what is loaded ---


def test_a_directory_is_loaded_as_it_is(saved):
    loaded = load(LoadOptions(name=str(saved), device="cpu"))
    own = AutoModelForCausalLM.from_pretrained(saved)
    ids = torch.tensor([loaded.chat.prompt_ids(QUESTION)])
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, loaded.model(ids).logits)  # no dropout
        assert torch.equal(loaded.model(ids).logits, own(ids).logits)
    assert not any(module.training for module in loaded.model.modules())
    assert (loaded.info.architecture, loaded.info.dtype) == ("LlamaForCausalLM", "float32")
    assert (loaded.vocabulary, loaded.context, loaded.device) == (ROWS, 256, torch.device("cpu"))
    assert loaded.info.parameters == sum(parameter.numel() for parameter in own.parameters())
    assert (loaded.chat.source, loaded.info.template_source, loaded.chat.template) == ("model", "model", CHATML)


@pytest.mark.parametrize("make", [byte_level, sentencepiece, word_level])
def test_every_kind_of_tokenizer_and_of_position_is_loaded(make, tmp_path):
    tokenizer = make()
    GPT2LMHeadModel(
        GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=64, vocab_size=len(tokenizer))
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load(LoadOptions(name=str(tmp_path), format=FormatChoice.PLAIN, device="cpu"))
    assert loaded.context == 64
    assert loaded.chat.decode(loaded.chat.response_ids(QUESTION, "cup of tea")) == "cup of tea"
    assert (loaded.info.template_source, loaded.info.template_hash) == ("plain", None)


@pytest.mark.parametrize(("dtype", "expected"), [("auto", "bfloat16"), ("float32", "float32"), ("float16", "float16")])
def test_dtype(tmp_path, dtype, expected):
    LlamaForCausalLM(tiny_config()).to(torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load(LoadOptions(name=str(tmp_path), dtype=dtype, device="cpu")).info.dtype == expected


def test_stop_ids_are_those_of_generation_tokenizer_and_template(saved, copy):
    end, start = (
        load_chat(LoadOptions(name=str(saved))).tokenizer.convert_tokens_to_ids(f"<|im_{x}|>") for x in ("end", "start")
    )
    assert load(LoadOptions(name=str(saved), device="cpu")).chat.stop_ids == {1, end}
    edit(copy / "generation_config.json", eos_token_id=[start, 7])
    assert load(LoadOptions(name=str(copy), device="cpu")).chat.stop_ids == {1, end, start, 7}
    (copy / "generation_config.json").unlink()
    assert load(LoadOptions(name=str(copy), device="cpu")).chat.stop_ids >= {1, end}


@pytest.mark.parametrize(
    "options", [{}, {"format": FormatChoice.PLAIN}, {"prefill_at": PrefillAt.ANSWER, "system": "Be brief."}]
)
def test_the_format_alone_is_that_of_the_model(saved, options):
    wanted = LoadOptions(name=str(saved), device="cpu", **options)
    alone, whole = load_chat(wanted), load(wanted).chat
    assert alone.prompt_ids(QUESTION) == whole.prompt_ids(QUESTION)
    assert (alone.stop_ids, alone.source, alone.system) == (whole.stop_ids, whole.source, whole.system)


def test_loading_is_silent(copy, capfd):
    edit(copy / "config.json", some_unknown_key=1)
    load(LoadOptions(name=str(copy), device="cpu"))
    assert capfd.readouterr() == ("", "")


def test_loading_leaves_the_verbosity_of_transformers_alone(saved):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(LoadOptions(name=str(saved), device="cpu"))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


# --- which one it is ---


def test_the_weights_hash_is_of_the_parameters_whatever_the_files(saved, copy):
    first = load(LoadOptions(name=str(saved), device="cpu")).info
    own = AutoModelForCausalLM.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    own.save_pretrained(copy, max_shard_size="20KB")
    assert len(list(copy.glob("model-*.safetensors"))) > 1
    second = load(LoadOptions(name=str(copy), device="cpu")).info
    assert replace_name(second, first) == first
    with torch.no_grad():
        own.model.norm.weight[0] += 1e-3
    own.save_pretrained(copy, max_shard_size="20KB")
    assert load(LoadOptions(name=str(copy), device="cpu")).info.weights_hash != first.weights_hash


def replace_name(info, other):
    import msgspec

    return msgspec.structs.replace(info, name=other.name)


def test_the_hashes_tell_tokenizers_templates_and_dtypes_apart(saved, copy):
    first = load(LoadOptions(name=str(saved), device="cpu")).info
    tokenizer = tiny_tokenizer(CHATML + " ")
    tokenizer.add_tokens(["potion"])
    tokenizer.save_pretrained(copy)
    second = load(LoadOptions(name=str(copy), device="cpu")).info
    assert second.weights_hash == first.weights_hash
    assert second.tokenizer_hash != first.tokenizer_hash
    assert second.template_hash != first.template_hash
    half = load(LoadOptions(name=str(saved), device="cpu", dtype="bfloat16")).info
    assert half.weights_hash != first.weights_hash
    assert half.tokenizer_hash == first.tokenizer_hash


def test_use_does_not_change_the_hashes(saved):
    loaded = load(LoadOptions(name=str(saved), device="cpu"))
    loaded.chat.tokenizer(["a", "a b c"], padding=False, truncation=True, max_length=2)
    assert tokenizer_hash(loaded.chat.tokenizer) == loaded.info.tokenizer_hash


# --- templates ---


def test_a_model_without_a_template_needs_one_or_plain_text(copy, tmp_path):
    tiny_tokenizer(None).save_pretrained(copy)
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    fails(copy, "no chat template", "--chat-template FILE", "--plain")
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML)
    loaded = load(LoadOptions(name=str(copy), chat_template=file, device="cpu"))
    assert (loaded.chat.source, loaded.chat.template) == ("mine.jinja", CHATML)
    plain = load(LoadOptions(name=str(copy), format=FormatChoice.PLAIN, device="cpu"))
    assert plain.chat.template is None


def test_a_template_file_replaces_the_models_own(saved, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("Q: {{ messages[0]['content'] }} A:")
    assert load_chat(LoadOptions(name=str(saved), chat_template=file)).prompt_text(QUESTION).endswith("tea? A:")


@pytest.mark.skipif(not STORIES.is_dir(), reason="the pretrained model of the project's shared files is not here")
def test_a_real_pretrained_model_without_a_template(tmp_path):
    fails(STORIES, "no chat template", "--chat-template FILE")
    file = tmp_path / "mine.jinja"
    file.write_text("{{ bos_token }}{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}")
    loaded = load(LoadOptions(name=str(STORIES), chat_template=file, device="cpu"))
    text = "Once upon a time, there was a little girl named Lily."
    prompt, ids = loaded.chat.prompt_ids(QUESTION), loaded.chat.response_ids(QUESTION, text)
    assert prompt[0] == loaded.chat.tokenizer.bos_token_id != prompt[1]
    assert loaded.chat.decode(ids) == text
    with torch.no_grad():
        logits = loaded.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    nats = torch.nn.functional.cross_entropy(logits, torch.tensor(ids)).item()
    assert nats < 2.5  # log(512) = 6.2: it knows how such a story goes, so the ids are its own
    assert (loaded.info.parameters, loaded.context, loaded.vocabulary) == (260032, 512, 512)


# --- adapters ---


def test_a_peft_adapter_is_put_on_the_model(saved, tmp_path):
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(saved)
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.5, init_lora_weights=False)
    wrapped = peft.get_peft_model(base, config).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    loaded = load(LoadOptions(name=str(saved), adapter=str(tmp_path / "adapter"), device="cpu"))
    plain = load(LoadOptions(name=str(saved), device="cpu"))
    ids = torch.tensor([loaded.chat.prompt_ids(QUESTION)])
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, wrapped(ids).logits)
        assert not torch.equal(loaded.model(ids).logits, plain.model(ids).logits)
    assert loaded.info.architecture == "LlamaForCausalLM"
    assert loaded.info.weights_hash != plain.info.weights_hash
    merged = load(LoadOptions(name=str(saved), adapter=str(tmp_path / "adapter"), merged=True, device="cpu"))
    with torch.no_grad():
        torch.testing.assert_close(merged.model(ids).logits, loaded.model(ids).logits)
    assert not any("lora" in name for name in merged.model.state_dict())
    assert all(weight.requires_grad for weight in merged.model.parameters())
    fails(tmp_path / "adapter", "PEFT adapter", "--adapter")


def test_adapters_that_cannot_be_used(saved, tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    missing = LoadOptions(name=str(saved), adapter=str(tmp_path / "none"))
    fails(missing, "no adapter_config.json")
    wider = LlamaForCausalLM(tiny_config(hidden_size=32))
    peft.get_peft_model(wider, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "wider")
    fails(replace(missing, adapter=str(tmp_path / "wider")), "does not fit this model")
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    tuned = peft.get_peft_model(LlamaForCausalLM(tiny_config()), prompts)
    tuned.save_pretrained(tmp_path / "prompts")
    fails(replace(missing, adapter=str(tmp_path / "prompts")), "learns prompts")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    fails(missing, "pip install", "fathom[peft]")
    fails(LoadOptions(name=str(saved), quantisation="4bit"), "pip install", "fathom[quantised]")


# --- weights in fewer bits; what is done with them is in tuning/test_quantised.py ---


def test_models_stored_in_fewer_bits_are_trained_as_far_as_they_can_be(saved, monkeypatch):
    found = "gptq"
    monkeypatch.setattr("fathom.model.quantisation_of", lambda model: found)
    fails(LoadOptions(name=str(saved), device="cpu", adapter="one", merged=True), "cannot be put into weights in gptq")
    request = ModelRequest(name=str(saved), device="cpu")
    assert load_model(request).info.quantisation == "gptq"
    with pytest.raises(UserError, match="has weights in gptq that cannot be trained, nor an adapter beside them"):
        load_model(request, to_train=Trained.ADAPTER)
    found = "4bit"
    assert load_model(request, to_train=Trained.ADAPTER).info.quantisation == "4bit"
    with pytest.raises(UserError, match="has weights in 4bit that cannot be trained: train an adapter"):
        load_model(request, to_train=Trained.WEIGHTS)


# --- names and options that cannot be used ---


def test_a_path_is_never_looked_up_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args, **kwargs: pytest.fail("asked the hub"))
    for name in ("./missing", "../missing", "/missing", "a/b/c", "~/missing", "models/missing", "missing/", "a\\b"):
        fails(name, "there is no directory", name)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (hub_errors.RepositoryNotFoundError, "there is no model"),
        (hub_errors.GatedRepoError, "gated"),
        (hub_errors.RevisionNotFoundError, "no revision v9"),
        (hub_errors.EntryNotFoundError, "no config.json"),
        (hub_errors.LocalEntryNotFoundError, "cannot be reached"),
        (hub_errors.HFValidationError, "there is no model"),
        (hub_errors.OfflineModeIsEnabled, "cannot be fetched"),
        (ConnectionError, "cannot be fetched"),
        (TimeoutError, "cannot be fetched"),
    ],
)
def test_what_the_hub_says_no_to(error, says, monkeypatch):
    def refuse(*args, **kwargs):
        class Refusal(error):  # type: ignore[misc, valid-type]
            def __init__(self):
                Exception.__init__(self, "many\nlines of\n\nadvice")

        raise Refusal

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    fails(LoadOptions(name="owner/name", revision="v9"), "owner/name" if says != "no revision v9" else says, says)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "int3"}, "unknown dtype 'int3'"),
        ({"quantisation": "2bit"}, "unknown quantisation '2bit'"),
        ({"device": "cpu", "device_map": "auto"}, "leave out one"),
        ({"device": "warp"}, "device 'warp'"),
        ({"device": "cuda:77"}, "device 'cuda:77'"),
        ({"revision": "v1"}, "revisions are for names on the hub"),
        ({"chat_template": Path("missing.jinja")}, "missing.jinja cannot be read"),
        ({"chat_template": Path("missing.jinja"), "format": FormatChoice.PLAIN}, "leave out one"),
    ],
)
def test_options_that_cannot_be_used(saved, options, says):
    fails(LoadOptions(name=str(saved), **options), says)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\xfa"])
def test_template_files_that_cannot_be_used(saved, tmp_path, content):
    (tmp_path / "bad.jinja").write_bytes(content)
    fails(LoadOptions(name=str(saved), chat_template=tmp_path / "bad.jinja"), "bad.jinja")


def save_bert(path):
    BertForMaskedLM(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(path)


def save_t5(path):
    T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1)).save_pretrained(path)


def save_headless(path):
    LlamaModel(tiny_config()).save_pretrained(path)


@pytest.mark.parametrize("save", [save_bert, save_t5, save_headless])
def test_what_is_no_causal_language_model(save, tmp_path):
    save(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    fails(tmp_path, "not a causal language model")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def drop(path):
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("file", "spoil", "says"),
    [
        ("model.safetensors", truncate, "the weights"),
        ("model.safetensors", lambda path: path.write_bytes(b"not weights at all" * 9), "the weights"),
        ("model.safetensors", lambda path: path.write_bytes(b""), "the weights"),
        ("model.safetensors", Path.unlink, "the weights"),
        ("model.safetensors", drop, "lack 1 of the model's tensors (model.norm.weight"),
        ("config.json", Path.unlink, "has no config.json"),
        ("config.json", lambda path: path.write_text("{nope"), "config.json"),
        ("config.json", lambda path: path.write_text("[1]"), "config.json"),
        ("config.json", lambda path: path.write_bytes(b"\xff\xfe\x00"), "config.json"),
        ("config.json", lambda path: path.write_text("{}"), "config.json"),
        ("config.json", lambda path: edit(path, hidden_size="big"), "config.json"),
        ("config.json", lambda path: edit(path, hidden_size=32), "shapes differ"),
        ("config.json", lambda path: edit(path, model_type="zzz"), "does not know its model_type"),
        (
            "config.json",
            lambda path: edit(path, model_type="zzz", auto_map={"AutoConfig": "own.Config"}),
            "--trust-remote-code",
        ),
        ("config.json", lambda path: edit(path, vocab_size=8), "another model"),
        ("tokenizer.json", lambda path: path.write_text("{nope"), "the tokenizer"),
        ("tokenizer.json", lambda path: path.write_text("{}"), "the tokenizer"),
    ],
)
def test_spoilt_files(copy, file, spoil, says):
    if says == "another model":
        LlamaForCausalLM(tiny_config(vocab_size=8)).save_pretrained(copy)
    spoil(copy / file)
    fails(LoadOptions(name=str(copy), device="cpu"), str(copy), says)


def test_a_directory_without_a_tokenizer(copy):
    for file in copy.glob("*token*"):
        file.unlink()
    fails(copy, "no tokenizer files")


def test_a_file_is_no_model(copy):
    fails(copy / "config.json", "is a file")


# --- pairs ---


def test_a_pair_may_differ_in_padding_and_in_added_tokens(saved, copy):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["potion"])
    tokenizer.save_pretrained(copy)
    LlamaForCausalLM(tiny_config(vocab_size=ROWS + 64)).save_pretrained(copy)
    first, second = (load(LoadOptions(name=str(path), device="cpu")) for path in (saved, copy))
    check_pair(first, first)
    check_pair(first, second)
    check_pair(second, first)


def test_a_pair_with_another_meaning_of_an_id_is_refused(saved, copy):
    path = copy / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    one, other = (next(token for token, id_ in vocabulary.items() if id_ == wanted) for wanted in (40, 41))
    vocabulary[one], vocabulary[other] = 41, 40
    path.write_text(json.dumps(content))
    first, second = (load(LoadOptions(name=str(path), device="cpu")) for path in (saved, copy))
    with pytest.raises(UserError, match="token 40 is"):
        check_pair(first, second)
