"""Training groups are streamed from several files, with teacher scores on all lines or on none."""

import pytest

from lwr.common.errors import BadInput
from lwr.common.json_lines import write_jsonl
from lwr.formats.training_groups import read_training_groups

GROUP = {"query": "q", "pos": ["p"], "neg": ["n"]}
SCORED = GROUP | {"pos_scores": [1.5], "neg_scores": [-2]}


def files(folder, *groups_of_files):
    paths = [folder / f"{number}.jsonl" for number in range(len(groups_of_files))]
    for path, groups in zip(paths, groups_of_files, strict=True):
        write_jsonl(path, groups)
    return paths


def test_groups_are_streamed_in_the_order_of_the_files(tmp_path):
    paths = files(tmp_path, [GROUP, GROUP | {"prompt": "Is it?"}], [], [GROUP | {"query": "last"}])
    queries = [(group["query"], group.get("prompt")) for group in read_training_groups(paths)]
    assert queries == [("q", None), ("q", "Is it?"), ("last", None)]


def test_null_scores_count_as_absent(tmp_path):
    paths = files(tmp_path, [GROUP, GROUP | {"pos_scores": None, "neg_scores": None}])
    assert len(list(read_training_groups(paths))) == 2


@pytest.mark.parametrize(
    ("groups_of_files", "says"),
    [(([GROUP], [SCORED]), r"1\.jsonl:1: has teacher"), (([SCORED], [GROUP]), r"1\.jsonl:1: lacks teacher")],
)
def test_scores_in_one_of_two_files_are_refused(tmp_path, groups_of_files, says):
    with pytest.raises(BadInput, match=says):
        list(read_training_groups(files(tmp_path, *groups_of_files)))


def test_files_without_groups_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"0\.jsonl: no group"):
        list(read_training_groups(files(tmp_path, [], [])))
