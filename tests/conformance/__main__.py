"""`python -m tests.conformance`: run every template that is here, print the table, write each failure to a file."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

from tests.conformance import check, families, known
from tests.conformance.table import table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("names", nargs="*", help="only templates whose key (source:name) holds one of these")
    parser.add_argument("--failures", type=Path, default=families.FETCHED / "failures.json", help="where they go")
    parser.add_argument(
        "--shorten", action="store_true", help="take what does not fail any more off the known failures"
    )
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    keys = [key for key in families.present() if not given.names or any(name in key for name in given.names)]
    if not keys:
        print("no such template: `make test-templates` fetches more", file=sys.stderr)
        return 2
    listed = known.load()
    results, failures, passed, new = {}, [], {}, 0
    for number, key in enumerate(keys, start=1):
        if sys.stderr.isatty():
            print(f"\r{number}/{len(keys)} {key:60.60}", end="", file=sys.stderr, flush=True)
        results[key] = verdicts = check.run(families.load(key))
        unlisted, passed[key] = known.compare(verdicts, listed.get(key, {}))
        new += len(unlisted)
        for one in verdicts:
            if one.outcome == "wrong":
                reason = listed.get(key, {}).get(one.key, "not listed")
                failures.append({"template": key, "key": one.key, "reason": reason, **asdict(one)})
    print(table(results))
    given.failures.parent.mkdir(parents=True, exist_ok=True)
    given.failures.write_text(json.dumps(failures, ensure_ascii=False, indent=1), encoding="utf-8")
    gone = sum(map(len, passed.values()))
    print(f"{len(failures)} failures in {given.failures}; {new} of them not listed, {gone} listed that fail no more")
    if given.shorten:
        print(f"{known.shorten(passed)} taken off {known.FILE.name}")
    return 1 if new or (gone and not given.shorten) else 0


if __name__ == "__main__":
    sys.exit(main())
