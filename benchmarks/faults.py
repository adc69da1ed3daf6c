"""What a run survives, counted: kills while saving, damaged files, a full disk, many steps, interruptions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.faulty import damage, disk, jobs, saving, steps
from benchmarks.options import Faults
from sparsekern import tables

MIB = 2**20


def run(options: Faults) -> None:
    if min(options.kills, options.flips, options.interruptions, options.ranks) < 1 or options.steps < 2 * steps.FIRST:
        raise ValueError(f"--kills, --flips, --interruptions and --ranks are at least 1, --steps {2 * steps.FIRST}")
    torch.set_num_threads(options.threads)
    measured = {
        "kill": lambda: saving.kill(options.kills, options.seed),
        "damage": lambda: damage.damage(options.flips, options.seed),
        "newer": lambda: damage.newer(options.seed),
        "disk": lambda: disk.full(options.seed),
        "steps": lambda: steps.grow(options.steps, options.seed),
        "jobs": lambda: jobs.interrupt(options.interruptions, options.ranks, options.seed),
    }
    for section in options.sections:
        print(section, file=sys.stderr, flush=True)
        made = report.begin("faults", options)
        found = {key_of(section, options.ranks): measured[section]() | {"made": made}}
        result = earlier(options.output) | found  # read now: others may have been measured meanwhile
        report.save(result, page(result), options.output, "faults")  # the next one may take an hour
    print(page(earlier(options.output)))


def earlier(output: Path) -> dict[str, Any]:
    path = output / "faults.json"
    return json.loads(path.read_text()) if path.exists() else {}


def key_of(section: str, ranks: int) -> str:
    """Jobs of several ranks stand beside those of one."""
    return section if section != "jobs" or ranks == 1 else f"jobs_{ranks}_ranks"


def page(result: dict[str, Any]) -> str:
    paragraphs = [
        "# What a run survives",
        "What each section does to a run, and how to resume one, is in [docs/recovery.md](../../docs/recovery.md).",
    ]
    for section, write in PAGES.items():
        for key in sorted(key for key in result if key == section or key.startswith(f"{section}_")):
            found = result[key]
            paragraphs += [f"Not measured: {found['failed']}."] if "failed" in found else write(found)
            paragraphs.append(report.where(found["made"]))
    return tables.page(paragraphs)


def kill_page(found: dict[str, Any]) -> list[str]:
    return [
        "## SIGKILL while saving",
        f"{found['newest_whole_and_right']} of {found['kills']}: the newest checkpoint is that of the last finished "
        "save or of the one that was going on, equal to what was saved, and so are the earlier ones. "
        f"{found['bytes']:,} bytes, saved without pause.",
        report.table(["what the process was at", "kills"], [[k, str(v)] for k, v in sorted(found["moments"].items())]),
    ]


def damage_page(found: dict[str, Any]) -> list[str]:
    outcomes = sorted({*found["truncations"], *found["flips"]})
    rows = [[each, str(found["truncations"].get(each, 0)), str(found["flips"].get(each, 0))] for each in outcomes]
    return [
        "## Damaged files",
        f"{found['errors']} of {found['of']} are an error that names the file ({found['bytes']:,} bytes). A run does "
        "not go on where the damage makes the file look like a newer version's.",
        report.table(["", "cut short", "a bit flipped"], rows),
    ]


def newer_page(found: dict[str, Any]) -> list[str]:
    return ["## A newer version's file", f"{'Refused' if found['refused'] else 'NOT refused'}: `{found['message']}`"]


def disk_page(found: dict[str, Any]) -> list[str]:
    return [
        "## A full disk",
        f"On a tmpfs with room for half a checkpoint the run ends with exit code {found['exit_code']}: "
        f"`{found['message']}`. The old checkpoint is {'as it was' if found['old_file_stays'] else 'NOT as it was'}; "
        f"the folder has {', '.join(found['left'])}. With room again, `--resume` ends with exit code "
        f"{found['exit_code_with_space']} and {'the' if found['same_final_weights'] else 'NOT the'} weights of a run "
        "without a break.",
    ]


def steps_page(found: dict[str, Any]) -> list[str]:
    rows = []
    for name in steps.NETWORKS:
        each = found[name]
        if "failed" in each:
            rows.append([name, "-", "-", "-", "-", each["failed"]])
            continue
        memory, tensors = each["bytes_every_1000_steps"], each["tensors_every_1000_steps"]
        sizes = [f"{size / MIB:.1f}" for size in (memory[0], memory[-1])]
        rows.append([name, f"{each['steps']:,}", *sizes, f"{each['growth']:+.2%}", f"{tensors[0]} / {tensors[-1]}"])
    header = ["", "steps", "MiB after 1,000", "at the end", "growth", "live tensors, then and at the end"]
    return [
        "## Many steps",
        f"Resident memory, with a topology update every {steps.INTERVAL} steps, a test each epoch and a checkpoint "
        "every 20.",
        report.table(header, rows),
    ]


def jobs_page(found: dict[str, Any]) -> list[str]:
    what = {
        "killed": "a process is killed; the job ends with an error within the minute, the same command finishes it",
        "restarted": "a process is killed under torchrun's `--max-restarts=1`, which finishes it",
        "stopped": "SIGTERM; the job saves and stops, the same command finishes it",
        "hung": f"a process hangs (SIGSTOP); `--timeout {jobs.PATIENCE}` ends the job, the same command finishes it",
        "orphaned": "torchrun is killed; its processes save and end by themselves, the same command finishes it",
        "doubled": "the same command while the job is at work; it is refused, and the job finishes",
    }
    rows = []
    for way, told in what.items():
        if way in found:
            counts = found[way]
            moments = str(counts["interrupted_before_their_end"]), str(counts["while_saving"])
            rows.append([told, *moments, f"{counts['as_it_should']} of {counts['of']}"])
    killed, hung, orphaned = (
        max((trial.get(key, 0.0) for trial in found["trials"]), default=0.0)
        for key in ("seconds_to_end", "seconds_to_end_hung", "seconds_to_end_orphaned")
    )
    waited = f", {orphaned:.1f} s after torchrun was killed" if orphaned else ""
    waited += f", and {hung:.1f} s after one hung, {jobs.GRACE:.0f} s of which torchrun gives it" if hung else ""
    return [
        f"## Interrupted jobs, {found['ranks']} process{'es' if found['ranks'] > 1 else ''}",
        f"At random moments of a run that trains for {found['seconds_of_training']:.0f} s and saves every second step. "
        f"The longest that a job took to end is {killed:.1f} s after a kill{waited}. In the end each must equal a run "
        "without a break to the bit: weights, optimizer state, order of data, random states, and the CSV files but for "
        "times.",
        report.table(["", "came in time", "while saving", "as said, and equal"], rows),
    ]


PAGES = {
    "kill": kill_page,
    "damage": damage_page,
    "newer": newer_page,
    "disk": disk_page,
    "steps": steps_page,
    "jobs": jobs_page,
}
