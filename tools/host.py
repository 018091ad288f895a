"""A real ComfyUI in a process of its own, for tests, the demo and the benchmark."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACK = "comfyui-d3po"
LOCAL_COMFYUI = ROOT / ".host" / "ComfyUI"
BASE = ROOT / ".host" / "base"
CHECKPOINT = BASE / "models" / "checkpoints" / "d3po-emoji.safetensors"
FLOW_CHECKPOINT = CHECKPOINT.with_name("emoji-flow.safetensors")
FRONTEND_WANTED = "D3PO_FRONTEND"  # the environment variable in which dev.py hands on a frontend's version
FOLDERS = ("models/checkpoints", "models/loras", "custom_nodes", "input", "output", "user", "temp")

# for subprocess: a terminal's signals do not reach what is in a group of its own
OWN_GROUP = (
    {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
)

# A proxy set for the internet must not come between us and 127.0.0.1.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class HostError(RuntimeError):
    """The host did not start, or died."""


class WorkflowError(RuntimeError):
    """A workflow that the host refused or that failed in a node."""

    def __init__(self, node_id, node_type, exception_type, message, traceback=""):
        super().__init__(f"{node_type} (node {node_id}): {exception_type}: {message}\n{traceback}".rstrip())
        self.node_id = node_id
        self.node_type = node_type
        self.exception_type = exception_type
        self.message = message
        self.traceback = traceback


def is_comfyui(folder) -> bool:
    """Whether the folder holds ComfyUI's source."""
    return all(
        (Path(folder) / part).exists() for part in ("main.py", "nodes.py", "comfy", "requirements.txt")
    )


def comfyui_folder() -> Path:
    """COMFYUI_PATH, else the ComfyUI this clone stands in, else the one that dev.py fetches."""
    if os.environ.get("COMFYUI_PATH"):
        return Path(os.environ["COMFYUI_PATH"]).expanduser().resolve()
    if ROOT.parent.name == "custom_nodes" and is_comfyui(ROOT.parent.parent):
        return ROOT.parent.parent
    return LOCAL_COMFYUI


def frontend_files(version) -> Path:
    """Where the files of a frontend are that dev.py fetched to stand in for ComfyUI's own."""
    return ROOT / ".host" / f"frontend-{version}" / "comfyui_frontend_package" / "static"


def frontend_arguments() -> tuple:
    """The host's arguments for the frontend that is wanted in place of its own, if one is."""
    version = os.environ.get(FRONTEND_WANTED)
    return ("--front-end-root", str(frontend_files(version))) if version else ()


def link(source: Path, place: Path):
    """Let `place` stand for `source`, with what the system allows without special rights."""
    if os.path.lexists(place):
        if place.exists() and place.samefile(source):
            return
        place.unlink()
    try:
        place.symlink_to(source, target_is_directory=source.is_dir())
    except FileExistsError:  # another process has made it meanwhile
        return
    except OSError:
        if source.is_dir():
            subprocess.run(
                ["cmd", "/c", "mklink", "/J", str(place), str(source)], check=True, capture_output=True
            )
        else:
            shutil.copyfile(source, place)


def make_base(path) -> Path:
    """Make a base directory for the host, with links to this pack and to the checkpoints that exist."""
    base = Path(path)
    for folder in FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    link(ROOT, base / "custom_nodes" / PACK)
    for checkpoint in (CHECKPOINT, FLOW_CHECKPOINT):
        if checkpoint.exists():
            link(checkpoint.resolve(), base / "models" / "checkpoints" / checkpoint.name)
    return base


def host_command(base, arguments=(), python=sys.executable) -> list:
    """The command line that runs the host on a base directory."""
    database = (Path(base).resolve() / "user" / "comfyui.db").as_posix()
    return [
        str(python), str(ROOT / "tools" / "launch_host.py"), str(comfyui_folder()),
        "--base-directory", str(Path(base).resolve()),
        "--database-url", f"sqlite:///{database}",
        "--disable-auto-launch", *frontend_arguments(), *map(str, arguments),
    ]  # fmt: skip


def host_environment() -> dict:
    """The environment for the host: the pack's root must not be on its module path.

    OpenMP's idle threads sleep: where they spin, two busy processes slow each other tenfold.
    """
    dropped = ("PYTHONPATH", "PYTHONSAFEPATH")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {"OMP_WAIT_POLICY": "PASSIVE"} | kept | {"PYTHONUTF8": "1"}


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Host:
    """`with Host(base) as host:` runs the real host on that base directory and speaks to it over HTTP.

    apart  Ctrl+C on the terminal does not reach it: who started it ends it
    number, environment  of one of several on the same base, and what more it finds in its environment
    """

    def __init__(
        self, base=BASE, arguments=(), port=None, start_timeout=180, apart=False, number=0, environment=None
    ):
        self.base = Path(base)
        self.arguments = tuple(arguments)
        self.port = port or free_port()
        self.start_timeout = start_timeout
        self.apart, self.environment = apart, environment or {}
        self.log_file = self.base / (f"host-{number}.log" if number else "host.log")
        if number:  # what no two may share
            own = ("--database-url", "sqlite:///:memory:", "--temp-directory", self.base / f"temp-{number}")
            self.arguments = (*own, *self.arguments)
        self.process = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        """Start the host and wait until it answers."""
        if not is_comfyui(comfyui_folder()):
            raise HostError(f"{comfyui_folder()} is not a ComfyUI folder; `python dev.py test` fetches one")
        command = host_command(self.base, ("--listen", "127.0.0.1", "--port", self.port, *self.arguments))
        with open(self.log_file, "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.base,
                env=host_environment() | self.environment,
                **(OWN_GROUP if self.apart else {}),
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.kill()
            raise

    def _wait_until_it_answers(self):
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            self._check_alive()
            try:
                return self.get("/system_stats")
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        raise HostError(f"ComfyUI did not answer within {self.start_timeout} s:\n{self.log_tail()}")

    def _check_alive(self):
        if self.process is None or self.process.poll() is not None:
            code = self.process and self.process.returncode
            raise HostError(f"ComfyUI is not running (exit code {code}):\n{self.log_tail()}")

    def _settle_end(self):
        """After the host did not answer: raise HostError where that is because it has just ended."""
        if self.process is not None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            self._check_alive()

    def stop(self):
        """Ask the host to end; make it, if it does not."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
            self.process = None

    def kill(self):
        """End the host at once, as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self):
        """Stop the host and start it again on the same port and base directory."""
        self.stop()
        self.start()

    def log(self) -> str:
        """Everything the host has printed."""
        return self.log_file.read_text("utf-8", "replace") if self.log_file.exists() else ""

    def log_tail(self, lines=40) -> str:
        return "\n".join(self.log().splitlines()[-lines:])

    def _request(self, path, data=None, timeout=120):
        headers = {"Content-Type": "application/json"} if data is not None else {}
        request = urllib.request.Request(self.url + path, data, headers)
        with _opener.open(request, timeout=timeout) as response:
            body = response.read()
            return json.loads(body) if body and "json" in response.headers.get("Content-Type", "") else body

    def get(self, path):
        """The answer to a GET: parsed if it is JSON, else bytes."""
        return self._request(path)

    def post(self, path, payload=None):
        """The answer to a POST of `payload` as JSON: parsed if it is JSON, else bytes."""
        return self._request(path, json.dumps({} if payload is None else payload).encode())

    def object_info(self) -> dict:
        """The definitions of all nodes, by node id."""
        return self.get("/object_info")

    def queue(self, prompt, client_id=None, extra_data=None) -> str:
        """Queue an API prompt and return its id. Raises WorkflowError where validation finds anything."""
        payload = {"prompt": prompt} | ({"client_id": client_id} if client_id else {})
        payload |= {"extra_data": extra_data} if extra_data else {}
        try:
            answer = self.post("/prompt", payload)
        except urllib.error.HTTPError as refusal:
            with refusal:
                raise _validation_error(json.loads(refusal.read())) from None
        if answer["node_errors"]:
            # The host would run the outputs that are valid and leave out the rest.
            self.cancel(answer["prompt_id"])
            raise _validation_error(answer)
        return answer["prompt_id"]

    def wait(self, prompt_id, timeout=600) -> dict:
        """Wait until a queued prompt has ended, well or badly, and return its history entry."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self._check_alive()
            try:
                entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            except OSError:
                self._settle_end()
                raise
            if entry:
                return entry
            time.sleep(0.1)
        raise TimeoutError(f"prompt {prompt_id} did not end within {timeout} s:\n{self.log_tail()}")

    def run(self, prompt, timeout=600, client_id=None) -> dict:
        """Queue a prompt, wait for its end, return its history entry. Raises WorkflowError if it fails."""
        return self.ended(self.queue(prompt, client_id), timeout)

    def ended(self, prompt_id, timeout=600) -> dict:
        """Wait for a queued prompt's end, return its history entry. Raises WorkflowError if it fails."""
        entry = self.wait(prompt_id, timeout)
        if entry["status"]["status_str"] != "success":
            raise _execution_error(entry)
        return entry

    def interrupt(self):
        """Interrupt whatever runs."""
        self.post("/interrupt")

    def settle(self, timeout=10):
        """Interrupt whatever runs, and wait until it has ended and what it keeps is kept. Raises HostError
        where the host is gone."""
        self._check_alive()
        self.interrupt()
        deadline = time.monotonic() + timeout
        while self.get("/queue")["queue_running"] and time.monotonic() < deadline:
            time.sleep(0.1)

    def cancel(self, prompt_id):
        """Take one prompt out of the queue, or interrupt it if it runs already."""
        self.post("/queue", {"delete": [prompt_id]})
        self.post("/interrupt", {"prompt_id": prompt_id})

    def image(self, ref):
        """The PIL image behind a reference out of a node's ui output."""
        from PIL import Image

        query = {key: ref[key] for key in ("filename", "subfolder", "type") if key in ref}
        image = Image.open(BytesIO(self.get("/view?" + urllib.parse.urlencode(query))))
        image.load()
        return image


def _validation_error(answer) -> WorkflowError:
    found = [
        (node_id, node["class_type"], error["type"], f"{error['message']}: {error['details']}")
        for node_id, node in (answer["node_errors"] or {}).items()
        for error in node["errors"]
    ]
    if not found:
        error = answer["error"]
        extra = error.get("extra_info") or {}
        details = f"{error['message']} {error.get('details') or ''}".strip()
        return WorkflowError(extra.get("node_id"), extra.get("class_type"), error["type"], details)
    node_id, node_type, kind, message = found[0]
    more = "".join(f"; {other[1]} (node {other[0]}): {other[3]}" for other in found[1:])
    return WorkflowError(node_id, node_type, kind, message + more)


def _execution_error(entry) -> WorkflowError:
    for event, data in entry["status"]["messages"]:
        if event == "execution_error":
            trace = "".join(data["traceback"])
            message = data["exception_message"].strip()
            return WorkflowError(data["node_id"], data["node_type"], data["exception_type"], message, trace)
        if event == "execution_interrupted":
            return WorkflowError(
                data["node_id"], data["node_type"], "InterruptProcessingException", "interrupted"
            )
    return WorkflowError(None, None, "unknown", json.dumps(entry["status"]))
