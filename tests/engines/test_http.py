"""The sampler behind a URL: what is asked, what comes back, and every way in which a server can be wrong."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from served import Fault, Served, serve

from covey.engines.http import HttpSampler, Server
from covey.engines.loading import LoadedModel, load_model
from covey.engines.sampler import HFSampler
from covey.errors import ConfigError, CoveyError, ServerError
from covey.types import Request, Sampling, Stop

PROMPTS = ("abc", "dog", "reverse")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("tiny")


@pytest.fixture
def served(loaded: LoadedModel) -> Served:
    return Served(loaded)


@pytest.fixture
def server(served: Served) -> Iterator[Server]:
    with serve(served) as url:
        yield Server(url=url, model="tiny", pause_s=0.001, longest_pause_s=0.002, timeout_s=20, concurrency=4)


def ids(served: Served, text: str) -> tuple[int, ...]:
    return tuple(served.loaded.tokenizer(text)["input_ids"])


def requests(served: Served, samples: int = 2) -> list[Request]:
    return [Request(text, ids(served, text), tuple(range(samples))) for text in PROMPTS]


def sampling(served: Served, **changes: Any) -> Sampling:
    return replace(Sampling(max_tokens=12, stop_ids=served.loaded.stop_ids), **changes)


def always(status: int, text: str = "no", **headers: str) -> Fault:
    return lambda _: (status, text.encode(), {name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_samples_are_those_of_the_model_that_is_served(served: Served, server: Server, temperature: float) -> None:
    asked, how = requests(served), sampling(served, temperature=temperature)
    with HttpSampler(server) as sampler:
        found = sampler.sample(asked, how)
    expected = HFSampler(served.loaded.model, tokenizer=served.loaded.tokenizer).sample(asked, how)
    assert [[(s.turn.tokens, s.stop) for s in row] for row in found] == [
        [(s.turn.tokens, s.stop) for s in row] for row in expected
    ]
    assert any(s.stop is Stop.END for row in found for s in row)


def test_a_response_that_hits_the_limit_is_truncated(served: Served, server: Server) -> None:
    with HttpSampler(server) as sampler:
        found = sampler.sample(requests(served), sampling(served, max_tokens=1))
    assert {(s.stop, len(s.turn.tokens)) for row in found for s in row} == {(Stop.LENGTH, 1)}


def test_nothing_is_left_to_the_servers_defaults(served: Served, server: Server) -> None:
    how = sampling(served, temperature=0.7, top_p=0.9, top_k=5, stop=("x",))
    with HttpSampler(replace(server, token="secret")) as sampler:
        sampler.sample([Request("one", ids(served, "abc"), (2**63 + 5,))], how)
    body = served.asked[-1]
    told = {
        name: body[name] for name in ("temperature", "top_p", "top_k", "max_tokens", "seed", "stop", "stop_token_ids")
    }
    assert told == {
        "temperature": 0.7, "top_p": 0.9, "top_k": 5, "max_tokens": 12, "seed": 5, "stop": ["x"],
        "stop_token_ids": list(served.loaded.stop_ids),
    }  # fmt: skip
    neutral = {"min_p": 0, "presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1, "n": 1}
    assert {name: body[name] for name in neutral} == neutral
    assert served.tokens_seen[-1] == "Bearer secret"
    assert "secret" not in repr(replace(server, token="secret"))


@pytest.mark.parametrize(
    "fault",
    [*(always(status) for status in (408, 409, 429, 500, 502, 503, 504)), lambda _: (0, b"", {})],
    ids=["408", "409", "429", "500", "502", "503", "504", "hangs up"],
)
def test_a_passing_fault_costs_nothing_but_a_repetition(served: Served, server: Server, fault: Fault) -> None:
    asked, how = requests(served), sampling(served)
    with HttpSampler(server) as sampler:
        right = sampler.sample(asked, how)
        before = len(served.asked)
        served.faults = [fault, None, fault]
        assert sampler.sample(asked, how) == right
    assert len(served.asked) == before + 6 + 2


def test_the_pause_grows_and_obeys_the_server(served: Served, server: Server) -> None:
    pauses: list[float] = []
    served.faults = [always(503), always(429, Retry_After="7"), always(503), always(503, Retry_After="soon")]
    with HttpSampler(replace(server, pause_s=1.0, longest_pause_s=4.0), sleep=pauses.append) as sampler:
        sampler.sample([Request("one", ids(served, "abc"), (1,))], sampling(served))
    assert len(pauses) == 4
    assert pauses[1] == 7.0
    assert all(0 <= pause <= most for pause, most in zip((pauses[0], *pauses[2:]), (1.0, 4.0, 4.0), strict=True))


def wrong(change: Mapping[str, Any], drop: str = "") -> Fault:
    """An answer with something changed or left out of its choice."""

    def fault(body: Mapping[str, Any]) -> tuple[int, bytes, Mapping[str, str]]:
        choice = {"prompt_token_ids": body["prompt"], "token_ids": [1, 2], "finish_reason": "stop", **change}
        choice.pop(drop, None)
        return 200, json.dumps({"choices": [choice]}).encode(), {}

    return fault


LASTING = {
    "refused": (always(400, "too long"), "status 400: too long"),
    "not found": (always(404, "nothing here"), "status 404"),
    "no json": (always(200, "<html>"), "its answer is no JSON: <html>"),
    "a list": (always(200, "[]"), "its answer is no object"),
    "no choices": (always(200, "{}"), "no choices with prompt_token_ids and token_ids"),
    "empty choices": (always(200, '{"choices": []}'), "no choices with"),
    "no ids": (wrong({}, drop="token_ids"), "return_token_ids"),
    "null ids": (wrong({"token_ids": None}), "return_token_ids"),
    "other prompt": (wrong({"prompt_token_ids": [1]}), "another prompt than the one that was sent"),
    "unknown end": (wrong({"finish_reason": "abort"}), "finish_reason is 'abort'"),
}


@pytest.mark.parametrize("name", LASTING)
def test_a_lasting_fault_is_one_line(served: Served, server: Server, name: str) -> None:
    fault, text = LASTING[name]
    served.faults = [fault] * 50
    with HttpSampler(server) as sampler, pytest.raises(ServerError) as caught:
        sampler.sample(requests(served), sampling(served))
    line = str(caught.value)
    assert text in line
    assert line.startswith(f"server {server.url}: request ")
    assert "\n" not in line
    assert caught.value.exit_code == 69


def test_retries_end(served: Served, server: Server) -> None:
    served.faults = [always(503, "busy")] * 50
    with HttpSampler(replace(server, retries=2)) as sampler, pytest.raises(ServerError, match="status 503: busy"):
        sampler.sample([Request("one", ids(served, "abc"), (1,))], sampling(served))
    assert len(served.asked) == 3


def test_a_server_that_fits_passes_the_check(served: Served, server: Server) -> None:
    with HttpSampler(server) as sampler:
        sampler.check(lambda text: ids(served, text))
    assert len(served.asked) == 3


def test_nobody_listens(served: Served) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with HttpSampler(Server(url=url, model="tiny")) as sampler, pytest.raises(ServerError, match="ConnectError"):
            sampler.check(lambda text: ids(served, text))


def test_another_model_is_served(served: Served, server: Server) -> None:
    with HttpSampler(replace(server, model="tiny2")) as sampler, pytest.raises(ConfigError) as caught:
        sampler.check(lambda text: ids(served, text))
    assert "serves no 'tiny2'. Did you mean 'tiny'?" in str(caught.value)


def test_the_only_model_needs_no_name(served: Served, server: Server) -> None:
    with HttpSampler(replace(server, model=None)) as sampler:
        sampler.check(lambda text: ids(served, text))
        assert sampler.model == "tiny"
    assert {body["model"] for body in served.asked} == {"tiny"}
    served.models = lambda: {"data": [{"id": "a"}, {"id": "b"}]}  # type: ignore[method-assign]
    with HttpSampler(replace(server, model=None)) as sampler, pytest.raises(ConfigError, match="Known: a, b"):
        sampler.check(lambda text: ids(served, text))


def test_other_token_ids(served: Served, server: Server) -> None:
    served.encode = lambda text: [token + 1 for token in ids(served, text)][:3]
    with HttpSampler(server) as sampler, pytest.raises(CoveyError, match="other token ids: the server makes"):
        sampler.check(lambda text: ids(served, text))
