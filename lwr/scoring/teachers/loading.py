"""Check the checkpoints of teachers, and make the prompts with which they read pairs."""

from __future__ import annotations

from lwr.common.errors import BadInput
from lwr.config.data.bi_encoder import CheckpointSection
from lwr.config.model import PromptTemplate
from lwr.config.problems import Problem
from lwr.config.teachers.sections import LayerwiseTeacher, PairTeacher
from lwr.formats.checkpoint import DESCRIPTION_FILES, HubUnreachable, fetch_checkpoint
from lwr.model.loading import check_row_limit, count_positions
from lwr.model.prompt import Prompt
from lwr.scoring.loading import LoadedCheckpoint, read_description


def check_teacher(teacher: CheckpointSection) -> list[Problem]:
    """Return what is wrong with the checkpoint of a teacher or a bi-encoder; its weights are not downloaded.

    Raises:
        HubUnreachable: It is not on this machine, and there is no connection to the hub.
    """
    try:
        folder = fetch_checkpoint(teacher.model, teacher.revision, DESCRIPTION_FILES)
        problems = teacher.problems_of_folder(folder)
        # A layerwise teacher may be upstream's, or an adapter.
        if not problems and not isinstance(teacher, LayerwiseTeacher):
            read_description(folder)
        return problems
    except HubUnreachable:
        raise
    except BadInput as error:
        return [Problem(("model",), str(error))]


def make_prompt(teacher: PairTeacher, loaded: LoadedCheckpoint, template: PromptTemplate | None) -> Prompt:
    """Return the way in which a teacher reads pairs; `template` is None for the tokenizer's format of pairs.

    Raises:
        BadInput: Pairs may be longer than the model has positions.
        ValueError: The fixed text leaves no token for query and passage.
    """
    prompt = Prompt(loaded.tokenizer, template, teacher.query_max_len, teacher.passage_max_len)
    check_row_limit(prompt, count_positions(loaded.model))
    return prompt
