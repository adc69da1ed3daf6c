"""Everything there is to find out on a machine with a GPU, within a fixed time: `python3 .ci/gpu.py [options]`.

Builds the extension with the torch that is there, runs the tests that have a GPU in them, measures, has
compute-sanitizer watch the kernels, and runs the rest of the tests in what time is left. Each step is a process of its
own with a limit; a step that fails or takes too long is noted, and the next begins. What a step found is on disk when
it ends, in gpu.json, in the files of `python -m benchmarks gpu` and in logs/. Needs no network, and no Python packages
but torch, pybind11 and setuptools; without pytest the tests are left out.

The exit code says whether the tests passed: 0, or 1 where one failed, none ran, or the build failed.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.options import folder  # noqa: E402

# Seconds of BUDGET; what a step leaves is shared out among those that follow. In the order of their value.
SHARES = {
    "build": 80,
    "tests": 90,
    "layers": 115,
    "networks": 80,
    "ceilings": 25,
    "convolutions": 40,
    "counters": 40,
    "sanitizer": 45,
    "suite": 25,
}
BUDGET = 540.0
MEASURED = ("layers", "networks", "ceilings", "convolutions", "counters")
BUILDING = 0.6  # of all the time, at most
GRACE = 5.0  # seconds between asking a process to stop and stopping it
STARTING = 12.0  # seconds that a measuring process has for itself
OPTIONAL = ("hypothesis", "psutil", "rich", "safetensors", "tyro", "triton")
OUTCOME = re.compile(r"^(\S+\.py::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
REPORTED = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) error")


class Session:
    """The steps of one run, their processes and what they came to."""

    def __init__(self, options):
        """Raises RuntimeError where torch finds no GPU."""
        self.options = options
        # What stopping the last step takes is part of the time.
        self.end = time.monotonic() + options.budget - min(2 * GRACE, 0.05 * options.budget)
        self.output = folder(gpu_name() if options.device == "cuda" else "cpu", options.smoke, options.output)
        self.logs = self.output / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.running = set()
        self.interrupted = False
        self.steps = {}
        self.started = time.strftime("%Y-%m-%d")
        self.environment = dict(
            os.environ, PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        )

    def run(self):
        wanted = [name for name in SHARES if name in self.options.sections]
        for index, name in enumerate(wanted):
            left = self.end - time.monotonic()
            # Without the extension there is nothing: it may take from the others what it needs.
            share = BUILDING if name == "build" else SHARES[name] / sum(SHARES[each] for each in wanted[index:])
            limit = left * share
            began = time.monotonic()
            print(f"{name}: at most {max(0, limit):.0f} s", flush=True)
            try:
                found = self.step(name, limit) if left > 1 else {"ended": "left out: the time was over"}
            except Exception as error:  # a mistake in one step is not to cost the others
                found = {"ended": f"failed: {type(error).__name__}: {error}"}
            self.steps[name] = dict(found, seconds=round(time.monotonic() - began, 1))
            print(f"{name}: {found['ended']}, {self.steps[name]['seconds']} s", flush=True)
            self.save("running")
            if name == "build" and found["ended"] != "built":
                break
        self.save("whole")

    def step(self, name, limit):
        if name == "build":
            return self.build(limit)
        if name == "tests":
            return self.tests(limit)
        if name == "suite":
            return self.suite(limit)
        if name == "sanitizer":
            return self.sanitizer(limit)
        return self.measure(name, limit)

    def build(self, limit):
        check = self.call("build-check", [sys.executable, ".ci/check_machine.py", "build"], 30)
        if check != 0:
            return {"ended": "failed: " + last_line(self.log("build-check"))}
        code = self.call("build", [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], limit)
        if code == 0:
            code = self.call("build-import", [sys.executable, "-c", "import sparsekern"], 60)
            return {"ended": "built" if code == 0 else "failed: " + last_line(self.log("build-import"))}
        return {"ended": stopped(limit) if code is None else "failed: " + last_line(self.log("build"))}

    def tests(self, limit):
        if find_spec("pytest") is None:
            return {"ended": "left out: pytest is not installed"}
        on_gpu = ["-m", "gpu", "tests"] if self.options.device == "cuda" else ["tests/test_gpu.py"]
        environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        code = self.call("tests", [*pytest(), *on_gpu], limit, environment)
        return tested(code, self.log("tests"), limit)

    def suite(self, limit):
        """The tests without a GPU in them, a file a process, as many at a time as there are pairs of cores."""
        if find_spec("pytest") is None:
            return {"ended": "left out: pytest is not installed"}
        files = sorted((ROOT / "tests").glob("test_*.py"), key=lambda path: -path.stat().st_size)
        if self.options.smoke:
            files = [ROOT / "tests" / "test_choice.py", ROOT / "tests" / "test_densities.py"]
        deadline = time.monotonic() + limit - 1
        waiting, codes, lock = list(files), {}, threading.Lock()

        def work():
            while True:
                with lock:
                    if not waiting or self.interrupted or time.monotonic() > deadline:
                        return
                    path = waiting.pop(0)
                left = max(1, deadline - time.monotonic())
                command = [*pytest(), "-m", "not gpu", str(path.relative_to(ROOT))]
                codes[path.name] = self.call(f"suite-{path.stem}", command, left, {"OMP_NUM_THREADS": "2"})

        workers = [threading.Thread(target=work) for _ in range(max(1, (os.cpu_count() or 2) // 2))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        text = "\n".join(self.log(f"suite-{path.stem}") for path in files)
        # 5: no test of the file is without a GPU.
        bad = [name for name, code in codes.items() if code not in (0, 5, None)]
        found = tested(1 if bad else 0, text, limit)
        cut = len(waiting) + sum(code is None for code in codes.values())
        if cut:
            found["ended"] += f"; {cut} of {len(files)} files not to their end"
        return dict(found, files_with_failures=bad)

    def sanitizer(self, limit):
        target = [sys.executable, "-m", "benchmarks.gpu.exercise", self.options.device]
        if self.options.device != "cuda":
            code = self.call("sanitizer", target, limit)
            return {"ended": f"skipped: only a GPU's kernels are watched; they ran with exit status {code}"}
        if shutil.which("compute-sanitizer") is None:
            return {"ended": "skipped: compute-sanitizer is not installed"}
        found = {}
        for tool, share in (("memcheck", 0.5), ("racecheck", 1.0)):
            command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
            command += ["--report-api-errors", "no"] if tool == "memcheck" else []
            began = time.monotonic()
            # Blocks of their own, or what is written past one would lie in another that torch keeps.
            environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            code = self.call(f"sanitizer-{tool}", [*command, *target], limit * share, environment)
            limit -= time.monotonic() - began
            found[tool] = watched(code, self.log(f"sanitizer-{tool}"))
        return {"ended": ", ".join(f"{tool} {what}" for tool, what in found.items())}

    def measure(self, name, limit):
        command = [sys.executable, "-m", "benchmarks", "gpu", "--device", self.options.device, "--sections", name]
        command += ["--budget", f"{max(2.0, limit - STARTING):.0f}", "--output", str(self.output)]
        command += ["--smoke"] if self.options.smoke else []
        command += ["--commit", self.options.commit] if self.options.commit else []
        command += ["--backends", *self.options.backends] if self.options.backends else []
        code = self.call(name, command, limit)
        if code is None:
            return {"ended": stopped(limit) + "; what it had found is kept"}
        if code != 0:
            return {"ended": "failed: " + last_line(self.log(name))}
        path = self.output / f"{name}.json"
        wrong = path.read_text().count("WRONG") if path.exists() else 0
        return {"ended": "measured" + (f", {wrong} results WRONG and left out" if wrong else "")}

    def call(self, name, command, limit, environment=None):
        """The exit status of a command, or None where it was stopped; its output goes to logs/`name`.log."""
        with open(self.logs / f"{name}.log", "w") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=dict(self.environment, **(environment or {})),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.running.add(process)
            try:
                return process.wait(timeout=max(0.1, limit))
            except subprocess.TimeoutExpired:
                stop(process)
                return None
            except KeyboardInterrupt:
                stop(process)
                raise
            finally:
                self.running.discard(process)

    def log(self, name):
        path = self.logs / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def save(self, ended):
        """Writes gpu.json: whole or not at all."""
        result = {
            "date": self.started,
            "commit": self.options.commit or commit(),
            "device": self.options.device,
            "smoke": self.options.smoke,
            "budget": self.options.budget,
            "python": sys.version.split()[0],
            "not_installed": [name for name in OPTIONAL if find_spec(name) is None],
            "ended": ended,
            "passed": self.passed(),
            "steps": self.steps,
        }
        aside = self.output / ".gpu.json.tmp"
        aside.write_text(json.dumps(result, indent=1) + "\n")
        os.replace(aside, self.output / "gpu.json")

    def passed(self):
        """Whether tests ran and none failed, as far as they were asked for."""
        if self.steps.get("build", {}).get("ended", "built") != "built":
            return False
        tests = [self.steps[name] for name in ("tests", "suite") if name in self.steps]
        watched_well = "FOUND" not in self.steps.get("sanitizer", {}).get("ended", "")
        return (
            watched_well
            and not any(step.get("failed") for step in tests)
            and ("tests" not in self.options.sections or self.steps.get("tests", {}).get("passed", 0) > 0)
        )

    def interrupt(self):
        self.interrupted = True
        for process in list(self.running):
            stop(process)
        self.save("interrupted")

    def summary(self):
        print(f"\nresults in {self.output}")
        for name, step in self.steps.items():
            print(f"  {name:13}{step['seconds']:7.1f} s  {step['ended']}")
            for failure in step.get("failures", [])[:20]:
                print(f"    FAILED {failure}")


def pytest():
    # A line a test: what was done before a process is stopped can be read from them.
    options = ["-o", "addopts=", "-v", "-rsE", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    return [sys.executable, "-m", "pytest", *options]


def tested(code, text, limit):
    """What pytest's own lines say; `code` None: it was stopped."""
    outcomes = OUTCOME.findall(text)
    failures = [name for name, outcome in outcomes if outcome in ("FAILED", "ERROR")]
    failures += re.findall(r"^ERROR (\S+\.py)(?= - |$)", text, re.MULTILINE)  # of collection
    counts = {word: sum(outcome == word.upper() for _, outcome in outcomes) for word in ("passed", "skipped")}
    reasons = sorted(set(re.findall(r"^SKIPPED \[\d+\] (.*)$", text, re.MULTILINE)))
    failed = len(failures) or int(code not in (0, 5, None))
    ended = f"{counts['passed']} passed, {failed} failed, {counts['skipped']} skipped"
    if code is None:
        ended = f"{stopped(limit)}: {ended}"
    elif failed and not failures:
        ended += f" ({last_line(text)})"
    return dict(counts, ended=ended, failed=failed, failures=failures, skipped_because=reasons)


def watched(code, text):
    """What compute-sanitizer found."""
    reported = REPORTED.search(text)
    if code is None:
        return "stopped: the time was over"
    if reported is None:
        return f"skipped: it does not work here ({last_line(text)})"
    errors = int(reported[1] or reported[2])
    if errors:
        return f"FOUND {errors} errors"
    return "found nothing" if code == 0 else f"FOUND wrong results, exit status {code}"


def stopped(limit):
    return f"stopped after {limit:.0f} s"


def last_line(text):
    return ([line.strip() for line in text.splitlines() if line.strip()] or ["no output"])[-1][:300]


def stop(process):
    """Asks a process and its children to stop, waits a little, and stops them."""
    for number, patience in ((signal.SIGINT, GRACE), (signal.SIGKILL, GRACE)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            continue
    with contextlib.suppress(ProcessLookupError):  # children that outlive their parent
        os.killpg(process.pid, signal.SIGKILL)


def gpu_name():
    """As torch names it.

    Raises:
        RuntimeError: there is none that torch can use, or no torch.
    """
    code = "import torch; print(torch.cuda.get_device_name(0))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        why = last_line(done.stderr)
        raise RuntimeError(f"torch of {sys.executable} can use no GPU ({why}); --device cpu --smoke rehearses without")
    return done.stdout.strip().splitlines()[-1]


def commit():
    if shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or None


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sections", nargs="+", default=list(SHARES), choices=list(SHARES), metavar="STEP", help=", ".join(SHARES))
    add("--budget", type=float, default=BUDGET, help=f"seconds for all of it, {BUDGET:g} by default")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only rehearses, with --smoke")
    add("--smoke", action="store_true", help="tiny shapes and few tests: does everything run?")
    add("--backends", nargs="+", default=(), help="of sparsekern's to measure; by default all that serve the device")
    add("--commit", default=None, help="of the sources, where they lie outside of a checkout")
    add("--output", type=Path, default=None, help="folder of the results; by default benchmarks/results/MACHINE/gpu")
    options = parser.parse_args(arguments)
    if options.device == "cpu" and not options.smoke:
        parser.error("--device cpu only rehearses: expected --smoke with it")
    if options.budget <= 0:
        parser.error(f"--budget is {options.budget:g}; expected seconds above 0")
    options.output = options.output and options.output.resolve()
    return options


def interrupted(number, frame):
    raise KeyboardInterrupt


def main(arguments):
    try:
        session = Session(parse(arguments))
    except RuntimeError as error:
        print(f"make gpu: {error}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, interrupted)
    code = 1
    try:
        session.run()
        code = 0 if session.passed() else 1
    except KeyboardInterrupt:
        session.interrupt()
        code = 130
    session.summary()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
