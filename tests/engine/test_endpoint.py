"""Attempts through HTTP with ids: what a server with the same model answers is what the engine here writes.

The server speaks as vLLM does (`/v1/models`, `/v1/completions` with a prompt of ids and `return_token_ids`), with a
real model behind it.
"""

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from attempts import attempt, completed, tiny_chat

from fathom.cli.options import JUDGES
from fathom.command.audit import AuditRequest, run_audit
from fathom.command.request import ModelRequest
from fathom.engine import TransformersEngine
from fathom.engine.endpoint import EndpointEngine, ServedModel, connect
from fathom.errors import UserError
from fathom.model import ChatModel, LoadOptions, load
from fathom.organism import stage_directory
from fathom.records import Attempt, Completion, Finish, Sampling
from tiny_models import random_ids

Answer = dict[str, object]


class Server(ThreadingHTTPServer):
    """Serves one model; `spoil` may replace an answer, `failures` come first: (status, headers, body)."""

    daemon_threads = True

    def __init__(self, model: ChatModel, name: str = "tiny", limit: int | None = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.name, self.limit = model, name, limit
        self.failures: list[tuple[int, dict[str, str], str]] = []
        self.spoil: Callable[[Answer], object] = lambda answer: answer
        self.asked: list[dict[str, object]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def answer(self, body: dict[str, object]) -> object:
        """As vLLM: the stop token is among the ids, and the prompt's ids come back."""
        read = msgspec.convert(
            {name: body[name] for name in ("temperature", "top_p", "top_k")} | {"max_new_tokens": body["max_tokens"]},
            Sampling,
        )
        prompt = msgspec.convert(body["prompt"], list[int])
        made = Attempt.make(
            behavior="served", attack="prefill", prompt_ids=prompt, prefill_ids=(), sampling=read, run_seed=0
        )
        made = msgspec.structs.replace(made, seed=body.get("seed", 0))
        with self.lock:
            (done,) = TransformersEngine(self.model).complete([made])
        stopped = done.finish is Finish.STOP
        choice = {
            "index": 0,
            "text": done.text,
            "finish_reason": "stop" if stopped else "length",
            "stop_reason": None,
            "token_ids": [*done.output_ids, *(body["stop_token_ids"][:1] if stopped else [])],  # type: ignore[index]
            "prompt_token_ids": body["prompt"],
        }
        return self.spoil({"id": "cmpl-1", "object": "text_completion", "choices": [choice], "usage": {}})


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        card = {"id": self.server.name, "object": "model", "max_model_len": self.server.limit}
        self._reply(200, {}, json.dumps({"object": "list", "data": [card]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.headers.append(dict(self.headers))
        with self.server.lock:
            failure = self.server.failures.pop(0) if self.server.failures else None
        if failure:
            self._reply(*failure)
        else:
            self._reply(200, {}, json.dumps(self.server.answer(body)))

    def _reply(self, status: int, headers: dict[str, str], text: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def model() -> ChatModel:
    return tiny_chat("llama")


@pytest.fixture
def server(model: ChatModel) -> Iterator[Server]:
    with Server(model) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def served(server: Server, model: ChatModel) -> ServedModel:
    return connect(server.url, model.chat, model.info)


def engine(server: Server, model: ChatModel, **options: object) -> EndpointEngine:
    waited: list[float] = []
    made = EndpointEngine(served(server, model), width=4, sleep=waited.append, **options)  # type: ignore[arg-type]
    object.__setattr__(made, "waited", waited)
    return made


def through(server: Server, model: ChatModel, attempts: list[Attempt]) -> dict[str, Completion]:
    return {done.attempt: done for done in engine(server, model).complete(attempts)}


def sweep() -> list[Attempt]:
    made = []
    for i in range(3):
        prompt, answer = random_ids(5 + 4 * i, seed=i), random_ids(8, seed=90 + i)
        for depth in (0, 3, 8):
            made.append(attempt(prompt, answer[:depth], behavior=str(i)))
            made.append(attempt(prompt, answer[:depth], behavior=str(i), temperature=0.9, top_p=0.9, top_k=20))
    return made


def test_completions_are_those_of_the_engine_here(server: Server, model: ChatModel) -> None:
    """Ids, text, finish; sampled ones too, since the attempt's seed is sent along and the server here honours it."""
    done = through(server, model, sweep())
    assert done == completed(model, sweep())
    assert {each.finish for each in done.values()} == set(Finish)
    sent: set[object] = {tuple(body["prompt"]) for body in server.asked}  # type: ignore[arg-type]
    assert sent == {each.prompt_ids + each.prefill_ids for each in sweep()}


def test_requests_hold_the_whole_attempt_and_nothing_of_the_servers_defaults(server: Server, model: ChatModel) -> None:
    each = attempt(random_ids(5, seed=1), (7, 8), temperature=0.5, top_k=3)
    through(server, model, [each])
    (body,) = server.asked
    assert body["prompt"] == list(each.prompt_ids + each.prefill_ids)
    assert body["seed"] == each.seed
    assert body["return_token_ids"] is True
    assert (body["temperature"], body["top_k"], body["top_p"], body["max_tokens"]) == (0.5, 3, 1.0, 12)
    assert body["repetition_penalty"] == 1.0
    assert sorted(model.chat.stop_ids) == body["stop_token_ids"]


def test_what_cannot_differ_is_asked_once(server: Server, model: ChatModel) -> None:
    prompt = random_ids(6, seed=4)
    twice = [attempt(prompt, (1, 2)), attempt((*prompt, 1), (2,))]
    assert len(through(server, model, twice)) == 2
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server: Server, model: ChatModel) -> None:
    server.failures = [(503, {}, "{}"), (429, {"Retry-After": "7"}, "{}"), (500, {}, "not JSON")]
    asking = engine(server, model)
    each = attempt(random_ids(5, seed=0))
    (done,) = asking.complete([each])
    assert done == completed(model, [each])[each.id]
    assert asking.waited == [1.0, 7.0, 4.0]  # type: ignore[attr-defined]


def test_a_server_that_stays_away_is_one_line_and_nothing_is_lost(server: Server, model: ChatModel) -> None:
    asking = engine(server, model, tries=3)
    produced = asking.complete(sweep())
    kept = [next(produced)]
    server.failures = [(503, {}, json.dumps({"error": {"message": "loading\nthe\x1b[31m model"}}))] * 100
    with pytest.raises(UserError, match=r"503 \(loading the \[31m model\); tried 3 times") as error:
        kept += list(produced)
    assert "\n" not in str(error.value)
    server.failures = []
    rest = [each for each in sweep() if each.id not in {done.attempt for done in kept}]
    assert {**{done.attempt: done for done in kept}, **through(server, model, rest)} == completed(model, sweep())


def test_no_server_at_all(model: ChatModel) -> None:
    with pytest.raises(UserError, match="is the server up"):
        connect("http://127.0.0.1:9/v1", model.chat, model.info)
    with pytest.raises(UserError, match="give a URL such as"):
        connect("localhost:8000", model.chat, model.info)


REFUSED = [
    (400, '{"error": {"message": "unknown field"}}', "refuses with 400: unknown field"),
    (404, '{"message": "no such model", "code": 404}', "404: no such model"),
    (401, "", "FATHOM_API_KEY"),
]


@pytest.mark.parametrize(("status", "body", "said"), REFUSED)
def test_what_a_server_refuses_is_not_tried_again(
    status: int, body: str, said: str, server: Server, model: ChatModel
) -> None:
    server.failures = [(status, {}, body)]
    with pytest.raises(UserError, match=said):
        through(server, model, [attempt((1, 2, 3))])
    assert len(server.asked) == 1


def without_ids(answer: Answer) -> Answer:
    for choice in answer["choices"]:  # type: ignore[attr-defined]
        del choice["token_ids"]
    return answer


def with_bos(answer: Answer) -> Answer:
    for choice in answer["choices"]:  # type: ignore[attr-defined]
        choice["prompt_token_ids"] = [1, *choice["prompt_token_ids"]]
    return answer


SPOILT = [
    (without_ids, "no token ids"),
    (with_bos, "changed the prompt"),
    (lambda _: {"choices": []}, "no token ids"),
    (lambda _: "hello", "does not answer as the OpenAI API does"),
]


@pytest.mark.parametrize(("spoil", "said"), SPOILT)
def test_an_inexact_answer_is_refused(
    spoil: Callable[[Answer], object], said: str, server: Server, model: ChatModel
) -> None:
    server.spoil = spoil
    with pytest.raises(UserError, match=said):
        through(server, model, [attempt((1, 2, 3))])


def test_the_shorter_context_counts_before_anything_is_asked(server: Server, model: ChatModel) -> None:
    server.limit = 20
    with pytest.raises(UserError, match="20 prompt"):
        engine(server, model).complete([attempt(random_ids(20, seed=0))])
    assert served(server, model).context == 20
    server.limit = None
    assert served(server, model).context == model.context
    assert not server.asked


def test_the_model_is_found_by_name_or_alone(server: Server, model: ChatModel) -> None:
    assert served(server, model).served == "tiny"
    assert served(server, model).info.endpoint == server.url
    server.name = "other"
    assert served(server, model).served == "other", "the only one there is"
    with pytest.raises(UserError, match=r"does not serve mine; it serves other: name one with --endpoint-model"):
        connect(server.url, model.chat, model.info, name="mine")


def test_the_key_is_sent_and_no_other_services(
    server: Server, model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    through(server, model, [attempt((1, 2))])
    monkeypatch.setenv("FATHOM_API_KEY", "mine")
    through(server, model, [attempt((1, 2))])
    assert [headers.get("Authorization") for headers in server.headers] == [None, "Bearer mine"]


def request(path: Path, **others: Any) -> AuditRequest:
    return AuditRequest(
        model=ModelRequest(name="organism:natural"), limit=2, depths="0,2", max_new_tokens=40, output=path, **others
    )


def test_an_audit_through_a_server_is_the_audit_here_but_for_what_needs_weights(tmp_path: Path) -> None:
    natural = load(LoadOptions(name=str(stage_directory("natural"))))
    with Server(natural, name="organism:natural", limit=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        remote = run_audit(request(tmp_path / "remote", endpoint=server.url), JUDGES)
        asked = len(server.asked)
        again = run_audit(request(tmp_path / "remote", endpoint=server.url), JUDGES)
        assert len(server.asked) == asked, "what is there is not asked for again"
        for option in ({"base": "organism:base"}, {}):
            bad = request(tmp_path / "bad", endpoint=server.url, **option)
            if not option:
                bad = dataclasses.replace(bad, model=ModelRequest(name="organism:natural", dtype="bfloat16"))
            with pytest.raises(UserError, match="with --endpoint"):
                run_audit(bad, JUDGES)
        server.shutdown()
    here = run_audit(request(tmp_path / "here", base="none"), JUDGES)
    assert remote is not None
    assert here is not None
    assert again is not None
    assert again.audit.attacks == remote.audit.attacks == here.audit.attacks
    assert remote.audit.benign == here.audit.benign
    assert not remote.audit.divergence
    assert not remote.audit.recovery
    assert here.audit.recovery
    assert any("server" in note and "left out" in note for note in remote.audit.notes)
    page = remote.report_path.read_text(encoding="utf-8")
    assert server.url in page
    assert "not seen" in page
