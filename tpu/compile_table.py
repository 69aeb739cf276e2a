"""Makes the tables of tpu/README.md: what V-MoE needs on which slice, and how that grows.

    python tpu/compile_table.py --out=DIR

Runs `keras-vmoe tpu-compile` for each row; no TPU is needed, and some hours of a CPU are. What was
compiled before is read from DIR, so the command may be stopped and called again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

GIB = 2**30
DOES_NOT_FIT = 3
MODELS = {
    "S/32, every 2": "s32_every2_jft",
    "B/16, every 2": "b16_every2_jft",
    "L/16, every 2": "l16_every2_jft",
    "H/14, last 5": "h14_last5_jft",
    "15B, every 2": "15b_every2_jft",
}
FAMILIES = ("v5e", "v5p")
HOW = ("--quick", "--dtype=mixed_bfloat16")
IMAGES_PER_CHIP = 64
CHIPS = {8: "2x2x2", 32: "2x4x4", 128: "4x4x8", 512: "8x8x8"}
EXPERTS = (8, 32, 128, 512)


def compiled(folder: Path, name: str, *words: str) -> list[dict]:
    """The rows of one call of the command, from the folder if it has them."""
    path = folder / f"{name}.json"
    if not path.exists():
        command = [*(sys.executable, "-m", "keras_vmoe.trainers.cli", "tpu-compile"), *words]
        print("keras-vmoe tpu-compile", *words, file=sys.stderr, flush=True)
        done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode not in (0, DOES_NOT_FIT):
            sys.exit(f"compile_table: {name} failed with exit code {done.returncode}")
        path.write_text(done.stdout)
    return json.loads(path.read_text())


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cells(row: dict) -> tuple[str, ...]:
    """What a device needs: parameters, optimizer, other, all, TFLOP, exchanges."""
    sizes = [row[name] for name in ("parameters", "optimizer", "other")]
    memory = [f"{size / GIB:.2f}" for size in (*sizes, sum(sizes))]
    exchanges = [
        f"{row['collectives'].get(kind, {'bytes': 0})['bytes'] / 1e6:,.0f}"
        for kind in ("all-to-all", "all-reduce", "all-gather")
    ]
    flops = "–" if row["flops"] is None else f"{row['flops'] / 1e12:.1f}"
    return (*memory, flops, *exchanges)


def smallest_slices(folder: Path) -> str:
    """The smallest slice of each model, with and without remat."""
    rows = []
    for model, file in MODELS.items():
        for remat in ("noremat", "remat"):
            words = (f"--gin_file=runs/vmoe/{file}.gin", f"--{remat}", *HOW)
            for family in FAMILIES:
                found = compiled(folder, f"{file}-{remat}-{family}", *words, f"--topology={family}")
                if found and found[-1]["fits"]:
                    break
            on = "on" if remat == "remat" else "off"
            if not found or not found[-1]["fits"]:
                rows.append((model, on, "none", *[""] * 10))
                continue
            last = found[-1]
            by_blocks = [r for r in found if r["topology"] == last["topology"] and r is not last]
            guess = sum(by_blocks[-1][name] for name in ("parameters", "optimizer", "other")) / GIB
            where = (f"{last['topology']} ({last['chips']})", last["mesh"])
            rows.append((model, on, *where, f"{guess:.2f}", *cells(last)))
    head = (
        *("model", "remat", "smallest slice (chips)", "mesh", "by 2 and 4 blocks, GiB"),
        *("parameters", "optimizer", "other", "all, GiB", "TFLOP"),
        *("all-to-all, MB", "all-reduce, MB", "all-gather, MB"),
    )
    return markdown(head, rows)


def growth(folder: Path) -> str:
    """S/32 from 8 to 512 chips and from 8 to 512 experts."""
    file, rows = "s32_every2_jft", []
    sizes = [(chips, 32) for chips in CHIPS] + [(64, experts) for experts in EXPERTS]
    for chips, experts in sizes:
        shape = {**CHIPS, 64: "4x4x4"}[chips]
        bindings = {
            "train.batch_size": IMAGES_PER_CHIP * chips,
            "from_variant.num_experts": experts,
        }
        words = [f"--gin_bindings={name}={value}" for name, value in bindings.items()]
        words += [f"--gin_file=runs/vmoe/{file}.gin", f"--topology=v5p:{shape}", *HOW]
        (row,) = compiled(folder, f"growth-{chips}-{experts}", *words, "--blocks=2,4")
        rows.append((str(chips), str(experts), row["mesh"], *cells(row)))
    head = (
        *("chips", "experts", "mesh", "parameters", "optimizer", "other", "all, GiB", "TFLOP"),
        *("all-to-all, MB", "all-reduce, MB", "all-gather, MB"),
    )
    return markdown(head, rows)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="the folder of the results")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    print(growth(folder), "\n", flush=True)
    print(smallest_slices(folder))


if __name__ == "__main__":
    main()
