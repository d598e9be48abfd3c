"""An API and a storage that cost next to nothing: nginx with one worker, and files made beforehand.

Records, headers and URLs look like the real ones; no signature is checked. What is measured against
it is the client.
"""

from __future__ import annotations

import base64
import json
import math
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import google_crc32c

URL_LENGTH = 600
IMAGES_PER_PATIENT = 5
ORGANIZATION = "5c1d0a3e-51a7-4e0d-9b0c-000000000001"
# One object in so many is a PNG; what they hold beyond their first bytes is random.
PNG_EVERY = 4
HEADS = {"jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00", "png": b"\x89PNG\r\n\x1a\n"}
TYPES = {"jpg": "image/jpeg", "png": "image/png"}

_CONFIG = """
daemon off; worker_processes 1; worker_rlimit_nofile 8192;
pid {root}/nginx.pid; error_log {root}/error.log crit;
events {{ worker_connections 4096; }}
http {{
    access_log off; sendfile on; tcp_nopush off; tcp_nodelay on; etag on; server_tokens off;
    keepalive_requests 100000000; keepalive_timeout 600s; large_client_header_buffers 4 16k;
    types {{ image/jpeg jpg; image/png png; application/json json; }}
    client_body_temp_path {root}/temp; proxy_temp_path {root}/temp; fastcgi_temp_path {root}/temp;
    uwsgi_temp_path {root}/temp; scgi_temp_path {root}/temp;
    map_hash_max_size 1048576; map_hash_bucket_size 128;
    map $uri $crc32c {{ include {root}/crc32c.map; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096; root {root}/www;
        location = /api/auth/v2/token {{
            default_type application/json;
            return 200 '{{"access_token":"benchmark","expires_in":18000,"token_type":"Bearer"}}';
        }}
        location = /images/v1 {{
            default_type application/json; try_files /api/$arg_patient_id /api/none =404;
        }}
        location /o/ {{
            add_header x-goog-hash "crc32c=$crc32c"; add_header x-goog-generation 1700000000000000;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Served:
    """What a server holds.

    Attributes:
        url: of API and storage.
        manifest: a CSV of its patients.
        objects: the paths of all images below `url`, without their queries.
        urls: a file with the signed URL of each image, a line each.
        size_bytes: of all images.
    """

    url: str
    manifest: Path
    objects: Path
    urls: Path
    images: int
    patients: int
    size_bytes: int

    def took_s(self) -> tuple[float, float]:
        """How long an answer of API and storage took, in the mean, as `slow` measured it."""
        with urllib.request.urlopen(f"{self.url}/took") as answer:
            means = json.load(answer)
        return means["api"], means["storage"]


@contextmanager
def serving(
    root: Path,
    *,
    images: int,
    size_bytes: int,
    images_per_patient: int = IMAGES_PER_PATIENT,
    without_images: int = 0,
    latency_s: tuple[float, float] | None = None,
    line_bytes_s: float = math.inf,
) -> Iterator[Served]:
    """Make images of so many bytes below `root`, and serve them until the context ends.

    `without_images` is how many patients more there are. With `latency_s`, of API and storage, they
    are served by `slow`, over a line of `line_bytes_s`; without, by nginx or, where that is
    missing, by `slow` in no time.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    served = _make(
        root, url, images, size_bytes,
        images_per_patient=images_per_patient, without_images=without_images,
    )  # fmt: skip
    (root / "nginx.conf").write_text(_CONFIG.format(root=root, port=port), encoding="utf-8")
    nginx = find_nginx()
    if latency_s is not None or nginx is None:
        seconds = map(str, (*(latency_s or (0, 0)), line_bytes_s))
        command = [sys.executable, "-m", "benchmarks.slow", str(root), str(port), *seconds]
    else:
        user = ["-g", "user root;"] if os.getuid() == 0 else []
        command = [nginx, "-p", str(root), "-c", str(root / "nginx.conf"), *user]
    process = subprocess.Popen(command)
    try:
        wait_for(port, process)
        yield served
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(root)


def find_nginx() -> str | None:
    """Return the path of nginx, None where it is not installed."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def _make(
    root: Path,
    url: str,
    images: int,
    size_bytes: int,
    *,
    images_per_patient: int,
    without_images: int,
) -> Served:
    chance = random.Random(1)
    www = root / "www"
    for directory in (www / "api", www / "o", root / "temp"):
        directory.mkdir(parents=True)
    patients = images // images_per_patient
    now = datetime.now(UTC)
    served = Served(
        url, root / "patients.csv", root / "objects.txt", root / "urls.txt", images,
        patients + without_images, images * size_bytes,
    )  # fmt: skip
    (www / "api" / "none").write_text("[]", encoding="utf-8")
    with (
        served.manifest.open("w", encoding="utf-8") as manifest,
        served.objects.open("w", encoding="utf-8") as objects,
        served.urls.open("w", encoding="utf-8") as urls,
        (root / "crc32c.map").open("w", encoding="utf-8") as checksums,
    ):
        manifest.write("patient_id\n")
        for patient in range(patients):
            patient_id = _uuid(chance)
            manifest.write(f"{patient_id}\n")
            records = []
            for number in range(images_per_patient):
                ending = "jpg" if (patient + number) % PNG_EVERY else "png"
                image_id = _uuid(chance)
                path = f"o/{image_id}.{ending}"
                data = HEADS[ending] + os.urandom(size_bytes - len(HEADS[ending]))
                (www / path).write_bytes(data)
                crc = base64.b64encode(google_crc32c.Checksum(data).digest()).decode()
                checksums.write(f"/{path} {crc};\n")
                signed = _signed(f"{url}/{path}", now, chance)
                objects.write(f"{path}\n")
                urls.write(f"{signed}\n")
                records.append(_record(patient_id, image_id, ending, signed, number))
            (www / "api" / patient_id).write_text(json.dumps(records), encoding="utf-8")
        for _ in range(without_images):
            manifest.write(f"{_uuid(chance)}\n")
    return served


def _record(
    patient_id: str, image_id: str, ending: str, signed: str, number: int
) -> dict[str, object]:
    return {
        "id": image_id,
        "organization_id": ORGANIZATION,
        "deactivated": False,
        "version": 1 + number % 3,
        "updated_at": "2026-02-03T04:05:06.789Z",
        "updating_user_id": "7c32630a-7b8b-4e0d-85a1-000000000001",
        "display_name": "insurance card",
        "file_name": f"card {number}.{ending}",
        "file_type": TYPES[ending],
        "status": "UPLOADED",
        "signed_url": signed,
        "coverage": {"id": image_id, "side": "BACK" if number % 2 else "FRONT"},
        "patient": {"id": patient_id, "notes": None},
    }


def _signed(url: str, now: datetime, chance: random.Random) -> str:
    account = "export%40project.iam.gserviceaccount.com%2F20260203%2Fauto%2Fstorage%2Fgoog4_request"
    query = (
        f"X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential={account}"
        f"&X-Goog-Date={now:%Y%m%dT%H%M%SZ}&X-Goog-Expires=604800&X-Goog-SignedHeaders=host"
        "&X-Goog-Signature="
    )
    left = URL_LENGTH - len(url) - 1 - len(query)
    return f"{url}?{query}{chance.getrandbits(4 * left):0{left}x}"


def _uuid(chance: random.Random) -> str:
    digits = f"{chance.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit("the server did not start")
