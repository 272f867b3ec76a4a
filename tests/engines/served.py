"""A small OpenAI-compatible server over loopback that really serves a model, and faults on request."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from covey.engines.loading import LoadedModel
from covey.engines.sampler import HFSampler
from covey.types import Request, Sampling, Stop

Fault = Callable[[Mapping[str, Any]], tuple[int, bytes, Mapping[str, str]] | None]
"""Body of a request -> the wrong answer to give instead (status, bytes, headers), or None for the right one."""


@dataclass
class Served:
    """A model behind a URL. `faults` are used up one per completion request; `asked` holds every body."""

    loaded: LoadedModel
    name: str = "tiny"
    encode: Callable[[str], list[int]] | None = None
    faults: list[Fault | None] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    tokens_seen: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sampler, self.lock = HFSampler(self.loaded.model, tokenizer=self.loaded.tokenizer), threading.Lock()

    def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": self.name, "object": "model"}]}

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        if isinstance(prompt, str):
            encode = self.encode or (lambda text: self.loaded.tokenizer(text)["input_ids"])
            prompt = encode(prompt)
        sampling = Sampling(
            temperature=body["temperature"],
            top_p=body["top_p"],
            top_k=body["top_k"],
            max_tokens=body["max_tokens"],
            stop_ids=tuple(body["stop_token_ids"]),
            stop=tuple(body["stop"]),
        )
        with self.lock:
            sample = self.sampler.sample([Request("served", tuple(prompt), (body["seed"],))], sampling)[0][0]
        choice = {
            "index": 0,
            "text": self.loaded.decode(sample.turn.tokens),
            "prompt_token_ids": list(prompt),
            "token_ids": list(sample.turn.tokens),
            "finish_reason": "length" if sample.stop is Stop.LENGTH else "stop",
        }
        return {"object": "text_completion", "model": self.name, "choices": [choice]}


@contextmanager
def serve(served: Served) -> Iterator[str]:
    """Serve on a free loopback port; the base URL, ending in /v1."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, payload: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def do_GET(self) -> None:
            self.answer(200, json.dumps(served.models()).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.asked.append(body)
            served.tokens_seen.append(self.headers.get("Authorization"))
            fault = served.faults.pop(0) if served.faults and isinstance(body["prompt"], list) else None
            wrong = fault(body) if fault is not None else None
            if wrong is None:
                self.answer(200, json.dumps(served.complete(body)).encode())
            elif wrong[0] == 0:  # hang up without a word
                self.close_connection = True
            else:
                self.answer(*wrong)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
