"""A disk that is full or read-only: one line that names the file, and when there is room, the same command goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.disk import Disk

Gdr = Callable[..., tuple[int, str, str]]

FILES = {
    "score": ("disk/out.jsonl", "score rows.jsonl -o disk/out.jsonl"),
    "score, one model after the other": ("disk/out.jsonl", "score rows.jsonl --set load=sequential -o disk/out.jsonl"),
    "evaluate rows": ("disk/rows.jsonl", "evaluate pairs.jsonl --rows disk/rows.jsonl"),
    "evaluate page": ("disk/page.html", "evaluate pairs.jsonl --html disk/page.html"),
    "evaluate plot": ("disk/plot.png", "evaluate pairs.jsonl --limit 10 --ablations --plot disk/plot.png"),
    "controllability": ("disk/page.html", "controllability own.jsonl --html disk/page.html"),
    "pairs": ("disk/page.html", "pairs fake:a fake:b pairs.jsonl --limit 20 --html disk/page.html"),
    "explain": ("disk/page.html", "explain pairs.jsonl --limit 2 -o disk/page.html"),
    "tune": ("disk/g.yaml", "--plugin told.py tune manners.jsonl -c told.yaml --instructions own.txt -o disk/g.yaml"),
    "init": ("disk/gdr.yaml", "init disk/gdr.yaml"),
}
"""What each command writes, and the command."""
SLOW = ("evaluate plot", "pairs")  # they draw
EACH = [pytest.param(name, marks=pytest.mark.thorough) if name in SLOW else name for name in FILES]


def one_line(err: str) -> str:
    """The error, which is all that stands on standard error but progress, notes and warnings."""
    lines = [line for line in err.splitlines() if line.startswith("gdr: ") and "cannot be written" in line]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize("name", EACH)
def test_a_file_that_does_not_fit(name: str, gdr: Gdr, disk: Disk, here: Path) -> None:
    where, command = FILES[name]
    path = here / where
    for _ in range(1 + (name in ("evaluate page", "pairs"))):  # they say what the store had
        path.unlink(missing_ok=True)
        assert gdr(*command.split())[0] == 0
    expected = path.read_bytes()
    path.unlink()
    disk.fill()
    code, _, err = gdr(*command.split())
    assert code == 2
    assert one_line(err) == f"gdr: {where}: cannot be written (No space left on device); free space and run again"
    assert sorted(entry.name for entry in disk.path.iterdir()) == ["ballast"]
    disk.make_room()
    assert gdr(*command.split())[0] == 0
    assert path.read_bytes() == expected


@pytest.mark.parametrize("name", FILES)
def test_a_folder_that_cannot_be_written_is_known_before_the_work(
    name: str, gdr: Gdr, disk: Disk, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gdr_plugin.reward.reward import GuidedDensityRatio

    def score(*_: object, **__: object) -> None:
        raise AssertionError("scored before the output was checked")

    monkeypatch.setattr(GuidedDensityRatio, "score", score)
    disk.remount("ro")
    where, command = FILES[name]
    code, _, err = gdr(*command.split())
    assert code == 2
    assert len(err.splitlines()) == 1
    assert str(Path(where).parent) in err
    assert "name another place" in err


@pytest.mark.parametrize("leave", [0, 4096, 40_960, 122_880, 163_840, 225_280])
def test_a_data_set_goes_on_when_there_is_room(leave: int, gdr: Gdr, disk: Disk, here: Path) -> None:
    assert gdr("annotate", "prompts.jsonl", "-o", "whole")[0] == 0
    disk.fill(leave)
    code, _, err = gdr("annotate", "prompts.jsonl", "-o", "disk/out")
    assert code == 2
    line = one_line(err)
    assert line.startswith("gdr: disk/out")
    assert line.endswith("(No space left on device); free space and run again")
    finished = {path: path.stat().st_mtime_ns for path in disk.path.glob("out/work/*.jsonl")}
    assert not list(disk.path.glob("**/*.part"))
    assert not list(disk.path.glob("out/work/outputs"))
    disk.make_room()
    code, _, err = gdr("annotate", "prompts.jsonl", "-o", "disk/out")
    assert (code, [line for line in err.splitlines() if "cannot" in line]) == (0, [])
    assert leave < 40_960 or finished  # what was finished was kept
    data = sorted(path.name for path in Path("whole").iterdir() if path.suffix in (".parquet", ".jsonl"))
    assert len(data) == 7
    for name in data:
        assert Path("disk/out", name).read_bytes() == Path("whole", name).read_bytes(), name


def test_finished_windows_are_not_scored_again(
    gdr: Gdr, disk: Disk, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.fill(81_920)
    assert gdr("annotate", "prompts.jsonl", "-o", "disk/out")[0] == 2
    left = 4 - len(list(disk.path.glob("out/work/candidates-*.jsonl")))
    assert 0 < left < 4
    disk.make_room()
    from gdr_plugin.reward.reward import GuidedDensityRatio

    asked = []
    score = GuidedDensityRatio.score

    def counted(self: GuidedDensityRatio, samples: list[object], **options: object) -> object:
        asked.append(len(samples))
        return score(self, samples, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(GuidedDensityRatio, "score", counted)
    assert gdr("annotate", "prompts.jsonl", "-o", "disk/out")[0] == 0
    assert len(asked) == left


@pytest.mark.parametrize("command", ["score rows.jsonl -o out.jsonl", "evaluate pairs.jsonl --rows out.jsonl"])
def test_a_store_that_is_full(command: str, gdr: Gdr, disk: Disk, here: Path) -> None:
    assert gdr(*command.split())[0] == 0
    expected = Path("out.jsonl").read_bytes()
    Path("out.jsonl").unlink()
    with Path("gdr.yaml").open("a") as file:
        file.write("store: {path: disk/store.sqlite}\n")
    disk.fill(65_536)
    code, _, err = gdr(*command.split())
    assert code == 2
    assert "disk/store.sqlite cannot be written (database or disk is full): free space, and go on" in one_line(err)
    assert not Path("out.jsonl").exists()
    disk.make_room()
    assert gdr(*command.split())[0] == 0
    assert Path("out.jsonl").read_bytes() == expected
    Path("out.jsonl").unlink()
    code, _, err = gdr(*command.split())
    assert code == 0
    assert Path("out.jsonl").read_bytes() == expected


def test_a_store_that_cannot_be_written(gdr: Gdr, disk: Disk, here: Path) -> None:
    with Path("gdr.yaml").open("a") as file:
        file.write("store: {path: disk/store.sqlite}\n")
    disk.remount("ro")
    code, _, err = gdr("score", "rows.jsonl", "-o", "out.jsonl")
    assert code == 2
    assert "disk/store.sqlite cannot be written" in one_line(err)
    assert "name another file in store.path" in err


def test_standard_output_that_is_full(gdr: Gdr, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("score rows.jsonl", "evaluate pairs.jsonl", "evaluate pairs.jsonl --json", "check", "check --json"):
        with monkeypatch.context() as patched, Path("/dev/full").open("w") as full:
            patched.setattr("sys.stdout", full)
            code, _, err = gdr(*command.split())
            patched.undo()
            assert code == 2
            line = one_line(err)
            assert line == "gdr: standard output: cannot be written (No space left on device); free space and run again"


def test_a_device_that_is_full(gdr: Gdr, here: Path) -> None:
    code, _, err = gdr("score", "rows.jsonl", "-o", "/dev/full")
    assert code == 2
    assert one_line(err) == "gdr: /dev/full: cannot be written (No space left on device); free space and run again"


def test_a_limit_of_a_files_size(gdr: Gdr, here: Path) -> None:
    import resource
    import signal

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        code, _, err = gdr("score", "rows.jsonl", "-o", "out.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 2
    assert "out.jsonl: cannot be written (File too large); raise the limit of a file's size (ulimit -f)" in err
    assert not Path("out.jsonl").exists()
    assert not Path("out.jsonl.part").exists()


def test_a_temporary_folder_that_is_full(gdr: Gdr, disk: Disk, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    from gdr_plugin.data import checked

    monkeypatch.setattr(tempfile, "tempdir", str(disk.path))
    monkeypatch.setattr(checked, "_IN_MEMORY", 1000)  # else only inputs of 16 MB need a file
    disk.fill(4096)
    code, _, err = gdr("score", "rows.jsonl", "-o", "out.jsonl")
    assert code == 2
    assert f"gdr: {disk.path}: the input's rows cannot be kept there (No space left on device): free space" in err
    assert "TMPDIR" in err
    disk.make_room()
    assert gdr("score", "rows.jsonl", "-o", "out.jsonl")[0] == 0


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_the_place_of_a_file(name: str, gdr: Gdr, here: Path) -> None:
    where, command = FILES[name]
    if name == "init":
        pytest.skip("a folder is where `gdr init` puts gdr.yaml")
    (here / where).mkdir(parents=True)
    code, _, err = gdr(*command.split())
    assert code == 2
    assert f"{where}: is a folder: name a file" in err
    assert list((here / where).iterdir()) == []


def test_a_file_in_the_place_of_a_folder(gdr: Gdr, here: Path) -> None:
    Path("out").write_text("mine")
    code, _, err = gdr("annotate", "prompts.jsonl", "-o", "out")
    assert (code, err) == (2, "gdr: out: is a file; -o names a folder\n")
    code, _, err = gdr("annotate", "prompts.jsonl", "-o", "out/deeper")
    assert code == 2
    assert one_line(err).startswith("gdr: out/deeper: cannot be written (")
    code, _, err = gdr("pairs", "fake:a", "fake:b", "pairs.jsonl", "--plots", "out")
    assert code == 2
    assert "out: is a file: name a folder" in err
    assert Path("out").read_text() == "mine"


def test_a_data_set_in_a_folder_that_cannot_be_written(gdr: Gdr, disk: Disk, here: Path) -> None:
    disk.remount("ro")
    code, _, err = gdr("annotate", "prompts.jsonl", "-o", "disk/out")
    assert code == 2
    line = "gdr: disk/out: cannot be written (Read-only file system); give yourself the right to write there, or name "
    assert one_line(err) == f"{line}another place"
    assert list(disk.path.iterdir()) == []
