"""A folder onto the Hugging Face hub, with a model card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import PeftModel

from lwr.common.errors import first_line
from lwr.formats.checkpoint import CHECKPOINT_FILES
from lwr.model.reranker import LayerwiseReranker


def check(repo_id: str) -> None:
    """Raises ValueError where an upload can't succeed: the hub is off, or that is no name on it."""
    if constants.is_offline_mode():
        raise ValueError(
            f"{repo_id}: the hub is off (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE); unset it to upload"
        )
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise ValueError(f"{repo_id!r} is no name on the hub; write OWNER/NAME") from None


def push(
    reranker: LayerwiseReranker,
    repo_id: str,
    card: str | None = None,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Upload a reranker, as `save_pretrained` writes it, and its model card; return the address of the commit.

    Args:
        reranker: The reranker.
        repo_id: Its name on the hub, OWNER/NAME.
        card: The text of README.md, as `lwr.export.card` writes it.
        private: See `upload`; so are `token` and `revision`.

    Raises:
        ValueError: The hub is off or refuses, or the base model of an adapter is a local folder.
    """
    base = reranker.base
    if isinstance(reranker.backbone, PeftModel) and base and Path(base.model).expanduser().is_dir():
        raise ValueError(
            f"an adapter for {base.model}, a folder that others lack: merge it first (lwr.model.lora.merge_lora)"
        )
    return upload(reranker.save_pretrained, repo_id, card, private, token, revision)


def upload(
    write: Callable[[Path], None],
    repo_id: str,
    card: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Upload what `write` puts into an empty folder, and `card` as its README.md; the address of the commit.

    Only the kinds of files that `checkpoint.fetch` brings back go up: no pickles, no code. The repository is made
    where there is none (private: None leaves that to the hub), and so is the branch `revision`.
    token: None takes HF_TOKEN, or that of `hf auth login`.
    Raises ValueError where the hub is off or refuses, and as `check` does, before `write` is called.
    """
    check(repo_id)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder)
        (folder / "README.md").unlink(missing_ok=True)  # peft writes one of its own
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
        try:
            api = HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message="A layerwise reranker",
                allow_patterns=[*CHECKPOINT_FILES, "README.md"],
            )
        except (OSError, HfHubHTTPError) as error:
            reason = first_line(error)
            reason = reason.replace(token, "…") if token else reason
            raise ValueError(
                f"{repo_id}: the hub does not take it ({reason}); log in with `hf auth login`, or set HF_TOKEN to a "
                "token that may write there"
            ) from None
    return done.commit_url
