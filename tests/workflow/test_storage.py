"""Results in a bucket: the tiny grid by the S3 plugin of Snakemake, against a server on this machine."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from project import Project, copy_project, keep_one_cell

from lwr.verify.verify import verify

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.xdist_group("workflow")]

PREFIX = "s3://lwr/grids"
SERVER = """
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0)
server.start()
host, port = server.get_host_and_port()
print(f"http://{host}:{port}", flush=True)
input()
"""


@dataclass(frozen=True)
class StoredProject(Project):
    """A project whose results lie in a bucket."""

    packages: Path = Path()
    endpoint: str = ""

    def command(self, *arguments: str) -> list[str]:
        storage = ["--default-storage-provider", "s3", "--default-storage-prefix", PREFIX]
        return [*super().command(*storage), *arguments]

    def environment(self) -> dict[str, str]:
        keys = {
            "SNAKEMAKE_STORAGE_S3_ENDPOINT_URL": self.endpoint,
            "SNAKEMAKE_STORAGE_S3_ACCESS_KEY": "any",
            "SNAKEMAKE_STORAGE_S3_SECRET_KEY": "any",
        }
        return super().environment() | keys | {"PYTHONPATH": f"{self.folder}:{self.packages}"}

    def stored(self, path: str) -> bytes:
        """Return a file of the results from the bucket."""
        return self.get(f"lwr/grids/results/test/{path}")

    def get(self, path: str) -> bytes:
        """Ask the server for a path. It does not check the signature, but refuses files without one."""
        with urlopen(
            Request(f"{self.endpoint}/{path}", headers={"Authorization": "AWS any:any"})
        ) as response:
            return response.read()

    def copy_results(self, folder: Path) -> None:
        """Copy all results from the bucket into a folder, as `aws s3 sync` does."""
        names = re.findall("<Key>grids/results/test/(.*?)</Key>", self.get("lwr?list-type=2").decode())
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(self.stored(name))


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """Install what the plugin and the server need beyond the packages of this environment, in another one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "of_the_tests.pth").write_text(sysconfig.get_path("purelib"))
    names = ["snakemake-storage-plugin-s3>=0.3,<0.4", "moto[server]>=5,<6"]
    subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", *names], check=True)
    return packages


@pytest.fixture(scope="module")
def endpoint(packages):
    """Serve S3 on a free port of this machine. Files are kept in memory; keys are not checked."""
    command = [sys.executable, "-c", SERVER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env={"PYTHONPATH": str(packages)}, text=True, **pipes) as server:
        yield next(line.strip() for line in server.stdout if line.startswith("http://"))
        server.terminate()


@pytest.fixture(scope="module")
def project_with_bucket(finished_cell, packages, endpoint, tmp_path_factory) -> StoredProject:
    """Run the grid of one cell; the run of its test queries is given, as a file beside the config."""
    folder = copy_project(tmp_path_factory.mktemp("stored")).folder
    project = StoredProject(folder, packages=packages, endpoint=endpoint)
    run = finished_cell.results / "collections/json-docs/runs/test.trec"
    (folder / "given.trec").write_bytes(run.read_bytes())
    project.edit_config(keep_one_cell)
    project.edit_config(
        lambda config: config["datasets"]["json-docs"]["first_stage"].update(runs={"test": "given.trec"})
    )
    ended = project.snakemake()
    (folder / "printed.txt").write_text(ended.stdout + ended.stderr, encoding="utf-8")
    return project


def test_tables_in_the_bucket_are_those_of_a_run_on_disk(project_with_bucket, finished_cell):
    tables = {name: project_with_bucket.stored(f"tables/{name}") for name in finished_cell.tables()}
    assert tables == finished_cell.tables()
    assert not project_with_bucket.results.exists()


def test_results_copied_from_the_bucket_verify(project_with_bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    project_with_bucket.copy_results(Path("results/test"))
    assert verify(Path("results/test")).faults == []


def test_the_last_lines_name_the_bucket(project_with_bucket):
    printed = (project_with_bucket.folder / "printed.txt").read_text(encoding="utf-8")
    assert f"Open {PREFIX}/results/test/report.html" in printed


def test_nothing_runs_again(project_with_bucket):
    assert project_with_bucket.plan() == []


def test_edited_given_run_is_read_from_this_disk(project_with_bucket):
    given = project_with_bucket.folder / "given.trec"
    lines = given.read_text(encoding="utf-8").splitlines(keepends=True)
    given.write_text("".join(lines[:-1]), encoding="utf-8")  # as Snakemake compares checksums, too
    retrieved = [w["split"] for rule, w in project_with_bucket.plan() if rule == "retrieve"]
    assert retrieved == ["test"]
