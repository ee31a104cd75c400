"""The application on Ray Serve: a real deployment on this machine, in a process of its own."""

import os
import re
import socket
import subprocess
import sys
import threading

import httpx
import pytest


def test_a_port_is_needed_and_is_said_before_ray_starts(said, run_folder):
    code, _, err = said("serve", run_folder, "--engine", "ray", "--port", 0)
    assert (code, err) == (2, "embedfit: --port 0: Ray Serve needs the number of a port; fix: such as --port 8000\n")


@pytest.mark.slow
def test_the_same_application_answers_learns_and_refuses(run_folder, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "embedfit", "serve", str(run_folder), "--engine", "ray", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(
        [*command, "--feedback", str(tmp_path / "feedback.db")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    lines = []
    try:
        for line in server.stdout:
            lines.append(line)
            if re.search(r"Application 'embedfit' is ready", line):
                break
        else:
            pytest.fail("".join(lines))
        threading.Thread(target=server.stdout.read, daemon=True).start()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            answer = client.post("/search", json={"query": "a ride to the airport"}).json()
            assert answer["hits"][0]["id"] == "travel"
            stored = client.post("/feedback", json={"search_id": answer["search_id"], "choice": "travel"}).json()
            assert stored["learned"]
            again = client.post("/search", json={"query": "a ride to the airport"}).json()
            assert again["hits"][0]["because"][0]["kind"] == "example"
            assert "What is it?" in client.get("/").text
            assert client.get("/info", headers={"Host": "evil.example"}).status_code == 403
    finally:
        server.terminate()
        server.wait(60)
