"""Attempts through HTTP with ids: what a server with the same model answers is what the engine here writes.

The server speaks as vLLM 0.32.0 was heard to (`/v1/models`, `/v1/completions` with a prompt of ids and
`return_token_ids`, the words of its errors), with a real model behind it.
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

from fathom.audit.execute import _batches
from fathom.cli.options import JUDGES
from fathom.command.attack import AttackRequest
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

    daemon_threads = False  # closing waits for the last answers: the next test uses the same model
    request_queue_size = 256

    def __init__(self, model: ChatModel, name: str = "tiny", limit: int | None = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.name, self.limit = model, name, limit
        self.cap: int | None = None  # as --override-generation-config '{"max_new_tokens": …}'
        self.key: str | None = None  # as --api-key
        self.failures: list[tuple[int, dict[str, str], str]] = []
        self.spoil: Callable[[Answer], object] = lambda answer: answer
        self.asked: list[dict[str, object]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def answer(self, body: dict[str, object]) -> object:
        """As vLLM: the stop token is among the ids and not in the text, and the prompt's ids come back."""
        budget = min(self.cap or 10_000, body["max_tokens"])  # type: ignore[call-overload]
        read = msgspec.convert(
            {name: body[name] for name in ("temperature", "top_p", "top_k")} | {"max_new_tokens": budget},
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
        if self.path != "/v1/models":
            self._reply(404, {}, '{"detail":"Not Found"}')
            return
        if self.server.key is not None and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            self._reply(401, {}, '{"error":"Unauthorized"}')
            return
        card = {"id": self.server.name, "object": "model", "max_model_len": self.server.limit}
        self._reply(200, {}, json.dumps({"object": "list", "data": [card]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.headers.append(dict(self.headers))
        with self.server.lock:
            failure = self.server.failures.pop(0) if self.server.failures else None
        unknown = [id_ for id_ in body["prompt"] if id_ >= self.server.model.info.vocabulary]
        if failure:
            self._reply(*failure)
        elif unknown:
            said = {"message": f"Token id {unknown[0]} is out of vocabulary", "type": "BadRequestError", "code": 400}
            self._reply(400, {}, json.dumps({"error": said}))
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
    return connect(server.url, model.chat, model.info, width=4)


def engine(server: Server, model: ChatModel, **options: object) -> EndpointEngine:
    waited: list[float] = []
    made = EndpointEngine(served(server, model), sleep=waited.append, **options)  # type: ignore[arg-type]
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


def test_that_requests_wait_is_said_once(
    server: Server, model: ChatModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All requests wait for the same server; when it is away again after a while, that is said again."""
    server.failures = [(503, {}, '{"error": {"message": "loading"}}')] * 3
    assert len(list(engine(server, model).complete(sweep()))) == len(sweep())
    assert [record.getMessage() for record in caplog.records] == [
        f"{server.url}: the server answers 503 (loading); trying again, up to 5 times over 31 seconds"
    ]
    said: list[str] = []
    asking = engine(server, model, tries=3, notify=said.append)
    for _ in range(2):
        server.failures = [(429, {"Retry-After": "7"}, "{}")] * 2
        list(asking.complete([attempt(random_ids(5, seed=0))]))
        monkeypatch.setattr("fathom.engine.http._QUIET", -1.0)  # as if it had answered for a while
    assert [line.partition("trying again, ")[2] for line in said] == [
        "up to 2 times over 14 seconds",
        "up to 2 times over 14 seconds",
        "up to 1 times over 7 seconds",
    ]


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


def test_answers_that_came_before_an_error_are_written() -> None:
    def records() -> Iterator[int]:
        yield from range(3)
        raise UserError("away")

    handed: list[list[int]] = []
    with pytest.raises(UserError, match="away"):
        handed.extend(_batches(records()))
    assert handed == [[0, 1, 2]]


def test_no_server_at_all(model: ChatModel) -> None:
    with pytest.raises(UserError, match="is the server up"):
        connect("http://127.0.0.1:9/v1", model.chat, model.info)


NO_URLS = ["", "localhost:8000", "http://localhost:abc/v1", "http://[::1/v1", "http:///v1", "http://a b/v1"]


@pytest.mark.parametrize("url", NO_URLS)
def test_what_is_no_url_is_said_in_one_line(url: str, model: ChatModel) -> None:
    with pytest.raises(UserError, match="give a URL such as http://localhost:8000/v1"):
        connect(url, model.chat, model.info)


@pytest.mark.parametrize("path", ["", "/v1/completions"])
def test_a_url_with_another_end_is_told_the_right_one(path: str, server: Server, model: ChatModel) -> None:
    with pytest.raises(UserError, match=r"404: Not Found; the URL should end in /v1"):
        connect(server.url.removesuffix("/v1") + path, model.chat, model.info)


@pytest.mark.parametrize("key", ["one\ntwo", "ключ"])
def test_a_key_that_fits_into_no_header(
    key: str, server: Server, model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FATHOM_API_KEY", key)
    with pytest.raises(UserError, match="the key in FATHOM_API_KEY") as error:
        served(server, model)
    assert key not in str(error.value)


def test_a_server_with_a_key(server: Server, model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "secret"
    with pytest.raises(UserError, match="401: Unauthorized; the key is read from FATHOM_API_KEY"):
        served(server, model)
    monkeypatch.setenv("FATHOM_API_KEY", "secret")
    assert served(server, model).served == "tiny"


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


def in_other_words(answer: Answer) -> Answer:
    for choice in answer["choices"]:  # type: ignore[attr-defined]
        choice["text"] = "quite other words"
    return answer


def aborted(answer: Answer) -> Answer:
    for choice in answer["choices"]:  # type: ignore[attr-defined]
        choice |= {"token_ids": choice["token_ids"][:2], "text": "", "finish_reason": "abort"}
    return answer


SPOILT = [
    (in_other_words, "reads its answer as 'quite other words', and the tokenizer of"),
    (aborted, r"ended an answer after 2 of 12 tokens \(finish reason: abort\)"),
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


def test_an_answer_that_the_server_cuts_short_is_no_answer_of_the_model(server: Server, model: ChatModel) -> None:
    """A limit of the server's own had counted as the budget of the attempt."""
    server.cap = 3
    with pytest.raises(UserError, match=r"after 3 of 12 tokens \(finish reason: length\).*override-generation-config"):
        through(server, model, sweep())


def test_spaces_and_special_tokens_make_no_other_vocabulary(server: Server, model: ChatModel) -> None:
    def loosely(answer: Answer) -> Answer:
        for choice in answer["choices"]:  # type: ignore[attr-defined]
            choice["text"] = f" <end>{choice['text'].replace(' ', '')}\ufffd"
        return answer

    server.spoil = loosely
    assert through(server, model, sweep()) == completed(model, sweep())


def test_an_id_that_the_server_does_not_know(server: Server, model: ChatModel) -> None:
    with pytest.raises(UserError, match="out of vocabulary; the model there has another vocabulary than MODEL"):
        through(server, model, [attempt((1, model.info.vocabulary))])


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
    assert served(server, model).info.endpoint_model == "other"
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


def serving(model: ChatModel, name: str) -> Server:
    server = Server(model, name=name, limit=None)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def natural() -> ChatModel:
    return load(LoadOptions(name=str(stage_directory("natural"))))


def test_a_suite_leaves_out_what_needs_the_model_and_says_so(
    natural: ChatModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(natural, "organism:natural") as server:
        asked = AttackRequest(suite="paper", with_depth=False)
        small = {"depths": "0", "temperatures": "0", "prefixes": (), "endpoint": server.url}
        by_name = AttackRequest(attacks=["universal-suffix"], with_depth=False)
        bad = dataclasses.replace(request(tmp_path / "bad"), attacks=by_name, **small)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="universal-suffix needs the model itself and --endpoint has only"):
            run_audit(bad, JUDGES)
        assert not (tmp_path / "bad").exists()
        made = dataclasses.replace(request(tmp_path / "run"), limit=1, attacks=asked, **small)  # type: ignore[arg-type]
        made = dataclasses.replace(made, max_new_tokens=4)
        done = run_audit(made, JUDGES)
        server.shutdown()
    assert "left out of the suite: universal-suffix: it needs the model itself" in capsys.readouterr().err
    assert done is not None
    assert {row.attack for row in done.audit.attacks} == {"direct", "decoding", "framing"}


def test_a_run_goes_on_at_another_address_and_not_with_another_model(natural: ChatModel, tmp_path: Path) -> None:
    small = dataclasses.replace(request(tmp_path / "run"), limit=1, depths="0", temperatures="0", max_new_tokens=4)
    with serving(natural, "one") as server:
        run_audit(dataclasses.replace(small, endpoint=server.url), JUDGES)
        asked = len(server.asked)
        moved = server.url.replace("127.0.0.1", "localhost")
        run_audit(dataclasses.replace(small, endpoint=moved), JUDGES)
        assert len(server.asked) == asked
        server.name = "two"
        with pytest.raises(UserError, match='served: "one" there, "two" now'):
            run_audit(dataclasses.replace(small, endpoint=server.url), JUDGES)
        server.shutdown()


def test_a_servers_options_without_a_server(tmp_path: Path) -> None:
    """The model would be run here, by whoever meant a server."""
    for option in ({"endpoint_model": "mine"}, {"endpoint_requests": 4}):
        with pytest.raises(UserError, match="without --endpoint"):
            run_audit(request(tmp_path / "bad", **option), JUDGES)
    assert not (tmp_path / "bad").exists()


def test_an_audit_through_a_server_is_the_audit_here_but_for_what_needs_weights(
    natural: ChatModel, tmp_path: Path
) -> None:
    with serving(natural, "organism:natural") as server:
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
