"""How fast, and in how much memory, is a model cast and resharded, next to a plain copy of it?

Every run is a process of its own, imports left out, from a folder in the page cache to a new one on the same disk, durable (fsync of each file) before the
clock stops; runs of both sides take turns, and the median counts::

    python benchmarks/convert.py            # a 5 GB model; minutes, 20 GB of disk
    python benchmarks/convert.py --quick    # 100 MB: that it works, not how fast it is
    python benchmarks/convert.py --json

The copy is `cp` followed by `sync` of its files; beside it stands `cp` alone, which leaves the bytes to the kernel. Speed is bytes of the source by second.
The rewriting hashes what it reads and what it writes, as its certificate says; a copy hashes nothing. Memory is the peak of RssAnon, sampled every 10 ms in
the process itself: what the kernel calls anonymous, without mapped or cached files. The verdict is on the slowest of the rewritings that are compared.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from measuring import Call, Figure, call, machine, report

from modelyard.weights.shards import ShardWriter, TensorSpec, plan_shards, write_index

REWRITE = """
import json, os, re, sys, threading, time
from pathlib import Path
from modelyard.weights import FolderFiles
from modelyard.weights.convert import rewrite
peak, ended = 0.0, threading.Event()
def watch():
    global peak
    while True:
        said = re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
        peak = max(peak, int(said[1]) * 1024 / 1e6)
        if ended.wait(0.01):
            return
thread = threading.Thread(target=watch)
thread.start()
start, before = time.perf_counter(), os.times()
rewrite(FolderFiles(sys.argv[1]), Path(sys.argv[2]), **json.loads(sys.argv[3]))
seconds, after = time.perf_counter() - start, os.times()
ended.set()
thread.join()
print(json.dumps({"seconds": seconds, "processor": after.user + after.system - before.user - before.system, "memory": peak}))
"""
CASES = {
    # What is measured: the source's dtype, and what is asked for.
    "F32 to BF16, 1 GB shards": ("F32", {"dtype": "bfloat16", "shard_size": "1GB"}),
    "BF16 to F16, 1 GB shards": ("BF16", {"dtype": "float16", "shard_size": "1GB"}),
    "BF16 as it is, 1 GB shards": ("BF16", {"shard_size": "1GB"}),
}
PLAIN = "cp and fsync"
LAZY = "cp alone"


def make_model(folder: Path, size: int, dtype: str) -> None:
    """Write a model of `size` bytes in two files: matrices of random normal numbers, with a small vector after each."""
    folder.mkdir()
    side = 4096 if size >= 1 << 30 else 512
    values = (np.random.default_rng(0).standard_normal((side, side)) * 0.02).astype(np.float32)
    raw = values if dtype == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16)
    specs = []
    for number in range(size // raw.nbytes):
        specs.append(TensorSpec(f"model.layers.{number}.mlp.weight", dtype, (side, side)))
        specs.append(TensorSpec(f"model.layers.{number}.norm.weight", dtype, (side,)))
    plan = plan_shards(specs, size // 2)
    for name, held in plan.items():
        with ShardWriter(folder / name, held) as writer:
            for spec in held:
                writer.write(raw.reshape(-1)[: spec.size // raw.itemsize].view(np.uint8).data)
    write_index(folder, plan)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "dtype": "float32"}')


def copy(source: Path, out: Path, *, durable: bool) -> Call:
    """One `cp` of the folder, with `sync` of what it wrote where it is to be durable."""
    commands = [["cp", "-r", str(source), str(out)]]
    if durable:
        commands.append(["sync", *(str(out / path.name) for path in source.iterdir()), str(out)])
    start = time.perf_counter()
    for command in commands:
        subprocess.run(command, check=True)
    return Call(time.perf_counter() - start, 0.0, 0.0)


def settle(out: Path) -> None:
    """Nothing of one run is left for the next one's disk."""
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run(["sync"], check=True)
    time.sleep(0.2)


def measure(folder: Path, size: int, repeat: int) -> dict[str, list[Call]]:
    """Every case and both copies, taking turns."""
    copies = [f"{name}, {dtype}" for name in (PLAIN, LAZY) for dtype in ("F32", "BF16")]
    calls: dict[str, list[Call]] = {name: [] for name in (*copies, *CASES)}
    out = folder / "out"
    for dtype in ("F32", "BF16"):
        source = folder / dtype
        make_model(source, size, dtype)
        for _ in range(repeat):
            for path in source.iterdir():  # into the page cache, for every side
                subprocess.run(["cat", str(path)], stdout=subprocess.DEVNULL, check=True)
            for name, (kind, asked) in CASES.items():
                if kind == dtype:
                    settle(out)
                    calls[name].append(call([sys.executable, "-c", REWRITE, str(source), str(out), json.dumps(asked)]))
            for name in (PLAIN, LAZY):
                settle(out)
                calls[f"{name}, {dtype}"].append(copy(source, out, durable=name == PLAIN))
        settle(out)
        shutil.rmtree(source)
    return calls


def figures(calls: dict[str, list[Call]], size: int) -> list[Figure]:
    """Speeds beside the copies', and the peak of memory."""
    speed = {name: size / median(each.seconds for each in made) / 1e6 for name, made in calls.items()}
    made = []
    for name, (dtype, _) in CASES.items():
        for copied, target in ((PLAIN, "at least 60 % of the plain copy"), (LAZY, "none: a copy that is not durable")):
            peer = f"{copied}, {dtype}"  # of the same rounds, so that a busy disk is busy for both
            ratio = speed[name] / speed[peer]
            held = copied == LAZY or ratio >= 0.6
            made.append(Figure(f"speed, {name}", speed[name], "MB/s", target, held, copied, speed[peer], ratio))
    peak = max(each.memory for name in CASES for each in calls[name])
    made.append(Figure("peak anonymous memory of any rewriting", peak, "MB", "at most 300 MB", peak <= 300))
    return made


def main() -> int:
    """Measure and report; 1 when a figure misses its target in a full run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 MB, once")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--repeat", type=int, default=3, help="how often each side runs; the median counts")
    parser.add_argument("--folder", type=Path, help="where to work (20 GB); a temporary folder by default")
    arguments = parser.parse_args()
    size, repeat = (100_000_000, 1) if arguments.quick else (5_000_000_000, arguments.repeat)
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="convert-") as scratch:
        calls = measure(Path(scratch), size, repeat)
    found = figures(calls, size)
    notes = {
        "model": f"{size / 1e9:g} GB in two files, to files of 1 GB; median of {repeat}",
        "runs, seconds": {name: [round(each.seconds, 2) for each in made] for name, made in calls.items()},
        "processor seconds": {name: round(median(each.processor for each in calls[name]), 2) for name in CASES},
    }
    report(machine("numpy", "blake3"), found, quick=arguments.quick, as_json=arguments.json, notes=notes)
    return 0 if arguments.quick or all(figure.holds for figure in found) else 1


if __name__ == "__main__":
    sys.exit(main())
