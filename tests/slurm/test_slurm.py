import pytest
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

def test_x(slurm, undisturbed):
    print(slurm.tell("scontrol", "show", "job", "-d", "--oneliner"))
    for j in slurm.jobs(): print(j)
    print((undisturbed.folder / "printed.txt").read_text())
    import shutil
    shutil.copytree(undisturbed.folder, "/tmp/sl/house", copy_function=shutil.copy2)
