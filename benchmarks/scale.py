"""Does memory stay flat, and does the rate hold, over millions of rows? Annotates made-up rows; fills a store.

    python -m benchmarks.scale                                    # 2 million rows, 5 million entries: an hour
    python -m benchmarks.scale --rows 20000 --entries 100000      # a minute
    python -m benchmarks.scale --rows 0                           # the store alone

The rows are one short prompt with two short responses each, and both models are `fake:`, which cost next to nothing:
what is left is all that `gdr annotate` does to a row itself. Memory (the resident set) and rate are noted when 1, 10,
50 and 100 % of the rows are done; the rate is that of the last hundredth before, in rows a second and, since other work
on the machine changes it less, in rows a second of processor time. Look-ups are of random keys, 512 together as a
window asks them; *cold* means that the system was told to drop the file from its cache, and that it was opened anew.

Results are written after every part (`benchmarks/results/scale.json`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gdr_plugin.annotation.annotate import annotate
from gdr_plugin.api.types import TokenSpan
from gdr_plugin.config.load import load_config
from gdr_plugin.store.store import LogprobStore, span_keys

RESULTS = Path(__file__).resolve().parent / "results" / "scale.json"
MARKS = (1, 10, 50, 100)
"""Per cent of a stage at which it is looked at."""
WINDOW = 512
"""Entries that are written, and keys that are looked up, together."""
RESPONSE_TOKENS = 32
LOOKUPS = 100_000
_TEXT = "a the cat sat on mat and dog ran far away from home to sea with red blue fish bird tree sky"
WORDS = _TEXT.split()


@dataclass
class Watch:
    """Notes rate and memory while a stage passes its marks."""

    marks: list[dict[str, float]] = field(default_factory=list)
    _points: dict[int, tuple[float, float, int]] = field(default_factory=dict)

    def see(self, done: int, total: int) -> None:
        """Take note of how far the stage is.

        Args:
            done: Items done.
            total: Items of the whole stage.
        """
        percent = 100 * done // max(1, total)
        now = time.perf_counter(), time.process_time(), done
        self._points.setdefault(percent, now)
        mark = next(
            (mark for mark in MARKS if mark == percent and mark not in {m["percent"] for m in self.marks}), None
        )
        if mark is None:
            return
        wall, cpu, before = self._points[max(point for point in self._points if point < percent)]
        rows = done - before
        self.marks.append(
            {
                "percent": mark,
                "rss_mb": round(resident() / 1024, 1),
                "a_second": round(rows / (now[0] - wall), 1),
                "a_cpu_second": round(rows / (now[1] - cpu), 1),
                "seconds": round(now[0] - self._points[0][0], 1),
            }
        )
        print(json.dumps({"done": done, **self.marks[-1]}), file=sys.stderr, flush=True)


def resident(key: str = "VmRSS") -> int:
    """The process's resident set, or its peak with `VmHWM`, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def write_rows(path: Path, rows: int) -> None:
    """Write so many prompts of five words with two responses of three or four words each."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            prompt, *responses = (" ".join(rng.choices(WORDS, k=count)) for count in (5, 3, 4))
            row = {"id": f"r{number}", "prompt": prompt, "responses": responses, "domain": "chat"}
            file.write(json.dumps(row) + "\n")


def annotation(rows: int, folder: Path) -> dict[str, Any]:
    """Annotate so many rows.

    Args:
        rows: How many.
        folder: Where input and output are written.

    Returns:
        Seconds of reading, the marks of both stages, the peak of memory and the size of the files.
    """
    source, out = folder / "rows.jsonl", folder / "out"
    write_rows(source, rows)
    config = folder / "gdr.yaml"
    config.write_text("strong: fake:strong\nweak: fake:weak\n")
    stages: dict[str, Watch] = {}
    before, begun = resident(), (time.perf_counter(), time.process_time())
    reading: dict[str, float] = {}

    def tell(stage: str, done: int, total: int | None) -> None:
        if not stages:
            wall, cpu = time.perf_counter() - begun[0], time.process_time() - begun[1]
            reading.update(seconds=round(wall, 1), a_second=rows / wall, a_cpu_second=rows / cpu)
            reading["rss_mb"] = round(resident() / 1024, 1)
        stages.setdefault(stage, Watch()).see(done, total or 0)

    result = annotate(source, load_config(config), out, progress=tell)
    return {
        "rows": rows,
        "pairs": result.summary["pairs"],
        "rss_mb_before": round(before / 1024, 1),
        "rss_mb_peak": round(resident("VmHWM") / 1024, 1),
        "seconds": round(time.perf_counter() - begun[0], 1),
        "cpu_seconds": round(time.process_time() - begun[1], 1),
        "input_mb": round(source.stat().st_size / 1e6, 1),
        "output_mb": round(sum(file.stat().st_size for file in out.iterdir()) / 1e6, 1),
        "reading": {name: round(value, 1) for name, value in reading.items()},
        **{stage: watch.marks for stage, watch in stages.items()},
    }


def spans(numbers: np.ndarray[Any, Any]) -> list[TokenSpan]:
    """The span of each number: four responses share a context."""
    return [TokenSpan((*range(48), number // 4), (*range(RESPONSE_TOKENS - 1), number)) for number in numbers.tolist()]


def windows(numbers: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """So many numbers at a time."""
    return (numbers[start : start + WINDOW] for start in range(0, len(numbers), WINDOW))


def store(entries: int, folder: Path) -> dict[str, Any]:
    """Fill a store and look entries up.

    Args:
        entries: How many.
        folder: Where the store is made.

    Returns:
        The marks of writing, bytes an entry, and look-ups a second.
    """
    path = folder / "store.sqlite"
    watch, kept = Watch(), LogprobStore(path)
    values = [np.linspace(-8, 0, RESPONSE_TOKENS, dtype=np.float32)] * WINDOW
    done = 0
    watch.see(0, entries)
    for numbers in windows(np.arange(entries)):
        kept.write("identity", "model", span_keys("identity", spans(numbers)), values[: len(numbers)])
        done += len(numbers)
        watch.see(done, entries)
    kept.close()  # which also moves the log's end into the file
    wanted = np.random.default_rng(0).integers(0, entries, min(LOOKUPS, entries))
    found = {}
    _drop(path)
    opened = LogprobStore(path)
    for name in ("cold", "warm"):
        keys = [span_keys("identity", spans(numbers)) for numbers in windows(wanted)]
        wall, cpu = time.perf_counter(), time.process_time()
        hits = sum(sum(value is not None for value in opened.read(window)) for window in keys)
        assert hits == len(wanted), "every key that was written must be found"
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        found[name] = {"a_second": round(hits / wall), "a_cpu_second": round(hits / cpu)}
    size = path.stat().st_size
    return {
        "entries": entries,
        "response_tokens": RESPONSE_TOKENS,
        "file_mb": round(size / 1e6, 1),
        "bytes_an_entry": round(size / entries, 1),
        "of_which_log_probs": 4 * RESPONSE_TOKENS,
        "writing": watch.marks,
        "lookups": found,
    }


def _drop(path: Path) -> None:
    """Ask the system to forget a file's content, so that it is read from the disk again."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Run both parts and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows to annotate; 0: none")
    parser.add_argument("--entries", type=int, default=5_000_000, help="entries of the store; 0: none")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--folder", type=Path, help="where the files are made (about 6 GB for the defaults)")
    given = parser.parse_args()
    results: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    for name, part, count in (("annotation", annotation, given.rows), ("store", store, given.entries)):
        if count:
            with tempfile.TemporaryDirectory(prefix="gdr-scale-", dir=given.folder) as folder:
                results[name] = part(count, Path(folder))
            from benchmarks.measure import machine  # brings torch, whose memory is none of ours

            results[name]["machine"] = machine()
            given.out.write_text(json.dumps(results, indent=2) + "\n")
            print(json.dumps(results[name], indent=2), flush=True)


if __name__ == "__main__":
    main()
