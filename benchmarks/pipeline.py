"""How many responses a second can everything but the models do? Each stage of the pipeline, on one core.

    python -m benchmarks.pipeline                 # 128 prompts with 8 responses each: under a minute
    python -m benchmarks.pipeline --responses 1   # as a data set with one response a prompt has it
    python -m benchmarks.pipeline --save          # also writes benchmarks/results/pipeline.json

Template, tokenizer and guidance are those of the configuration (the demo pair's); only the forward passes are left out:
a model answers with numbers that lie ready. So what is measured is what a GPU waits for. The rows are real prompts and
answers, each made another text by a number, so that nothing is in memory from a row before; prompts come with the
columns of a data set. Every round has rows of its own, and the least processor time of the rounds counts, since other
work on the machine changes it less than the clock's.

*stages* is the order of things of `gdr score`, one stage after the other over all rows in windows of 256; *whole* is
what users call, from file to file or from body to body.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from gdr_plugin import hookimpl

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "examples" / "demo-pair" / "gdr.yaml"
RESULTS = ROOT / "benchmarks" / "results" / "pipeline.json"
WINDOW = 256
SERVED = 8
"""Rows in one request to the server."""


class Costless:
    """A real model's chat format with log-probs that lie ready: a `LogprobModel` without a forward pass.

    Args:
        model: The model whose chat format and identity it has.
        side: `strong` or `weak`, whose numbers differ.
    """

    def __init__(self, model: Any, side: str) -> None:
        self.name, self.identity, self.chat = model.name, f"{model.identity} costless", model.chat
        start = 0 if side == "strong" else 7
        self.tokenizer = model.tokenizer.backend_tokenizer
        self._values = (-(np.arange(start, start + (1 << 20)) % 97 + 1) / 64).astype(np.float32)

    def score(self, spans: Sequence[Any]) -> list[Any]:
        """As many numbers as each span has ids to score."""
        return [self._values[: len(span.response)] for span in spans]

    def describe(self) -> dict[str, str]:
        """What it is."""
        return {"backend": "costless"}

    def unload(self) -> None:
        """Nothing is loaded."""


class CostlessPair:
    """A plugin that opens `costless:strong` and `costless:weak`: the models of a configuration, without forward passes.

    Args:
        config: The configuration.
    """

    def __init__(self, config: Path) -> None:
        from gdr_plugin.config.load import load_config
        from gdr_plugin.plugins.registry import Plugins

        self._config = load_config(config)
        plugins = Plugins()
        self._models = {
            side: Costless(plugins.open_model(getattr(self._config, side), self._config.limits), side)
            for side in ("strong", "weak")
        }

    @hookimpl
    def gdr_open_model(self, spec: Any, limits: Any) -> Any:
        """The model of a side."""
        return self._models[spec.target] if spec.scheme == "costless" else None

    @property
    def tokenizer(self) -> Any:
        """The strong model's, as the `tokenizers` package has it."""
        return self._models["strong"].tokenizer

    def config(self, store: Path | None = None) -> Any:
        """The configuration with the costless models.

        Args:
            store: The file that log-probs are kept in, if any.
        """
        from gdr_plugin.api.settings import ModelSpec
        from gdr_plugin.config.schema import StoreSection

        models = {side: ModelSpec(model=f"costless:{side}") for side in ("strong", "weak")}
        kept = None if store is None else StoreSection(path=str(store))
        return self._config.model_copy(update={**models, "store": kept})


@dataclass
class Stopwatch:
    """Processor seconds of each stage, the least of all rounds."""

    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Measure a stage: the block."""
        begun = time.process_time()
        yield
        taken = time.process_time() - begun
        self.stages[stage] = min(taken, self.stages.get(stage, taken))


def rows(prompts: int, responses: int, salt: str) -> list[dict[str, Any]]:
    """Rows as `gdr annotate` reads them, of real prompts and answers.

    Args:
        prompts: How many rows.
        responses: Responses of each.
        salt: Makes every text another one than those of other calls.
    """
    source = Path(__file__).parent / "data" / "responses.jsonl"
    real = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    answers = [response["text"] for row in real for response in row["responses"]]
    made = []
    for number in range(prompts):
        row = real[number % len(real)]
        texts = [
            {"text": f"({salt}-{number}-{at}) {answers[(number * responses + at) % len(answers)]}", "finished": True}
            for at in range(responses)
        ]
        prompt = f"{row['prompt']} ({salt}-{number})"
        made.append({"id": f"{salt}-{number}", "prompt": prompt, "responses": texts, "source": "benchmark"})
    return made


def score_rows_of(given: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same as `gdr score` reads them: one response a row."""
    return [
        {"id": f"{row['id']}-{at}", "prompt": row["prompt"], "response": response["text"], "source": row["source"]}
        for row in given
        for at, response in enumerate(row["responses"])
    ]


def write(path: Path, given: Sequence[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return path


def stages(watch: Stopwatch, pair: CostlessPair, source: Path, folder: Path) -> None:
    """Measure one stage after the other on the rows of a file."""
    from gdr_plugin.cli.score import _writer
    from gdr_plugin.data.checked import CheckedRows
    from gdr_plugin.data.rows import parse_score_row
    from gdr_plugin.plugins.registry import Plugins
    from gdr_plugin.reward.reward import GuidedDensityRatio
    from gdr_plugin.scoring.rows import output_rows, samples_of
    from gdr_plugin.store.model import StoredModel
    from gdr_plugin.store.store import LogprobStore

    ratio = GuidedDensityRatio.from_config(pair.config(), plugins=Plugins(pair))
    with watch.measure("read and check the rows"):
        checked = CheckedRows(source, parse_score_row)
    with checked:
        with watch.measure("take the rows back, by window"):
            windows = [window for _, window in checked.windows(WINDOW)]
        samples = [samples_of(window) for window in windows]
        with watch.measure("route"):
            for window in samples:
                ratio.chain.route(window, ratio._context, strict=False)
        with watch.measure("guide (routes are remembered)"):
            guided = [ratio.guide(window) for window in samples]
        with watch.measure("(the tokenizer alone: responses once)"):
            for window in samples:
                pair.tokenizer.encode_batch_fast([sample.response for sample in window], add_special_tokens=False)
        with watch.measure("render, tokenise (strong)"):
            strong = [ratio.ask("strong", window) for window in guided]
        with watch.measure("render, tokenise (weak)"):
            weak = [ratio.ask("weak", window) for window in guided]
        with watch.measure("subtract"):
            scores = [ratio.combine(*window) for window in zip(guided, strong, weak, strict=True)]
        with watch.measure("write the rows"), _writer(folder / "out.jsonl", []) as put:
            for window, scored in zip(windows, scores, strict=True):
                put(output_rows(window, scored))
    spans = [[answer.span for answer in window] for window in strong]
    stored = StoredModel(ratio.strong, LogprobStore(folder / "stages.sqlite"))
    for stage in ("store: not there, written (one model)", "store: there (one model)"):
        with watch.measure(stage):
            for window in spans:
                stored.score(window)
    stored.store.close()


def whole(watch: Stopwatch, pair: CostlessPair, given: Sequence[dict[str, Any]], folder: Path) -> None:
    """Measure what users call, on rows that differ for each."""
    from gdr_plugin.annotation.annotate import annotate
    from gdr_plugin.cli.score import _writer
    from gdr_plugin.plugins.registry import Plugins
    from gdr_plugin.scoring.rows import score_rows

    def salted(mark: str) -> list[dict[str, Any]]:
        return [
            {
                **row,
                "prompt": f"{mark} {row['prompt']}",
                "responses": [{**response, "text": f"{mark} {response['text']}"} for response in row["responses"]],
            }
            for row in given
        ]

    plugins = Plugins(pair)
    for stage, store, mark in (
        ("gdr score", None, "a"),
        ("gdr score, a new store", folder / "store.sqlite", "b"),
        ("gdr score, the store has it", folder / "store.sqlite", "b"),
    ):
        source = write(folder / f"{mark}.jsonl", score_rows_of(salted(mark)))
        with watch.measure(stage), _writer(folder / "scored.jsonl", []) as put:
            score_rows(source, pair.config(store), put, plugins=plugins)
    source = write(folder / "prompts.jsonl", salted("c"))
    with watch.measure("gdr annotate"):
        annotate(source, pair.config(), folder / "annotated", plugins=plugins)
    requests = [score_rows_of([row]) for row in salted("d")]
    bodies = [json.dumps({"rows": few[at : at + SERVED]}).encode() for few in requests for at in range(0, len(few), 8)]
    singles = [json.dumps({"rows": [row]}).encode() for row in score_rows_of(salted("e"))]
    asyncio.run(serve(watch, pair, {f"gdr serve, {SERVED} rows a body": bodies, "gdr serve, 1 row a body": singles}))


async def serve(watch: Stopwatch, pair: CostlessPair, requests: dict[str, list[bytes]]) -> None:
    """Measure the server's application, without sockets: 64 requests are in flight at once."""
    from gdr_plugin.plugins.registry import Plugins
    from gdr_plugin.reward.reward import GuidedDensityRatio
    from gdr_plugin.serve import BatchingService, ServeSettings
    from gdr_plugin.serve.app import create_app

    plugins = Plugins(pair)
    service = BatchingService(GuidedDensityRatio.from_config(pair.config(), plugins=plugins), ServeSettings())
    app = create_app(service, plugins)
    async with service:
        for stage, bodies in requests.items():
            waiting = iter(bodies)

            async def client(waiting: Iterator[bytes] = waiting) -> None:
                for body in waiting:
                    await post(app, body)

            with watch.measure(stage):
                await asyncio.gather(*(client() for _ in range(64)))


async def post(app: Callable[..., Any], body: bytes) -> None:
    """Send one request to an ASGI application.

    Raises:
        RuntimeError: The answer is not 200.
    """
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/gdr/score",
        "raw_path": b"/v1/gdr/score",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    answered: list[dict[str, Any]] = []
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        await asyncio.Event().wait()  # a client that stays until it is answered
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        answered.append(message)

    await app(scope, receive, send)
    if answered[0]["status"] != 200:
        raise RuntimeError(f"answered with {answered[0]['status']}: {answered[-1]}")


def facts(pair: CostlessPair, given: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How large the work is, in tokens of the strong model."""
    from gdr_plugin.plugins.registry import Plugins
    from gdr_plugin.reward.reward import GuidedDensityRatio

    ratio = GuidedDensityRatio.from_config(pair.config(), plugins=Plugins(pair))
    samples = [{"prompt": row["prompt"], "response": row["response"]} for row in islice(score_rows_of(given), 512)]
    answers = ratio.ask("strong", ratio.guide([ratio_sample(sample) for sample in samples]))
    spans = [answer.span for answer in answers if answer.span is not None]
    contexts = [context for context, _ in groupby(span.context for span in spans)]
    return {
        "responses": sum(len(row["responses"]) for row in given),
        "prompts": len(given),
        "response_tokens": round(sum(len(span.response) for span in spans) / len(spans)),
        "context_tokens": round(sum(map(len, contexts)) / len(contexts)),
    }


def ratio_sample(row: dict[str, str]) -> Any:
    """A row as a sample."""
    from gdr_plugin.api.types import Sample

    return Sample(row["prompt"], row["response"])


def report(results: dict[str, Any]) -> str:
    """The results as a table of plain text."""
    count = results["work"]["responses"]
    lines = ["{responses:,} responses to {prompts:,} prompts".format(**results["work"])]
    lines[0] += ", {response_tokens} tokens each, behind {context_tokens}".format(**results["work"])
    for part in ("stages", "whole"):
        lines += ["", f"{part:42} us a response   responses/s"]
        lines += [
            f"  {name:40} {1e6 * seconds / count:13,.1f} {count / max(seconds, 1e-9):13,.0f}"
            for name, seconds in results[part].items()
        ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table and, where asked for, save the numbers."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="the gdr.yaml whose chat formats are used")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--responses", type=int, default=8, help="responses of each prompt")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the quickest counts")
    parser.add_argument("--save", action="store_true", help="write results/pipeline.json")
    parser.add_argument("--json", type=Path, help="write the numbers into this file")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core
    pair = CostlessPair(args.config)
    single, called = Stopwatch(), Stopwatch()
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory() as name, redirect_stdout(io.StringIO()):
            folder, given = Path(name), rows(args.prompts, args.responses, f"r{number}")
            stages(single, pair, write(folder / "rows.jsonl", score_rows_of(given)), folder)
            whole(called, pair, given, folder)
    work = facts(pair, rows(args.prompts, args.responses, "facts"))
    results = {"work": work, "stages": single.stages, "whole": called.stages}
    print(report(results))
    for path in [*([RESULTS] if args.save else []), *([args.json] if args.json else [])]:
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
