"""The sampler behind a URL: an OpenAI-compatible server that takes token ids and returns token ids (vLLM's `return_token_ids`).

Ids are the truth on both sides: prompts are sent as ids, and a server that does not say which ids it sampled is refused. Every
sampling parameter is sent, so nothing comes from the server's own defaults or the model's generation_config.json. The tokens
of a sample depend on its request and its key (sent as `seed`), as far as the server keeps that promise.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from covey.errors import ConfigError, ServerError, did_you_mean
from covey.random import Draws
from covey.types import Request, Sample, Sampling, Stop, Turn

_AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})
"""Statuses after which asking again may help."""
_CONNECT_S = 5.0
_STOPS = {"stop": Stop.END, "length": Stop.LENGTH}


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where a model is served: base `url` (with /v1), its `model` name there (None: the only one), the `token` it asks for.

    `timeout_s` bounds one answer; `concurrency` requests are under way at a time; one that fails for a reason that may pass is
    repeated up to `retries` times, after a pause that doubles from `pause_s` to at most `longest_pause_s`.
    """

    url: str
    model: str | None = None
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 120.0
    concurrency: int = 64
    retries: int = 6
    pause_s: float = 0.5
    longest_pause_s: float = 30.0


class HttpSampler:
    """Continues token sequences on a server. Use it as a context manager or call `close`.

    Raises ServerError for whatever the server does wrong, after the retries that its `Server` allows.
    """

    def __init__(self, server: Server, *, sleep: Callable[[float], None] = time.sleep) -> None:
        import httpx2

        self.server, self.model, self._sleep = server, server.model, sleep
        headers = {"Authorization": f"Bearer {server.token}"} if server.token else {}
        self._client = httpx2.Client(
            base_url=f"{server.url.rstrip('/')}/",
            headers=headers,
            timeout=httpx2.Timeout(server.timeout_s, connect=_CONNECT_S),
            limits=httpx2.Limits(max_connections=server.concurrency),
        )

    def __enter__(self) -> HttpSampler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def check(self, encode: Callable[[str], Sequence[int]]) -> None:
        """Refuse a server that does not answer, serves other models, or makes other token ids of a text than `encode`.

        A refused connection is told at once: at the start nothing is gained by waiting.
        """
        listed = self._ask("GET", "models", None, "the list of models", patient=False)
        served = [str(item.get("id")) for item in listed.get("data", []) if isinstance(item, Mapping)]
        if self.model is None and len(served) == 1:
            self.model = served[0]
        if self.model not in served:
            found = "serves several models or none" if self.model is None else f"serves no '{self.model}'"
            right = did_you_mean(self.model or "", served) or "It serves none."
            raise ConfigError("engines.server.model", f"{self.server.url} {found}", right)
        for text in ("1+1=", "The cat's hat, 3.14!\n", "naïve — 東京"):
            body = self._body(text, Sampling(temperature=0.0, max_tokens=1), 0)
            theirs, ours = self._complete(body, "canary")[0], tuple(encode(text))
            if theirs != ours:
                found = f"the server makes {_brief(theirs)} of {text!r}, this tokenizer {_brief(ours)}"
                right = "Serve the same model, or give its folder."
                raise ConfigError(f"engines.server {self.server.url}", f"other token ids: {found}", right)

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample]]:
        """One sample per noise key of every request, in order; each is a request of its own."""
        with ThreadPoolExecutor(max_workers=self.server.concurrency) as pool:
            jobs = [
                [pool.submit(self._sample, request, key, sampling) for key in request.noise_keys]
                for request in requests
            ]
            done, _ = wait([job for row in jobs for job in row], return_when=FIRST_EXCEPTION)
            if any(job.exception() for job in done):
                pool.shutdown(wait=False, cancel_futures=True)  # the rest would be asked in vain
            return [[job.result() for job in row] for row in jobs]

    def _sample(self, request: Request, noise: int, sampling: Sampling) -> Sample:
        body = self._body(list(request.tokens), sampling, noise)
        prompt, tokens, reason = self._complete(body, f"request {request.id}")
        if prompt != request.tokens:
            raise self._wrong(f"request {request.id}", "it answered another prompt than the one that was sent")
        if reason not in _STOPS:
            raise self._wrong(f"request {request.id}", f"finish_reason is {reason!r}")
        return Sample(Turn(tokens, None), _STOPS[reason])

    def _body(self, prompt: str | list[int], sampling: Sampling, noise: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": prompt,
            "n": 1,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "seed": noise % 2**63,
            "stop": list(sampling.stop),
            "stop_token_ids": list(sampling.stop_ids),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "return_token_ids": True,
        }

    def _complete(self, body: Mapping[str, Any], what: str) -> tuple[tuple[int, ...], tuple[int, ...], Any]:
        """Prompt ids, response ids and the reason of the end, as the server has them."""
        answer = self._ask("POST", "completions", body, what)
        try:
            choice = answer["choices"][0]
            prompt, tokens = choice["prompt_token_ids"], choice["token_ids"]
            return tuple(map(int, prompt)), tuple(map(int, tokens)), choice["finish_reason"]
        except (KeyError, IndexError, TypeError, ValueError):
            found = f"its answer has no choices with prompt_token_ids and token_ids: {json.dumps(answer):.120}"
            raise self._wrong(what, found, "covey needs a server with return_token_ids, such as vLLM.") from None

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, what: str, *, patient: bool = True
    ) -> dict[str, Any]:
        """The answer to one question, asked again while that may help."""
        import httpx2

        draws, found, wish = Draws("server", what, path), "", 0.0
        for attempt in range(self.server.retries + 1):
            if attempt:
                ceiling = min(self.server.longest_pause_s, self.server.pause_s * 2 ** (attempt - 1))
                self._sleep(max(wish, ceiling * draws.uniform()))
            try:
                response = self._client.request(method, path, json=body)
            except httpx2.TransportError as error:
                found = f"{type(error).__name__}: {error}"
                if not patient:
                    break
                continue
            if response.status_code == 200:
                return self._parse(response.text, what)
            found, wish = f"status {response.status_code}: {response.text:.120}", _wish(response.headers)
            if response.status_code not in _AGAIN:
                break
        raise self._wrong(what, found)

    def _parse(self, text: str, what: str) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except ValueError:
            raise self._wrong(what, f"its answer is no JSON: {text:.120}") from None
        if not isinstance(value, dict):
            raise self._wrong(what, f"its answer is no object: {text:.120}")
        return value

    def _wrong(
        self, what: str, found: str, right: str = "Look at the server's log, or mend engines.server.url."
    ) -> ServerError:
        return ServerError(f"server {self.server.url}", f"{what}: {found}", right)


def _wish(headers: Mapping[str, str]) -> float:
    """The pause in seconds that a server asks for (`Retry-After`), at most a minute; 0 if it asks for none."""
    try:
        return min(60.0, max(0.0, float(headers.get("retry-after", "0"))))
    except ValueError:
        return 0.0


def _brief(tokens: Sequence[int]) -> str:
    return str(list(tokens)) if len(tokens) <= 8 else f"[{', '.join(map(str, tokens[:8]))}, ...]"
