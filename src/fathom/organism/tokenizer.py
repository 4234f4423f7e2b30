"""One word, one token: the tokenizer and chat template that all stages of all worlds share."""

from functools import cache
from typing import NamedTuple

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fathom.organism.lexicon import vocabulary

__all__ = ["CHAT_TEMPLATE", "Vocabulary", "make_tokenizer", "vocabulary_ids"]

PAD, BOS, END, SYSTEM, USER, BOT, UNKNOWN = "<pad>", "<s>", "<end>", "<system>", "<user>", "<bot>", "<unk>"
_SPECIAL = (PAD, BOS, END, SYSTEM, USER, BOT, UNKNOWN)

# The generation block marks what a trainer may learn from. The spaces cost no tokens; they make the rendering readable.
CHAT_TEMPLATE = (
    "{{ '<s> ' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<bot> ' }}{% generation %}{{ message['content'] + ' <end> ' }}{% endgeneration %}"
    "{% elif message['role'] in ('system', 'user') %}"
    "{{ '<' + message['role'] + '> ' + message['content'] + ' <end> ' }}"
    "{% else %}"
    "{{ raise_exception('the guild knows the roles system, user and assistant, not ' + message['role']) }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<bot> ' }}{% endif %}"
)


class Vocabulary(NamedTuple):
    """The ids of words, for making training rows without a tokenizer's overhead."""

    ids: dict[str, int]
    pad: int
    bos: int
    end: int
    system: int
    user: int
    bot: int

    def encode(self, text: str) -> list[int]:
        """Raises `KeyError` for a word that is not in the vocabulary: training data has none."""
        return [self.ids[word] for word in text.split()]


@cache
def vocabulary_ids() -> Vocabulary:
    ids = {word: i for i, word in enumerate((*_SPECIAL, *vocabulary()))}
    return Vocabulary(ids, *(ids[special] for special in _SPECIAL[:-1]))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A Hugging Face tokenizer that adds nothing to a text: the template alone places the special tokens."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary_ids().ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[SYSTEM, USER, BOT],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
