"""`gdr annotate` killed, with its store held and its disk full: the data set is the one that nobody disturbed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from tests.chaos.figures import Figures
from tests.chaos.stores import SmallDisk, damage, entries, environment, hold

ROOT = Path(__file__).resolve().parents[2]
DATA = [f"{name}.{kind}" for name in ("preferences", "kto", "candidates") for kind in ("parquet", "jsonl")]
CONFIG = """
strong: fake:strong
weak: fake:weak
guidance: {domains: {chat: none, safety: safety}}
routing: {routers: [field, keyword]}
store: {path: STORE}
"""
PLUGIN = '''
"""Models that take their time: a kill meets them at work."""

import time

from gdr_plugin import hookimpl
from gdr_plugin.models.fake import FakeModel


class Slow(FakeModel):
    def score(self, spans):
        time.sleep(0.05)
        return super().score(spans)


@hookimpl
def gdr_open_model(spec, limits):
    return Slow(spec.target, limits) if spec.scheme == "fake" else None
'''
_TEXT = "count the days of a week and say which of them are free and why that is so"
WORDS = _TEXT.split()
FINISH_S = 300.0
NOISE = 1e-3
"""Nats by which a log-prob sum of the demo pair may differ where a run begins anew in the middle: what is scored
together is rounded together."""


def annotate_again_and_again(rng: random.Random, kills: int, folder: Path, figures: Figures) -> None:
    """Annotate with fake models, disturbed and not; the files are the same to the byte, and so are the entries.

    Args:
        rng: Decides what happens when.
        kills: How often the run is stopped.
        folder: For everything.
        figures: Counts it.
    """
    rows = folder / "prompts.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for number in range(320):
            responses = [f"({number}-{at}) {' '.join(rng.choices(WORDS, k=8))}" for at in range(4)]
            row = {"id": f"p{number}", "prompt": f"Question {number}: how many?", "responses": responses}
            file.write(json.dumps({**row, "domain": rng.choice(["chat", "safety", ""])}) + "\n")
    disk = SmallDisk(folder / "disk")
    try:
        whole = _Run(folder, rows, "whole", folder / "whole.sqlite")
        whole.finish(figures)
        cut = _Run(folder, rows, "cut", disk.folder / "store.sqlite")
        for number in range(kills):
            _disturb(cut, rng, disk, figures, full=number % 3 == 2)
        cut.finish(figures)
        for name in [*DATA, "rejects.jsonl"]:
            same = (cut.out / name).read_bytes() == (whole.out / name).read_bytes()
            figures.check(same, f"annotate: {name} is another one than undisturbed")
        figures.counts["annotate: rows"] += len((cut.out / "candidates.jsonl").read_text().splitlines())
        figures.check(damage(cut.store) == "ok", "annotate: the store is damaged")
        figures.check(
            entries(cut.store) == entries(whole.store), "annotate: the store has other entries than undisturbed"
        )
        figures.counts["annotate: entries of the store"] += len(entries(cut.store))
    finally:
        disk.close()


class _Run:
    """One run, in as many processes as it takes."""

    def __init__(self, folder: Path, rows: Path, name: str, store: Path) -> None:
        self.out, self.store = folder / name, store
        config = folder / f"{name}.yaml"
        config.write_text(CONFIG.replace("STORE", str(store)))
        (folder / "plugin.py").write_text(PLUGIN)
        plugin = ["--plugin", str(folder / "plugin.py")]
        self.command = [
            sys.executable,
            "-m",
            "gdr_plugin",
            *plugin,
            "annotate",
            str(rows),
            "-c",
            str(config),
            "-o",
            str(self.out),
        ]

    def start(self) -> subprocess.Popen[str]:
        """Start it or go on with it."""
        return subprocess.Popen(
            self.command, env=environment(), text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def finish(self, figures: Figures) -> None:
        """Let it run to its end."""
        process = self.start()
        _, said = process.communicate(timeout=FINISH_S)
        figures.check(process.returncode == 0, f"annotate did not go on: {said[-800:]}")


def _disturb(run: _Run, rng: random.Random, disk: SmallDisk, figures: Figures, *, full: bool) -> None:
    """Start the run and stop it: by SIGKILL, with its store held meanwhile, or by a full disk."""
    process = run.start()
    held = hold(run.store, rng.uniform(0.2, 2.0)) if rng.random() < 0.4 and run.store.exists() else None
    figures.counts["annotate: store held"] += held is not None
    time.sleep(rng.uniform(0.0, 3.5))
    if full:
        with disk.full(process.pid):
            try:
                _, said = process.communicate(timeout=5.0)
            except subprocess.TimeoutExpired:  # it had no more to write
                process.send_signal(signal.SIGKILL)
                _, said = process.communicate()
        figures.counts["annotate: disk filled"] += 1
        if process.returncode > 0:
            figures.counts["annotate: ended by the full disk"] += 1
            lines = [line for line in said.splitlines() if line.startswith("gdr:")]
            figures.check(
                "Traceback" not in said and "internal error" not in said, f"annotate, disk full: {said[-800:]}"
            )
            figures.check(bool(lines), f"annotate said nothing about the full disk: {said[-800:]}")
    else:
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
        figures.counts["annotate: killed"] += process.returncode == -signal.SIGKILL
    figures.check("Traceback" not in said, f"annotate: a traceback: {said[-800:]}")
    if held is not None:
        held.wait()


def annotate_the_demo_pair(rng: random.Random, folder: Path, figures: Figures) -> None:
    """The same with real models: killed once, the rows are the undisturbed ones and the rewards equal but for rounding.

    Args:
        rng: Decides when.
        folder: For everything.
        figures: Counts it.
    """
    rows = folder / "demo.jsonl"
    lines = (ROOT / "examples" / "data" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    with rows.open("w", encoding="utf-8") as file:
        for number, line in enumerate(lines):
            pair = json.loads(line)
            texts = [str(pair["chosen"])[:80], str(pair["rejected"])[:80]]
            row = {"id": f"d{number}", "prompt": str(pair["prompt"])[:200], "responses": texts, "domain": "chat"}
            file.write(json.dumps(row) + "\n")
    command = [
        sys.executable,
        "-m",
        "gdr_plugin",
        "annotate",
        str(rows),
        "-c",
        str(ROOT / "examples/demo-pair/gdr.yaml"),
    ]
    took = 0.0
    for out in ("demo-whole", "demo-cut"):
        if out == "demo-cut":
            process = subprocess.Popen(
                [*command, "-o", str(folder / out)], env=environment(), stderr=subprocess.DEVNULL
            )
            time.sleep(rng.uniform(0.5, 0.95) * took)
            process.kill()
            figures.counts["annotate, demo pair: killed"] += process.wait() == -signal.SIGKILL
        begun = time.monotonic()
        done = subprocess.run(
            [*command, "-o", str(folder / out)],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=FINISH_S,
            check=False,
        )
        took = time.monotonic() - begun
        figures.check(done.returncode == 0, f"annotate with the demo pair: {done.stderr[-800:]}")
    whole, cut = (pq.read_table(folder / out / "candidates.parquet").to_pylist() for out in ("demo-whole", "demo-cut"))
    figures.counts["annotate, demo pair: rows"] += len(cut)
    figures.check(
        len(whole) == len(cut) == 80, f"the demo pair: {len(whole)} rows undisturbed, {len(cut)} after a kill"
    )
    worst = 0.0
    for one, other in zip(whole, cut, strict=False):
        worst = max(worst, abs(one["gdr_reward"] - other["gdr_reward"]))
        alike = {name for name in one if one[name] != other[name] and "logprob" not in name and "reward" not in name}
        figures.check(not alike, f"the demo pair: {one['gdr_id']} differs in {sorted(alike)}")
    figures.tell("annotate, demo pair: largest difference of a reward, nats", worst)
    figures.check(worst <= NOISE, f"the demo pair: a reward differs by {worst} nats")
