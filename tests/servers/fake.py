"""A server that speaks the contracts of vLLM, SGLang and OpenAI's completions, with true numbers and with faults.

Shapes and refusals are those of the real ones (vLLM 0.32, SGLang 0.5.23). The numbers come from any function of token
ids, such as a tiny model's forward.
"""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

Numbers = Callable[[tuple[int, ...]], np.ndarray]
"""Log-probs of every id given those before it; the first is NaN."""
_CLOSED = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them."
BLOCK = 16
"""vLLM's cache keeps whole blocks of this many ids."""


class GoneError(Exception):
    """The connection is closed without an answer."""


@dataclass
class ReplyError(Exception):
    """An answer other than the usual one."""

    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeServer:
    """One server with one base model and its adapters.

    Faults: `before(path, body)` may wait or raise `ReplyError` or `GoneError`; `after(path, body, answer)` returns what
    is answered.
    """

    kind: str
    """`vllm`, `sglang` or `openai`."""
    models: dict[str, Numbers]
    """Name -> numbers; the first is the base, the others are its adapters."""
    root: str = ""
    """The folder that the base was started with."""
    tokenizer: Any = None
    longest: int = 2048
    fast: str = "yes"
    """vLLM's `/inference/v1/generate`: `yes`, `closed` (403), `v1` (400) or `none` (404)."""
    cached: bool = True
    """Whether a prefix cache is kept, with vLLM's answers without numbers where it reaches too far."""
    takes_ids: bool = True
    takes_zero: bool = True
    owner: str = ""
    version: str = ""
    before: Callable[[str, dict[str, Any]], None] | None = None
    after: Callable[[str, dict[str, Any], dict[str, Any]], Any] | None = None
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """What was posted."""
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    seen: set[tuple[int, ...]] = field(default_factory=set)
    cached_ids: list[tuple[int, int]] = field(default_factory=list)
    """Of each scored text: ids from the cache, ids of its context."""
    flying: int = 0
    most: int = 0
    """Requests at once, at most."""
    together: set[frozenset[str]] = field(default_factory=set)
    """Which models were asked at the same time."""
    _under_way: list[str] = field(default_factory=list)
    _lock: Any = field(default_factory=threading.Lock)
    _server: Any = None
    _open: set[Any] = field(default_factory=set)

    @contextmanager
    def running(self) -> Iterator[FakeServer]:
        self.start()
        try:
            yield self
        finally:
            self.kill()

    def start(self) -> None:
        fake = self
        port = int(self.url.rpartition(":")[2]) if self.url else 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                fake._open.add(self.connection)

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: dict[str, Any] | None) -> None:
                try:
                    status, content, more = fake.answer(self.path, body, dict(self.headers))
                except GoneError:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                try:
                    self.send_response(status)
                    for name, value in {"Content-Type": "application/json", **more}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # the client has gone, or the server was killed
                    self.close_connection = True

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def kill(self) -> None:
        """Refuse connections and drop those that are open, as a process that has died does."""
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def answer(
        self, path: str, body: dict[str, Any] | None, headers: dict[str, str]
    ) -> tuple[int, Any, dict[str, str]]:
        model = str((body or {}).get("lora_path") or (body or {}).get("model") or "")
        with self._lock:
            if body is not None:
                self.asked.append((path, body))
                self.headers.append(headers)
            self.flying += 1
            self.most = max(self.most, self.flying)
            self._under_way.append(model)
            self.together.add(frozenset(self._under_way))
        try:
            if self.before is not None and body is not None:
                self.before(path, body)
            found = self._get(path) if body is None else self._post(path, body)
            if self.after is not None and body is not None:
                found = self.after(path, body, found)
        except ReplyError as reply:
            return reply.status, reply.body, reply.headers
        finally:
            with self._lock:
                self.flying -= 1
                self._under_way.remove(model)
        return 200, found, {}

    def scored(self) -> list[dict[str, Any]]:
        """The requests for log-probs so far."""
        return [body for path, body in self.asked if path != "/tokenize"]

    def _get(self, path: str) -> dict[str, Any]:
        base, *adapters = self.models
        if path == "/v1/models" and self.kind != "none":
            owner = self.owner or self.kind
            cards = [{"id": base, "object": "model", "owned_by": owner, "root": self.root, "parent": None}]
            cards[0] |= {"max_model_len": self.longest} if self.kind != "openai" else {}
            cards += [
                {"id": name, "object": "model", "owned_by": owner, "root": f"/loras/{name}", "parent": base}
                for name in adapters
            ]
            return {"object": "list", "data": cards}
        if self.kind == "vllm" and path == "/version":
            return {"version": self.version or "0.32.0"}
        if self.kind == "sglang" and path == "/model_info":
            told = {"weight_version": self.version or "default", "is_generation": True}
            return {"model_path": self.root, "tokenizer_path": self.root, **told}
        if self.kind == "sglang" and path == "/server_info":
            return {
                "max_req_input_len": self.longest,
                "dtype": "float32",
                "served_model_name": base,
                "version": "0.5.23",
            }
        raise ReplyError(404, {"detail": "Not Found"})

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        posts = {
            ("vllm", "/inference/v1/generate"): self._generate,
            ("vllm", "/v1/completions"): self._prompt_logprobs,
            ("vllm", "/tokenize"): self._tokenize,
            ("sglang", "/generate"): self._sglang,
            ("openai", "/v1/completions"): self._echo,
        }
        if (self.kind, path) not in posts:
            raise ReplyError(404, {"detail": "Not Found"})
        return posts[self.kind, path](body)

    def _numbers(self, name: str, ids: Sequence[int], *, longest: int) -> list[float]:
        if name not in self.models:
            raise ReplyError(404, {"error": {"message": f"The model `{name}` does not exist.", "code": 404}})
        if len(ids) > longest:
            raise ReplyError(400, {"error": {"message": f"the maximum context length is {self.longest} tokens"}})
        return [float(value) for value in self.models[name](tuple(ids))]

    def _reach(self, ids: tuple[int, ...], block: int) -> int:
        """How many ids the cache has of a text's beginning."""
        found = 0
        with self._lock:
            for known in self.seen if self.cached else ():
                size = next((at for at, (a, b) in enumerate(zip(known, ids, strict=False)) if a != b), None)
                found = max(found, min(len(known), len(ids)) if size is None else size)
            self.seen.add(ids)
        return min(found, len(ids) - 1) // block * block

    def _generate(self, body: dict[str, Any]) -> dict[str, Any]:
        wrong = {
            "none": ReplyError(404, {"detail": "Not Found"}),
            "closed": ReplyError(403, {"error": {"message": _CLOSED, "code": 403}}),
            "v1": ReplyError(400, {"error": {"message": "prompt_logprob_token_ids requires the V2 model runner"}}),
        }
        if self.fast in wrong:
            raise wrong[self.fast]
        ids, wanted = tuple(body["token_ids"]), body["sampling_params"]
        start, asked = wanted["prompt_logprob_start"], wanted["prompt_logprob_token_ids"]
        numbers = self._numbers(body["model"], ids, longest=self.longest - 1)
        if len(asked) != len(ids) - 1 - start:
            raise ReplyError(400, {"error": {"message": "the number of rows must be prompt_len - 1 - start"}})
        assert [row[0] for row in asked] == list(ids[start + 1 :]), "other ids than the text's own"
        reach = 0 if wanted["skip_reading_prefix_cache"] else self._reach(ids, BLOCK)
        self.cached_ids.append((reach, start + 1))
        packed = None
        if reach <= start:
            file = io.BytesIO()
            np.save(file, np.array(numbers[start + 1 :], np.float32)[:, None])
            packed = base64.b64encode(file.getvalue()).decode()
        usage = {"prompt_tokens": len(ids), "prompt_tokens_details": {"cached_tokens": reach}}
        return {"request_id": "r", "choices": [{"token_ids": [0]}], "prompt_token_id_logprobs": packed, "usage": usage}

    def _prompt_logprobs(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = body["prompt"]
        numbers = self._numbers(body["model"], ids, longest=self.longest - 1)
        if body["max_tokens"] == 0 and not body.get("echo"):
            raise ReplyError(400, {"error": {"message": "max_tokens must be at least 1, got 0."}})
        rows: list[Any] = [None]
        for token, value in zip(ids[1:], numbers[1:], strict=True):
            rows.append({str(token): {"logprob": value, "rank": 1, "decoded_token": "x"}})
        return {"choices": [{"index": 0, "text": "x", "prompt_logprobs": rows}], "usage": {"prompt_tokens": len(ids)}}

    def _tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        if "messages" in body:
            ids = self.tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, tokenize=True, return_dict=False
            )
        else:
            ids = self.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"]).input_ids
        return {"count": len(ids), "max_model_len": self.longest, "tokens": list(ids), "token_strs": None}

    def _sglang(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, start = tuple(body["input_ids"]), body["logprob_start_len"]
        if len(ids) >= self.longest:
            raise ReplyError(400, {"error": {"message": f"Input length ({len(ids)} tokens) exceeds the maximum"}})
        name = body.get("lora_path") or next(iter(self.models))
        numbers = self._numbers(name, ids, longest=self.longest)
        reach = min(self._reach(ids, 1), start)
        self.cached_ids.append((reach, start + 1))
        last = len(self.tokenizer) - 1
        echoed = [0 if token >= last else token for token in ids]
        rows = [[None, echoed[start], None]]
        rows += [[numbers[at], echoed[at], None] for at in range(start + 1, len(ids))]
        info = {"prompt_tokens": len(ids), "cached_tokens": reach, "input_token_logprobs": rows}
        return {"text": "", "meta_info": info}

    def _echo(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt, more = body["prompt"], body["max_tokens"]
        if isinstance(prompt, list) and not self.takes_ids:
            raise ReplyError(400, {"error": {"message": "prompt must be a string"}})
        if not more and not self.takes_zero:
            raise ReplyError(400, {"error": {"message": "max_tokens must be at least 1"}})
        ids = prompt if isinstance(prompt, list) else self.tokenizer(prompt, add_special_tokens=False).input_ids
        numbers = self._numbers(body["model"], ids, longest=self.longest - more)
        logprobs = {
            "tokens": [self.tokenizer.decode([token]) for token in ids] + ["x"] * more,
            "token_logprobs": [None, *numbers[1:], *[-1.5] * more],
            "top_logprobs": [None] * (len(ids) + more),
            "text_offset": [0] * (len(ids) + more),
        }
        return {"choices": [{"index": 0, "text": "", "logprobs": logprobs}], "usage": {"prompt_tokens": len(ids)}}


def slowly(seconds: float) -> Callable[[str, dict[str, Any]], None]:
    """A fault: every answer takes a while."""
    return lambda _path, _body: time.sleep(seconds)
