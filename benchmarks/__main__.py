"""Runs the benchmarks, prints a table for each, and saves them all.

python -m benchmarks                        all but those of `BY_NAME`, each of which takes minutes
python -m benchmarks small large --rounds 5
python -m benchmarks --quick                a hundredth of the size, to see that it works
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.bucket import bodies, bucket
from benchmarks.measure import Cost, run
from benchmarks.model_check import JOBS, calibrated, measured_s, smaller
from benchmarks.peers import OURS, PEERS, bulkfetch
from benchmarks.scale import SWEEPS
from benchmarks.scale_model import Forecast, reckon
from benchmarks.server import find_nginx
from tests.raycluster import ray_cluster

QUERIES, DOWNLOADS = 32, 64
API_S, STORAGE_S = 0.05, 0.03

RESULTS = Path("build/bench")
# Each takes minutes.
BY_NAME = ("bucket", "bodies", "memory", "ray", "scale", "model")


def _against_peers(bench: Bench, title: str, images: int, size_bytes: int) -> None:
    there = [peer for peer in PEERS if peer.is_there()]
    costs: dict[str, list[Cost]] = defaultdict(list)
    with bench.served(images=images, size_bytes=size_bytes) as served:
        for _ in range(bench.rounds):
            for peer in (OURS, *there):
                with bench.directory() as directory:
                    out = directory / "out"
                    costs[peer.name].append(run(peer.command(served, out)))
                    _expect(out, images, size_bytes)
    rows = []
    for peer in (OURS, *there):
        found = costs[peer.name]
        wall_s = statistics.median(cost.wall_s for cost in found)
        ratios = [
            theirs.wall_s / ours.wall_s
            for ours, theirs in zip(costs[OURS.name], found, strict=True)
        ]
        rows.append({
            "": peer.name,
            "files/s": f"{images / wall_s:,.0f}",
            "MB/s": f"{images * size_bytes / wall_s / 1e6:,.0f}",
            "CPU µs/file": f"{statistics.median(c.cpu_s for c in found) / images * 1e6:,.0f}",
            "peak MB": f"{max(cost.peak_bytes for cost in found) / 1e6:,.0f}",
            "bulkfetch is so many times as fast": f"{statistics.median(ratios):.2f}",
        })  # fmt: skip
    bench.tell(title, rows)
    for peer in PEERS:
        if peer not in there:
            print(f"(not installed: {peer.version[0]})")


def _expect(out: Path, images: int, size_bytes: int) -> None:
    """Make sure that a tool did the job."""
    sizes = [p.stat().st_size for p in out.rglob("*") if p.is_file() and p.suffix != ".json"]
    found = sum(size == size_bytes for size in sizes)
    if found != images:
        raise SystemExit(f"{found} of {images} images are in {out}")


def small(bench: Bench) -> None:
    """Images of 20 kB, into memory."""
    images = 20_000 // bench.divisor
    _against_peers(bench, f"{images:,} images of 20 kB, into memory", images, 20_000)


def large(bench: Bench) -> None:
    """Images of 400 kB, into memory."""
    images = 2_000 // bench.divisor
    _against_peers(bench, f"{images:,} images of 400 kB, into memory", images, 400_000)


def disk(bench: Bench) -> None:
    """Images of 20 kB onto the disk where results are saved, waiting for it and not."""
    images = 5_000 // bench.divisor
    costs: dict[str, list[Cost]] = defaultdict(list)
    with bench.served(images=images, size_bytes=20_000) as served:
        for _ in range(bench.rounds):
            for name, options in (("--no-fsync", ["--no-fsync"]), ("durable, the default", [])):
                with bench.directory(bench.save) as directory:
                    os.sync()
                    costs[name].append(run(bulkfetch(served, directory / "out", *options)))
    waived, durable = costs.values()
    ratio = statistics.median(a.wall_s / b.wall_s for a, b in zip(waived, durable, strict=True))
    bench.tell(
        f"{images:,} images of 20 kB, on a disk",
        [
            {
                "": name,
                "files/s": f"{images / statistics.median(c.wall_s for c in found):,.0f}",
                "times --no-fsync": f"{ratio if found is durable else 1:.2f}",
            }
            for name, found in costs.items()
        ],
    )


def latency(bench: Bench) -> None:
    """A line on which time is lost waiting: how near the limit by Little's law."""
    rows = []
    for per_patient in (1, 3):
        patients = 12_000 // per_patient // bench.divisor
        images = patients * per_patient
        found = []
        fields = {"images": images, "size_bytes": 20_000, "images_per_patient": per_patient}
        with bench.served(**fields, latency_s=(API_S, STORAGE_S)) as served:
            for _ in range(bench.rounds):
                with bench.directory() as directory:
                    at_once = (
                        f"--query-concurrency={QUERIES}", f"--download-concurrency={DOWNLOADS}",
                    )  # fmt: skip
                    run(bulkfetch(served, directory / "out", "--no-fsync", *at_once))
                    (summary,) = directory.glob("out/.bulkfetch/runs/*/summary.json")
                    found.append(json.loads(summary.read_bytes())["seconds"])
            api_s, storage_s = served.took_s()
        # So many at once, each taking so long, is so many a second (J. D. C. Little, 1961).
        limit_s = max(patients * api_s / QUERIES, images * storage_s / DOWNLOADS)
        took_s = statistics.median(found)
        rows.append({
            "images a patient": per_patient,
            "patients": f"{patients:,}",
            "ms an answer, as served": f"{api_s * 1e3:.1f}, {storage_s * 1e3:.1f}",
            "limit, s": f"{limit_s:.2f}",
            "took, s": f"{took_s:.2f}",
            "of the limit": f"{limit_s / took_s:.2f}",
        })  # fmt: skip
    bench.tell(
        f"{API_S * 1e3:.0f} ms an API answer, {STORAGE_S * 1e3:.0f} ms to the first byte, "
        f"{QUERIES} queries and {DOWNLOADS} downloads at once",
        rows,
    )


def again(bench: Bench) -> None:
    """A second run, with nothing new."""
    images = 20_000 // bench.divisor
    costs: list[Cost] = []
    with bench.served(images=images, size_bytes=20_000) as served, bench.directory() as directory:
        command = bulkfetch(served, directory / "out", "--no-fsync")
        run(command)
        costs.extend(run(command) for _ in range(bench.rounds))
        # As many questions, to which the answer is that there is nothing.
        empty = served.manifest.with_name("empty.csv")
        ids = (f"nobody-{number}\n" for number in range(served.patients))
        empty.write_text("".join(["patient_id\n", *ids]), encoding="utf-8")
        asking = [part if part != served.manifest else empty for part in command]
        questions = [run(asking) for _ in range(bench.rounds)]
    cpu_s = statistics.median(cost.cpu_s for cost in costs)
    asking_s = statistics.median(cost.cpu_s for cost in questions)
    bench.tell(
        f"a second run over {images:,} images, all unchanged",
        [
            {
                "images/s": f"{images / statistics.median(c.wall_s for c in costs):,.0f}",
                "CPU µs/image, all": f"{cpu_s / images * 1e6:,.0f}",
                "of it beside the questions": f"{(cpu_s - asking_s) / images * 1e6:,.0f}",
            }
        ],
    )


def prove(bench: Bench) -> None:
    """`verify` against hashing the same images and nothing else."""
    rows = []
    for images, size_bytes in ((20_000, 20_000), (2_000, 400_000)):
        with (
            bench.served(images=images // bench.divisor, size_bytes=size_bytes) as served,
            bench.directory() as directory,
        ):
            out = directory / "out"
            run(bulkfetch(served, out, "--no-fsync"))
            hashing = f"find {out} -name '*.v*.[jp][pn]g' -print0 | xargs -0 -P2 -n 64 sha256sum"
            pairs = [
                (
                    run([sys.executable, "-m", "bulkfetch", "verify", out]),
                    run(["sh", "-c", f"{hashing} >/dev/null"]),
                )
                for _ in range(bench.rounds)
            ]
        ours = statistics.median(cost.wall_s for cost, _ in pairs)
        theirs = statistics.median(cost.wall_s for _, cost in pairs)
        rows.append({
            "images": f"{served.images:,} of {size_bytes // 1000} kB",
            "verify, MB/s": f"{served.size_bytes / ours / 1e6:,.0f}",
            "xargs -P2 sha256sum, MB/s": f"{served.size_bytes / theirs / 1e6:,.0f}",
            "ratio": f"{statistics.median(b.wall_s / a.wall_s for a, b in pairs):.2f}",
        })  # fmt: skip
    bench.tell("verify, against hashing alone", rows)


def startup(bench: Bench) -> None:
    """How long `--help` takes to appear."""
    pairs = [
        (run([sys.executable, "-m", "bulkfetch", "--help"]), run([sys.executable, "-c", "pass"]))
        for _ in range(5 * bench.rounds)
    ]
    ours = statistics.median(cost.wall_s for cost, _ in pairs)
    bare = statistics.median(cost.wall_s for _, cost in pairs)
    bench.tell(
        "start-up",
        [
            {
                "bulkfetch --help, ms": f"{ours * 1e3:.0f}",
                "python -c pass, ms": f"{bare * 1e3:.0f}",
                "ratio": f"{ours / bare:.2f}",
            }
        ],
    )


def memory(bench: Bench) -> None:
    """Peak memory with few patients and with many, a hundredth of whom have images."""
    rows = []
    for patients in (10_000 // bench.divisor, 1_000_000 // bench.divisor):
        images = max(5, patients // 20)
        fields = {"images": images, "size_bytes": 20_000, "without_images": patients - images // 5}
        with bench.served(**fields) as served, bench.directory() as directory:
            cost = run(bulkfetch(served, directory / "out", "--no-fsync"))
            rows.append({
                "patients": f"{patients:,}",
                "images": f"{images:,}",
                "peak MB": f"{cost.peak_bytes / 1e6:.1f}",
                "patients/s": f"{patients / cost.wall_s:,.0f}",
            })  # fmt: skip
    bench.tell("memory", rows)


def ray(bench: Bench) -> None:
    """Two workers of a Ray cluster, each of them with as much at once, against one."""
    latency_s, queries, downloads = 0.1, 4, 8
    patients = 6_000 // bench.divisor
    took: dict[int, list[float]] = defaultdict(list)
    fields = {"images": patients, "size_bytes": 20_000, "images_per_patient": 1}
    with (
        bench.served(**fields, latency_s=(latency_s, latency_s)) as served,
        ray_cluster() as cluster,
    ):
        os.environ |= cluster.credentials
        for _ in range(bench.rounds):
            for workers in (1, 2):
                options = (
                    "--engine=ray", f"--ray-address={cluster.address}", f"--ray-workers={workers}",
                    f"--query-concurrency={queries * workers}",
                    f"--download-concurrency={downloads * workers}", "--no-fsync",
                )  # fmt: skip
                with bench.directory() as directory:
                    run(bulkfetch(served, directory / "out", *options))
                    (summary,) = directory.glob("out/.bulkfetch/runs/*/summary.json")
                    took[workers].append(json.loads(summary.read_bytes())["seconds"])
    ratios = [one / two for one, two in zip(took[1], took[2], strict=True)]
    bench.tell(
        f"{patients:,} patients with an image each, {latency_s * 1e3:.0f} ms an answer, "
        f"{queries} queries and {downloads} downloads at once for each worker",
        [
            {
                "workers": workers,
                "took, s, starting them included": f"{statistics.median(found):.1f}",
                "patients/s": f"{patients / statistics.median(found):,.0f}",
                "times one": f"{statistics.median(ratios) if workers == 2 else 1:.2f}",
            }
            for workers, found in took.items()
        ],
    )


def scale(bench: Bench) -> None:
    """One run for each number of patients, each latency, each concurrency: tables and curves."""
    from benchmarks.plots import draw  # noqa: PLC0415  matplotlib is for this alone

    for sweep in SWEEPS:
        rows = []
        for value in sweep.values:
            case = sweep.case(value, bench.divisor)
            with bench.served(**case.served) as served, bench.directory() as directory:
                cost = run(bulkfetch(served, directory / "out", "--no-fsync", *case.options))
                (summary,) = directory.glob("out/.bulkfetch/runs/*/summary.json")
                took_s = json.loads(summary.read_bytes())["seconds"]
            rows.append(
                {
                    sweep.name: value,
                    "patients": served.patients,
                    "images": served.images,
                    "seconds": round(took_s, 2),
                    "a second": round(case.counted(served) / took_s),
                    "limit a second": round(case.limit) if case.limit else "",
                    "peak MB": round(cost.peak_bytes / 1e6, 1),
                }
            )
        bench.tell(f"scale: {sweep.title}", rows)
        with (bench.save / f"{sweep.name}.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
        draw(bench.save / f"{sweep.name}.png", sweep, rows)


def model(bench: Bench) -> None:
    """What `scale_model` foretells of runs, against the runs."""
    foretold: dict[str, list[tuple[Forecast, float]]] = defaultdict(list)
    for _ in range(bench.rounds):
        for name, job in JOBS.items():
            few = smaller(job, bench.divisor)
            one = calibrated(few, bench.served, bench.directory, bench.divisor)
            took_s = measured_s(one, bench.served, bench.directory)
            foretold[name].append((reckon(one), took_s))
    bench.tell(
        "the model, against runs",
        [
            {
                "": name,
                "waits for": found[0][0].bound,
                "foretold, s": f"{statistics.median(f.seconds for f, _ in found):.2f}",
                "took, s": f"{statistics.median(took_s for _, took_s in found):.2f}",
                "off by": f"{statistics.median(f.seconds / t - 1 for f, t in found):+.1%}",
            }
            for name, found in foretold.items()
        ],
    )


BENCHMARKS: dict[str, Callable[[Bench], None]] = {
    f.__name__: f
    for f in (
        small,
        large,
        disk,
        latency,
        again,
        prove,
        startup,
        bucket,
        bodies,
        memory,
        ray,
        scale,
        model,
    )
}


# They take minutes, or packages besides.
def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the size")
    parser.add_argument(
        "--save", type=Path, default=RESULTS, metavar="DIRECTORY", help="for what `scale` draws"
    )
    given = parser.parse_args()
    names = given.names or [name for name in BENCHMARKS if name not in BY_NAME]
    given.save.mkdir(parents=True, exist_ok=True)
    bench = Bench(rounds=given.rounds, divisor=100 if given.quick else 1, save=given.save)
    versions = {peer.name: peer.says() for peer in (OURS, *PEERS) if peer.is_there()}
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors, {platform.platform()}")
    server = "nginx" if find_nginx() else "a bare one in Python, since nginx is not installed"
    print(f"server: {server}")
    for name, version in versions.items():
        print(f"{name}: {version}")
    for name in names:
        BENCHMARKS[name](bench)
    saved = {"versions": versions, "rounds": given.rounds, "tables": bench.results}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "results.json").write_text(json.dumps(saved, indent=2), encoding="utf-8")
    print(f"\nsaved in {RESULTS / 'results.json'}")


if __name__ == "__main__":
    main()
