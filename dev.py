"""Set up and run everything this project needs: python dev.py COMMAND [arguments]

  demo        train a LoRA from preferences and show what changed
  serve       run ComfyUI with this pack, by hand: python dev.py serve [--port 8188] [ComfyUI arguments]
  test        run the tests: python dev.py test [pytest arguments]
  bench       measure speed, and what methods learn
  experiment  what training does to pictures: python dev.py experiment templates

`--frontend 1.58.1` with any of them uses that comfyui-frontend-package in place of ComfyUI's own.
The first call makes .venv and fetches ComfyUI into .host; later calls need no network.
COMFYUI_PATH names another ComfyUI to use; a clone inside ComfyUI/custom_nodes uses that ComfyUI.
"""

import os
import re
import subprocess
import sys

if sys.version_info < (3, 10):
    raise SystemExit("dev.py: Python 3.10 or newer is needed, this is %d.%d" % sys.version_info[:2])

from tools.environment import PYTHON, Problem, set_up, set_up_web_checks
from tools.host import BASE, FRONTEND_WANTED, ROOT, host_command, host_environment


def run(*command, **options) -> int:
    """Run a command to its end and pass its exit code on."""
    code = subprocess.call([str(part) for part in command], **options)
    return code if code >= 0 else 128 - code


def serve(arguments) -> int:
    return run(*host_command(BASE, arguments, PYTHON), env=host_environment())


def test(arguments) -> int:
    set_up_web_checks()
    everything = ["tests", "-n", 2]  # each worker has a host of its own
    # what tests compute is so small that threads wait for one another
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return run(PYTHON, "-m", "pytest", *(arguments or everything), cwd=ROOT, env=environment)


def demo(arguments) -> int:
    return run(PYTHON, "-m", "tools.demo", *arguments, cwd=ROOT)


def bench(arguments) -> int:
    return run(PYTHON, "-m", "tools.bench", *arguments, cwd=ROOT)


def experiment(arguments) -> int:
    return run(PYTHON, "-m", "tools.experiment", *arguments, cwd=ROOT)


def take_frontend(arguments) -> tuple:
    """The arguments without `--frontend VERSION`, and the version, or None where there is none."""
    if "--frontend" not in arguments:
        return arguments, None
    place = arguments.index("--frontend")
    (version,) = arguments[place + 1 : place + 2] or [""]
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise Problem("--frontend needs a version after it, such as --frontend 1.58.1")
    return arguments[:place] + arguments[place + 2 :], version


COMMANDS = {"demo": demo, "serve": serve, "test": test, "bench": bench, "experiment": experiment}


def main(arguments) -> int:
    sys.stdout.reconfigure(errors="replace")
    if not arguments or arguments[0] not in COMMANDS:
        print(__doc__)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    try:
        rest, frontend = take_frontend(arguments[1:])
        set_up(frontend)
        if frontend:
            os.environ[FRONTEND_WANTED] = frontend
        return COMMANDS[arguments[0]](rest)
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
