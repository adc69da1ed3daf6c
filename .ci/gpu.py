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
MEASURED_BACKENDS = ("triton", "cuda", "reference")  # on a GPU, where none are named
BUILDING = 0.6  # of all the time, at most
GRACE = 5.0  # seconds between asking a process to stop and stopping it
STARTING = 12.0  # seconds that a measuring process has for itself
OPTIONAL = ("hypothesis", "psutil", "rich", "safetensors", "tyro", "triton")
# Of a backend: the modules in tests/ that tests/test_BACKEND.py has run, and the processes that share each one's tests.
# Triton compiles some hundred kernels for them, a second each.
BACKENDS = {
    "triton": {"running_gpu": 3, "running_triton": 1, "running_triton_conv2d": 4},
    "cuda": {"running_gpu": 1, "running_cuda": 1, "running_cuda_tiles": 1},
}
LAYERS_WITH_A_GPU = 3  # processes that share all other tests with a GPU in them
PREPARED = {"layers": ("layers",), "convolutions": ("convolutions",), "networks": ("checks", "bfloat16", "float32")}
FEW_THREADS = {"OMP_NUM_THREADS": "2"}  # of each process, where many run side by side
RESTARTS = 4  # of a process whose GPU context was lost in a test
LOST = "the GPU's context is lost"  # tests/conftest.py says so
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
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        # Plugins of whatever else is installed, jax's among them, take longer to import than most tests.
        self.environment = dict(os.environ, PYTHONPATH=path, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")

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
            if name == "build" and not found["ended"].startswith("built"):
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
        if code != 0:
            return {"ended": stopped(limit) if code is None else "failed: " + last_line(self.log("build"))}
        code = self.call("build-import", [sys.executable, "-c", "import sparsekern"], 60)
        if code != 0:
            return {"ended": "failed: " + last_line(self.log("build-import"))}
        code = self.call("build-import-cuda", [sys.executable, "-c", "import sparsekern._cuda"], 60)
        # What nvcc said is in the build's log.
        return {
            "ended": "built" if code == 0 else f"built without CUDA kernels: {last_line(self.log('build-import-cuda'))}"
        }

    def tests(self, limit):
        """The tests with a GPU in them, as many processes at a time as there are cores.

        A kernel that loses its process the GPU's context costs the others nothing; and Triton's compiler, which takes
        most of the time, has all cores. Beside them it compiles what will be measured.
        """
        if find_spec("pytest") is None:
            return {"ended": "left out: pytest is not installed"}
        deadline = time.monotonic() + limit - 1
        commands, left_out = self.test_commands()
        preparing = self.prepare_commands()
        codes = self.side_by_side(commands | preparing, os.cpu_count() or 2, deadline, restarts=RESTARTS)
        names = [name for name in commands if name in codes]
        found = tested({name: codes[name] for name in names}, {name: self.log(name) for name in names}, limit)
        found["skipped_because"] += left_out
        if waiting := len(commands) - len(names):
            found["ended"] += f"; {waiting} of {len(commands)} processes not begun"
        prepared = {name: codes.get(name, "not begun") for name in preparing}
        return dict(found, prepared={name: "stopped" if code is None else code for name, code in prepared.items()})

    def test_commands(self):
        """({name of the log: (command, environment)}, what is left out and why)."""
        if self.options.device != "cuda":
            return sharded("tests", ["tests/test_gpu.py"], {}, 2), []
        deterministic = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", **FEW_THREADS}
        missing = {
            "triton": "" if find_spec("triton") else "triton is not installed",
            "cuda": "" if list((ROOT / "sparsekern").glob("_cuda.*.so")) else "no CUDA kernels were built",
        }
        commands = {}
        for backend, modules in BACKENDS.items():
            environment = {**deterministic, "SPARSEKERN_TESTED_BACKEND": backend}
            for module, processes in modules.items() if not missing[backend] else ():
                commands |= sharded(f"tests-{backend}-{module}", [f"tests/{module}.py"], environment, processes)
        # These have the same modules run, in a process of its own.
        others = ["-m", "gpu", "-k", "not on_the_gpu", "tests"]
        commands |= sharded("tests", others, deterministic, LAYERS_WITH_A_GPU)
        return commands, [f"backend {backend}: {why}" for backend, why in missing.items() if why]

    def prepare_commands(self):
        if self.options.device != "cuda" or find_spec("triton") is None:
            return {}
        parts = [part for section in PREPARED if section in self.options.sections for part in PREPARED[section]]
        command = [sys.executable, "-m", "benchmarks.gpu.prepare"]
        return {f"prepare-{part}": ([*command, part], FEW_THREADS) for part in parts}

    def suite(self, limit):
        """The tests without a GPU in them, a file a process, as many at a time as there are pairs of cores."""
        if find_spec("pytest") is None:
            return {"ended": "left out: pytest is not installed"}
        files = sorted((ROOT / "tests").glob("test_*.py"), key=lambda path: -path.stat().st_size)
        if self.options.smoke:
            files = [ROOT / "tests" / "test_choice.py", ROOT / "tests" / "test_densities.py"]
        arguments = {f"suite-{path.stem}": ["-m", "not gpu", str(path.relative_to(ROOT))] for path in files}
        commands = {name: ([*pytest(), *given], FEW_THREADS) for name, given in arguments.items()}
        codes = self.side_by_side(commands, max(1, (os.cpu_count() or 2) // 2), time.monotonic() + limit - 1)
        found = tested(codes, {name: self.log(name) for name in codes}, limit)
        cut = len(files) - sum(code is not None for code in codes.values())
        if cut:
            found["ended"] += f"; {cut} of {len(files)} files not to their end"
        return found

    def side_by_side(self, commands, workers, deadline, restarts=0):
        """{name: exit status, None where it was stopped} of those that were begun before the deadline.

        A process of tests that lost its GPU's context is started again, behind the test in which it did.
        """
        waiting, codes, lock = list(commands.items()), {}, threading.Lock()

        def work():
            while True:
                with lock:
                    if not waiting or self.interrupted or time.monotonic() > deadline:
                        return
                    name, (command, environment) = waiting.pop(0)
                try:
                    codes[name] = self.call(name, command, max(1, deadline - time.monotonic()), environment)
                    for restart in range(restarts):
                        if self.log(name).count(LOST) <= restart or codes[name] is None:
                            break
                        done = {test for test, _ in OUTCOME.findall(self.log(name))}
                        behind = {**environment, "SPARSEKERN_TESTS_DONE": str(len(done))}
                        codes[name] = self.call(name, command, max(1, deadline - time.monotonic()), behind, more=True)
                except OSError as error:  # no process could be started
                    codes[name] = f"{type(error).__name__}: {error}"

        threads = [threading.Thread(target=work) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return codes

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
        """A section; where a backend's kernel lost it the GPU's context, again without that backend, if time is left.

        What it had found before stays, in a file of its own.
        """
        backends, without, began = list(self.options.backends), [], time.monotonic()
        path = self.output / f"{name}.json"
        while True:
            left, asked = limit - (time.monotonic() - began), time.time() - 1
            code = self.call(name, self.section(name, left, backends), left, more=bool(without))
            fresh = path.exists() and path.stat().st_mtime >= asked
            faulty = json.loads(path.read_text()).get("fault") if code == 1 and fresh else None
            others = [each for each in backends or MEASURED_BACKENDS if each != faulty]
            if faulty is None or not others or limit - (time.monotonic() - began) < 2 * STARTING:
                break
            os.replace(path, self.output / f"{name}-with-{faulty}.json")
            backends, without = others, [*without, f"{faulty} ({last_line(self.log(name))})"]
        return {"ended": self.measured(name, code, limit) + "".join(f"; without backend {each}" for each in without)}

    def section(self, name, limit, backends):
        command = [sys.executable, "-m", "benchmarks", "gpu", "--device", self.options.device, "--sections", name]
        command += ["--budget", f"{max(2.0, limit - STARTING):.0f}", "--output", str(self.output)]
        command += ["--smoke"] if self.options.smoke else []
        command += ["--commit", self.options.commit] if self.options.commit else []
        return command + (["--backends", *backends] if backends else [])

    def measured(self, name, code, limit):
        path = self.output / f"{name}.json"
        if code is None:
            return f"{stopped(limit)}; what it had found is kept ({last_line(self.log(name))})"
        if code != 0:
            return "failed: " + last_line(self.log(name))
        wrong = path.read_text().count("WRONG") if path.exists() else 0
        return "measured" + (f", {wrong} results WRONG and left out" if wrong else "")

    def call(self, name, command, limit, environment=None, more=False):
        """The exit status of a command, or None where it was stopped; its output goes to logs/`name`.log, behind
        what is there if `more`.
        """
        with open(self.logs / f"{name}.log", "a" if more else "w") as log:
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
        if not self.steps.get("build", {}).get("ended", "built").startswith("built"):
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


def sharded(name, arguments, environment, processes):
    """{name of the log: (command, environment)} of pytest, its tests dealt to several processes."""
    commands = {}
    for number in range(1, processes + 1):
        own = {**environment, "SPARSEKERN_TESTS": f"{number}/{processes}"}
        commands[f"{name}-{number}" if processes > 1 else name] = ([*pytest(), *arguments], own)
    return commands


def tested(codes, logs, limit):
    """What pytest's own lines say, by the process's name; a code of None: it was stopped, 5: it had no tests."""
    counts = {"passed": 0, "skipped": 0}
    failures, reasons, stopped_in = [], set(), []
    for name, code in codes.items():
        outcomes = OUTCOME.findall(logs[name])
        for word in counts:
            counts[word] += sum(outcome == word.upper() for _, outcome in outcomes)
        own = [test for test, outcome in outcomes if outcome in ("FAILED", "ERROR")]
        own += re.findall(r"^ERROR (\S+\.py)(?= - |$)", logs[name], re.MULTILINE)  # of collection
        if code is None:
            stopped_in.append(f"{name}: {last_line(logs[name])}")
        elif code not in (0, 5) and not own:
            own = [f"exit status {code}: {last_line(logs[name])}"]
        failures += [f"{name}: {test}" for test in own]
        reasons |= set(re.findall(r"^SKIPPED \[\d+\] (.*)$", logs[name], re.MULTILINE))
    ended = f"{counts['passed']} passed, {len(failures)} failed, {counts['skipped']} skipped"
    if stopped_in:
        ended += f"; {len(stopped_in)} of {len(codes)} processes {stopped(limit)}"
    return dict(
        counts,
        ended=ended,
        failed=len(failures),
        failures=failures,
        stopped_in=stopped_in,
        skipped_because=sorted(reasons),
    )


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
