"""lm-evaluation-harness as it is, answering over standard input and output. Runs in an environment that has lm-eval.

    python peer_lm_eval.py MODEL_FOLDER BATCH THREADS

The first line in holds all requests, `[[context ids, response ids], ...]`. Each further line holds the places of the
requests of one run, and its answer is `{"sums": [...], "peak_mb": ...}`. Standard output belongs to the answers alone.
"""

import json
import os
import sys
from pathlib import Path

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever the harness prints goes to standard error

import torch  # noqa: E402 - after standard output is out of its way
from lm_eval.models.huggingface import HFLM  # noqa: E402


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def main() -> None:
    folder, batch, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=int(batch))
    requests = [(("", ""), context, response) for context, response in json.loads(sys.stdin.readline())]

    def score(places: list[int]) -> list[float]:
        found = model._loglikelihood_tokens([requests[place] for place in places], disable_tqdm=True)
        return [total for total, _ in found]

    score([min(range(len(requests)), key=lambda place: len(requests[place][1]))])
    print(json.dumps("ready"), file=answers, flush=True)
    measured = Path("/proc/self/clear_refs").exists()
    for line in sys.stdin:
        if measured:
            Path("/proc/self/clear_refs").write_text("5")
            low = status("VmRSS")
        sums = score(json.loads(line))
        peak = (status("VmHWM") - low) / 1024 if measured else None
        print(json.dumps({"sums": sums, "peak_mb": peak}), file=answers, flush=True)


if __name__ == "__main__":
    main()
