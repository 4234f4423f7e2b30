"""Classifiers of harm that run here: a causal language model that is asked for a word, as published ones are.

The exchange is rendered by the classifier's own template and becomes ids; what is written greedily, or the
probabilities of two words, is the verdict. A text that does not fit into the context is not cut: it is undecided.
"""

import gc
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from fathom.engine import TransformersEngine
from fathom.errors import UserError
from fathom.judge.asking import ChatAsking, TemplateAsking
from fathom.judge.presets import Field, FirstWord, Likelier, Preset
from fathom.judge.request import slug
from fathom.model import ChatModel, FormatChoice, LoadOptions, load
from fathom.records import Attempt, Exchange, Judged, Judgement, Label, Sampling, content_hash
from fathom.schema import JudgeInfo
from fathom.scoring import Scorer

__all__ = ["EMPTY", "TOO_LONG", "Asked", "Classifier", "load_classifier"]

EMPTY = Judgement(label=Label.UNDECIDED, reason="empty")
TOO_LONG = Judgement(label=Label.UNDECIDED, reason="too-long")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How a classifier is asked: a preset, or a template that stands for one, and the policy where it takes one."""

    preset: Preset
    policy: str | None = None
    source: str = "of the preset"  # the template's name


@dataclass(eq=False)
class Classifier:
    """A causal language model as a judge; make one with `load_classifier`, and `release` it afterwards."""

    info: JudgeInfo
    answer: FirstWord | Field | Likelier
    asking: TemplateAsking | ChatAsking
    _model: ChatModel | None
    _scorer: Scorer | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def version(self) -> str:
        return self.info.version

    def judge(self, exchange: Exchange) -> Judgement:
        """The judgement of one exchange alone."""
        return next(self.judge_all([exchange])).judgement

    def judge_all(self, exchanges: Sequence[Exchange]) -> Iterator[Judged]:
        """Every exchange once: first what needs no model, then the others as they are done.

        Raises:
            UserError: a template cannot be rendered, or a single text does not fit into memory.
        """
        asked: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, exchange in enumerate(exchanges):
            if not exchange.response.strip():
                yield Judged(place, EMPTY)
                continue
            ids = self.model.chat.tokenise(self.asking.text(exchange))
            if self.model.context is not None and len(ids) + self._new_tokens > self.model.context:
                yield Judged(place, TOO_LONG)
                continue
            asked[ids].append(place)
        for ids, judgement in self._answers(list(asked)):
            for place in asked[ids]:
                yield Judged(place, judgement)

    @property
    def model(self) -> ChatModel:
        if self._model is None:
            raise ValueError("this classifier was released")
        return self._model

    def release(self) -> None:
        """Give the model's memory back."""
        self._model = self._scorer = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def _new_tokens(self) -> int:
        return 1 if isinstance(self.answer, Likelier) else self.answer.new_tokens

    def _answers(self, prompts: Sequence[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], Judgement]]:
        if isinstance(self.answer, Likelier):
            for ids in prompts:
                yield ids, self.answer.judged(self._probability(ids, self.answer))
            return
        attempts = {
            attempt.id: attempt
            for ids in prompts
            for attempt in [
                Attempt.make(
                    behavior="judged",
                    attack="judge",
                    prompt_ids=ids,
                    prefill_ids=(),
                    sampling=Sampling(max_new_tokens=self._new_tokens),
                    run_seed=0,
                )
            ]
        }
        for completion in TransformersEngine(self.model).complete(list(attempts.values())):
            yield attempts[completion.attempt].prompt_ids, self.answer.read(completion.text)

    def _probability(self, ids: tuple[int, ...], words: Likelier) -> float:
        """Of the word for harmful among the two, as the next token."""
        self._scorer = self._scorer or Scorer.of(self.model)
        first = [self._first_id(word) for word in (words.harmful, words.safe)]
        logits = self._scorer.next_logits(ids).columns(torch.tensor(first, device=self.model.device))
        return float(logits[0].double().softmax(0)[0])

    def _first_id(self, word: str) -> int:
        return self.model.chat.tokenise(word)[0]


def load_classifier(options: LoadOptions, asked: Asked) -> Classifier:
    """The classifier, its model loaded.

    Raises:
        UserError: the model or its template cannot be used, or it needs a policy and none was given.
    """
    preset = asked.preset
    if preset.needs_policy and asked.policy is None:
        raise UserError(
            f"{preset.name} judges by one policy at a time: give it with --policy FILE (the model's card lists the "
            "wordings that it was trained on)"
        )
    model = load(LoadOptions(**{**vars(options), "format": FormatChoice.PLAIN, "chat_template": None}))
    tokenizer = model.chat.tokenizer
    special = model.chat.special_tokens
    asking: TemplateAsking | ChatAsking
    if preset.template is not None:
        bos = tokenizer.bos_token
        asking = TemplateAsking(
            preset.template, asked.source, asked.policy or "", bos if isinstance(bos, str) else "", special
        )
        template = preset.template
    else:
        if tokenizer.chat_template is None:
            raise UserError(f"{options.name} has no chat template, by which {preset.name} is asked: give template=FILE")
        asking = ChatAsking(tokenizer, asked.policy if preset.needs_policy else None, special)
        template = tokenizer.get_chat_template()
    if isinstance(preset.answer, Likelier):
        _check_words(model, preset.answer)
    identity = (model.info.weights_hash, model.info.tokenizer_hash, template, repr(preset.answer), asked.policy)
    info = JudgeInfo(
        name=f"classifier-{slug(options.name)}",
        version=content_hash(identity),
        kind="classifier",
        model=model.info,
        preset=preset.name,
        template=template,
        template_hash=content_hash(template),
        policy=asked.policy,
        reads=repr(preset.answer),
    )
    return Classifier(info, preset.answer, asking, model)


def _check_words(model: ChatModel, words: Likelier) -> None:
    first = [model.chat.tokenise(word)[:1] for word in (words.harmful, words.safe)]
    if first[0] == first[1] or not all(first):
        raise UserError(
            f"{words.harmful!r} and {words.safe!r} begin with the same token of {model.info.name}, so their "
            "probabilities do not tell them apart: give other words, or read=text"
        )
