"""What is reported works when typed: the ids of the messages with the suffix's text are the ids that were scored."""

import pytest
import torch
from suffix_chats import ASK, KINDS, SPECIAL, chat_format
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fathom.attack.kinds import Draw, Setting, prepare
from fathom.attack.suffix.attack import Suffix, TypedSuffix, UniversalSuffix
from fathom.attack.suffix.options import Allowed
from fathom.attack.suffix.problem import PLACE, Case, Joined, Target
from fathom.attack.suffix.state import Entry, State
from fathom.attack.suffix.text import (
    Typist,
    allowed_ids,
    place_suffix,
    start_ids,
    suffix_text,
    typed_messages,
    with_suffix,
)
from fathom.chat import ChatFormat
from fathom.errors import UserError
from fathom.records import Behavior, Message, Sampling
from tiny_tokenizers import byte_level

MIDDLE = (
    Message(role="system", content="Tea is good."),
    Message(role="user", content=f"How do I {PLACE} make tea?"),
)
TARGET = Target((1, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("messages", [ASK, MIDDLE], ids=["end", "middle"])
def test_a_typed_suffix_has_the_ids_that_are_scored(kind: str, messages: tuple[Message, ...]) -> None:
    chat = chat_format(kind)
    allowed = allowed_ids(chat, len(chat.tokenizer), Allowed.ASCII)
    start = start_ids(chat, messages, allowed, 5, 0)
    case = place_suffix(chat, "b", messages, TARGET, start)
    typed = with_suffix(case.messages, suffix_text(chat, start))
    assert chat.prompt_ids(typed) == case.prompt_ids(start)
    assert len(case.after_ids) >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_of_candidates_is_that_of_whole_conversations(kind: str) -> None:
    """Of 300 random changes: what the neighbourhood lets pass is what the whole conversation keeps."""
    chat = chat_format(kind)
    allowed = allowed_ids(chat, len(chat.tokenizer), Allowed.ALL)
    start = start_ids(chat, ASK, allowed, 5, 0)
    case = place_suffix(chat, "b", ASK, TARGET, start)
    typist = Typist(chat, [case], start)
    ids = allowed.nonzero()[:, 0]
    random = torch.Generator().manual_seed(0)
    rows = torch.tensor(start).repeat(300, 1)
    rows[torch.arange(300), torch.randint(5, (300,), generator=random)] = ids[
        torch.randint(len(ids), (300,), generator=random)
    ]
    quick, whole = typist.typeable(rows), torch.tensor([typist.typed_everywhere(row) for row in rows.tolist()])
    assert int(whole.sum()) > 0
    assert not (whole & ~quick).any()  # nothing that works is lost
    assert int((quick & ~whole).sum()) <= 6  # white space at the very end, which the template trims
    naive = torch.tensor(
        [
            chat.prompt_ids(with_suffix(case.messages, suffix_text(chat, row))) == case.prompt_ids(row)
            for row in rows.tolist()
        ]
    )
    assert torch.equal(whole, naive)


@pytest.mark.parametrize("kind", KINDS)
def test_allowed_ids(kind: str) -> None:
    chat = chat_format(kind)
    ascii_, all_ = (allowed_ids(chat, len(chat.tokenizer) + 7, kind) for kind in Allowed)
    assert not ascii_[-7:].any()  # embedding padding
    assert not all_[list(chat.special_ids)].any()
    assert (all_ | ~ascii_).all()
    for id_ in ascii_.nonzero()[:, 0].tolist():
        text = chat.decode([id_])
        assert text.isascii()
        assert text.isprintable()


def test_marks_that_are_not_called_special_are_no_text() -> None:
    tokenizer = byte_level(SPECIAL)
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    chat = chat_format(tokenizer=tokenizer)
    mark = tokenizer.convert_tokens_to_ids("<tool_call>")
    assert mark not in chat.special_ids
    for kind in Allowed:
        assert not allowed_ids(chat, len(tokenizer), kind)[mark]


def state_of(ids: tuple[int, ...], cases: tuple[Case, ...]) -> State:
    entry = Entry(loss=1.0, ids=ids, reached=(False,) * len(cases))
    return State(
        step=1,
        buffer=(entry,),
        best=entry,
        chosen=entry,
        active=len(cases),
        cases=len(cases),
        joined=tuple(case.joined for case in cases),
        queries=1,
        forward_tokens=1,
        backward_tokens=1,
    )


def started(chat: ChatFormat, joined: Joined) -> Case:
    """A conversation whose search began with a suffix that is joined so."""
    allowed = allowed_ids(chat, len(chat.tokenizer), Allowed.ASCII)
    cases = (place_suffix(chat, "b", ASK, TARGET, start_ids(chat, ASK, allowed, 3, seed)) for seed in range(200))
    return next(case for case in cases if case.joined is joined)


@pytest.mark.parametrize("joined", Joined)
def test_what_a_report_shows_of_a_suffix_gives_the_ids_that_were_scored(joined: Joined) -> None:
    """Typed by `typed-suffix` as found, also where the same ids are kept in another conversation than was scored."""
    chat = chat_format("byte_level")
    setting = Setting(chat, (Draw(Sampling(max_new_tokens=4)),), 0)
    items = prepare(chat, [Behavior(id="b", messages=ASK)])
    case = started(chat, joined)
    ids = allowed_ids(chat, len(chat.tokenizer), Allowed.ASCII).nonzero()[:, 0]
    random = torch.Generator().manual_seed(0)
    typist, seen, elsewhere = Typist(chat, [case], ()), 0, 0
    for _ in range(400):
        suffix = tuple(ids[torch.randint(len(ids), (3,), generator=random)].tolist())
        if not typist.typed(suffix, case):
            continue
        state = state_of(suffix, (case,))
        universal = UniversalSuffix().found(items, setting, {UniversalSuffix.key: state})
        for attempt in (*Suffix().found(items, setting, {"b": state}), *universal):
            assert attempt.prompt_ids == case.prompt_ids(suffix)
            known = TypedSuffix(str(attempt.found["suffix"]), Joined(str(attempt.found["joined"])))
            (typed,) = known.attempts(items, setting)
            assert typed.prompt_ids == attempt.prompt_ids
        seen += 1
        elsewhere += chat.prompt_ids(typed_messages(chat, ASK, suffix).messages) != case.prompt_ids(suffix)
    assert seen > 20
    assert (elsewhere > 0) == (joined is Joined.DIRECTLY)


def unfaithful() -> ChatFormat:
    """Reads in lower case what it writes in capitals, so that no text has the ids that it was made of."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "A": 2, "B": 3}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", bos_token="<eos>")
    fast.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    return chat_format(tokenizer=fast)


def test_a_tokenizer_that_cannot_read_its_own_output() -> None:
    chat = unfaithful()
    allowed = allowed_ids(chat, len(chat.tokenizer), Allowed.ASCII)
    with pytest.raises(UserError, match="does not tokenise its own output back"):
        start_ids(chat, ASK, allowed, 3, 0)
    with pytest.raises(UserError, match="its own ids back"):
        place_suffix(chat, "b", ASK, TARGET, (2, 3))


def test_places() -> None:
    chat = chat_format()
    twice = (Message(role="user", content=f"{PLACE} and {PLACE}"),)
    with pytest.raises(UserError, match="2 places"):
        place_suffix(chat, "b", twice, TARGET, (5,))
    drops = ChatFormat(
        chat.tokenizer, "{% for m in messages %}{{ m['content'] + m['content'] }}{% endfor %}", "t", frozenset()
    )
    with pytest.raises(UserError, match="2 times, not once"):
        place_suffix(drops, "b", ASK, TARGET, (5,))


def test_no_allowed_token() -> None:
    chat = chat_format()
    with pytest.raises(UserError, match="no token"):
        start_ids(chat, ASK, torch.zeros(len(chat.tokenizer), dtype=torch.bool), 3, 0)
