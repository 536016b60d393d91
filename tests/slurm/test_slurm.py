"""The tiny grid on a real SLURM: it finishes, its jobs wait for GPUs, and it recovers from lost jobs and processes.

About four minutes on two cores.
"""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pandas as pd
import pytest

pytestmark = pytest.mark.slow

BERT = "results/test/cells/json-docs/tiny-bert/start4/default"


def most_at_once(jobs) -> int:
    return max(sum(job.start <= moment < job.end for job in jobs) for moment in {job.start for job in jobs})


def wait_for_checkpoint(slurm, cell) -> None:
    slurm.wait(lambda: any(cell.glob("model.checkpoints-*/checkpoint-*/whole")))


def log_of_training(project, seed) -> str:
    log = project.folder / f"results/test/logs/train/json-docs/tiny-bert/start4/default/seed{seed}.log"
    return log.read_text(encoding="utf-8")


def test_most_at_once_counts_overlapping_jobs():
    def jobs(*times):
        return [SimpleNamespace(start=start, end=end) for start, end in times]

    assert most_at_once(jobs((0, 2), (2, 3), (2, 4), (3, 5))) == 2
    assert most_at_once(jobs((0, 2), (1, 3), (1, 4))) == 3


def test_grid_of_four_cells_finishes(finished):
    assert {job.state for job in finished.jobs} == {"COMPLETED"}
    assert [job.rule for job in finished.jobs].count("train") == 4
    table = finished.project.folder / "results/test/tables/layers.csv"
    layers = pd.read_csv(table)
    models = list(layers[layers["exit"].str.startswith("layer_")]["base_model"])
    assert (models.count("tiny-llama"), models.count("tiny-bert")) == (6, 2)  # each exit alone and fused


def test_gpu_jobs_wait_for_gpus(slurm, finished):
    on_gpu = [job for job in finished.jobs if job.rule in ("train", "score", "cost")]
    others = [job for job in finished.jobs if job not in on_gpu]
    assert {(job.partition, job.gpus) for job in on_gpu} == {("gpu", 1)}
    assert {(job.partition, job.gpus) for job in others} == {("cpu", 0)}
    assert len(on_gpu) > slurm.gpus  # so that some have to wait
    assert most_at_once(on_gpu) == slurm.gpus


def test_cancelled_training_is_resubmitted_with_more_resources_and_resumes(slurm, finished, project):
    cell = project.folder / BERT / "seed1"
    shutil.rmtree(cell)
    with slurm.snakemake(project) as run:
        wait_for_checkpoint(slurm, cell)
        [lost] = slurm.jobs("RUNNING", rule="train")
        slurm.call("scancel", lost.id)
        printed = run.finish()
    first, second = [job for job in slurm.jobs(rule="train") if job.run == lost.run]
    assert (first.state, second.state) == ("CANCELLED", "COMPLETED")
    assert second.megabytes == 2 * first.megabytes
    assert (first.limit, second.limit) == ("1-00:00:00", "2-00:00:00")
    assert f"SLURM-job '{lost.id}' failed" in printed
    assert "resuming from" in log_of_training(project, 1)
    assert project.tables() == finished.project.tables()


@pytest.mark.nightly
def test_grid_finishes_after_snakemake_was_killed(slurm, finished, project):
    shutil.rmtree(project.folder / BERT)
    with slurm.snakemake(project) as run:
        wait_for_checkpoint(slurm, project.folder / BERT / "seed1")
        run.process.kill()
    orphans = slurm.jobs("RUNNING")
    assert {job.rule for job in orphans} == {"train"}  # SLURM does not notice the end of Snakemake

    with slurm.snakemake(project) as run:
        assert run.end() != 0
    assert "--unlock" in run.printed()

    # The README's three steps: cancel running jobs, unlock, run again.
    slurm.call("scancel", "--name", orphans[0].run)
    slurm.wait(lambda: not slurm.jobs("RUNNING", "COMPLETING"))
    with slurm.snakemake(project, "--unlock") as run:
        run.finish()
    with slurm.snakemake(project) as run:
        run.finish()
    assert "resuming from" in log_of_training(project, 1)
    assert project.tables() == finished.project.tables()
