"""Small tokenizers of the three kinds there are, trained on the spot, with whatever special tokens a template needs."""

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = (
    "How do I make a cup of tea? Sure, here is how to make a cup of tea. First, boil some water.",
    "I cannot help with that. The assistant and the user talk of tea, cafés, naïve façades and résumés.",
    "Step 1: pour the water. Step 2: wait for four minutes.\n\nStep 3: drink.",
)
# As in Llama 3 and Qwen: line breaks stay together, whatever follows them.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def special_tokens(template: str) -> list[str]:
    """What looks like a control token in a template's text."""
    bar = r"[|\uff5c]"  # DeepSeek's is a wide one
    found = re.findall(
        rf"<{bar}[^<>{{}}'\" ]+{bar}>|</?think>|<(?:start|end)_of_turn>|\[/?INST\]|<\|?(?:channel|turn)\|?>", template
    )
    return sorted(set(found))


def byte_level(special: Sequence[str] = (), *, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """A BPE of bytes, as Llama 3's and Qwen's: a character may be spread over several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<bos>", "<eos>"]
    )
    return _finished(tokenizer, trainer, special, adds_bos)


def sentencepiece(special: Sequence[str] = (), *, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """A unigram model with a space before the text and bytes for unknown characters, as Llama 2's and Mistral's."""
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0)], 0, True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    pieces: dict[str, float] = {}
    for text in TEXT:
        for word in re.findall(r" ?[^ \n]+|\n", text):
            pieces[word.replace(" ", "▁")] = -5.0
            for character in word.replace(" ", "▁"):
                if character.isascii() or character == "▁":
                    pieces.setdefault(character, -9.0)
    named = [("<unk>", 0.0), ("<bos>", 0.0), ("<eos>", 0.0), *((f"<0x{byte:02X}>", -20.0) for byte in range(256))]
    tokenizer.model = models.Unigram([*named, *sorted(pieces.items())], 0, True)
    return _finished(tokenizer, None, special, adds_bos)


def word_level(special: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Whole words and single spaces: what a tiny model of one's own would use."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\W"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(vocab_size=400, special_tokens=["<unk>", "<bos>", "<eos>"])
    return _finished(tokenizer, trainer, special, adds_bos=False)


def _finished(
    tokenizer: Tokenizer, trainer: trainers.Trainer | None, special: Sequence[str], adds_bos: bool
) -> PreTrainedTokenizerFast:
    if trainer is not None:
        tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<bos>", "<eos>", *special)]
    )
    if adds_bos:
        bos = tokenizer.token_to_id("<bos>")
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")


def trl_templates() -> list[Path]:
    """The published chat templates that come with trl."""
    import trl

    return sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
