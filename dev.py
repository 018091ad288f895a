"""Set up and run everything this project needs: python dev.py COMMAND [arguments]

  demo        train a LoRA from preferences and show what changed
  serve       run ComfyUI with this pack, by hand: python dev.py serve [--port 8188] [ComfyUI arguments]
  run         run a workflow without a page: python dev.py run WORKFLOW.json [--rounds 4] [--dry-run]
  merge       make one dataset of several: python dev.py merge A B --into C
  test        run the tests: python dev.py test [pytest arguments]
  bench       measure speed, and what methods learn
  experiment  what training does to pictures: python dev.py experiment templates

`--frontend 1.58.1` with any of them uses that comfyui-frontend-package in place of ComfyUI's own, and
`--comfyui 0.24.1` the oldest ComfyUI that the pack works with.
The first call makes .venv and fetches ComfyUI into .host; later calls need no network.
COMFYUI_PATH names another ComfyUI to use; a clone inside ComfyUI/custom_nodes uses that ComfyUI.
"""

import os
import re
import signal
import subprocess
import sys

if sys.version_info < (3, 10):
    raise SystemExit("dev.py: Python 3.10 or newer is needed, this is %d.%d" % sys.version_info[:2])

from tools.environment import (
    COMFYUI_ARCHIVES,
    COMFYUI_VERSION,
    OLDEST_COMFYUI,
    PYTHON,
    Problem,
    comfyui_of,
    set_up,
    set_up_web_checks,
)
from tools.host import BASE, FRONTEND_WANTED, ROOT, host_command, host_environment


def run(*command, **options) -> int:
    """Run a command to its end and pass its exit code on."""
    code = subprocess.call([str(part) for part in command], **options)
    return code if code >= 0 else 128 - code


def serve(arguments) -> int:
    return run(*host_command(BASE, arguments, PYTHON), env=host_environment())


def test(arguments) -> int:
    set_up_web_checks()
    # each worker has a host of its own, and what a file's tests share is made once. The page's come last: as
    # long as it is open it takes up to half a processor
    everything = ["tests", "-n", 2, "--dist", "loadfile", "--no-loadscope-reorder"]
    # what tests compute is so small that threads wait for one another
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return run(PYTHON, "-m", "pytest", *(arguments or everything), cwd=ROOT, env=environment)


def demo(arguments) -> int:
    return run(PYTHON, "-m", "tools.demo", *arguments, cwd=ROOT)


def bench(arguments) -> int:
    return run(PYTHON, "-m", "tools.bench", *arguments, cwd=ROOT)


def experiment(arguments) -> int:
    return run(PYTHON, "-m", "tools.experiment", *arguments, cwd=ROOT)


def from_here() -> dict:
    """An environment in which file names are relative to where we are."""
    return os.environ | {"PYTHONPATH": str(ROOT)}


def merge(arguments) -> int:
    return run(PYTHON, "-m", "tools.merge", *arguments, env=from_here())


def run_workflow(arguments) -> int:
    """It ends by itself where it is interrupted, once what was learned is kept."""
    process = subprocess.Popen([str(PYTHON), "-m", "tools.run", *arguments], env=from_here())
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the process has been told, too
            pass


def taken(name, example, arguments) -> tuple:
    """The arguments without the option `--name VERSION`, and the version, or None where there is none."""
    option = f"--{name}"
    if option not in arguments:
        return arguments, None
    place = arguments.index(option)
    (version,) = arguments[place + 1 : place + 2] or [""]
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise Problem(f"{option} needs a version after it, such as {option} {example}")
    return arguments[:place] + arguments[place + 2 :], version


def set_up_wanted(arguments) -> list:
    """Set up what is needed, with the ComfyUI and the frontend that are asked for: the other arguments."""
    rest, frontend = taken("frontend", "1.58.1", arguments)
    rest, comfyui = taken("comfyui", OLDEST_COMFYUI, rest)
    if comfyui not in (None, *COMFYUI_ARCHIVES):
        raise Problem(f"--comfyui can be {' or '.join(COMFYUI_ARCHIVES)}; COMFYUI_PATH names any other")
    set_up(frontend, comfyui or COMFYUI_VERSION)
    # packages are installed uncompiled; with this each process would compile all that it imports
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if frontend:
        os.environ[FRONTEND_WANTED] = frontend
    if comfyui and comfyui != COMFYUI_VERSION:
        os.environ["COMFYUI_PATH"] = str(comfyui_of(comfyui))
    return rest


COMMANDS = {
    "demo": demo,
    "serve": serve,
    "run": run_workflow,
    "merge": merge,
    "test": test,
    "bench": bench,
    "experiment": experiment,
}


def main(arguments) -> int:
    sys.stdout.reconfigure(errors="replace")
    if not arguments or arguments[0] not in COMMANDS:
        print(__doc__)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    try:
        return COMMANDS[arguments[0]](set_up_wanted(arguments[1:]))
    except Problem as problem:
        print(f"dev.py: {problem}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
