"""Upload a reranker and its model card to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from lwr.common.errors import first_line
from lwr.formats.checkpoint import CHECKPOINT_FILES
from lwr.model.reranker import LayerwiseReranker
from lwr.model.storage import has_adapter


def push(
    reranker: LayerwiseReranker,
    repo_id: str,
    card: str | None = None,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Upload what `save_pretrained` writes, and a model card, to a repository of the hub.

    Only safetensors and text files are uploaded, no pickles and no code. The repository and the branch are created
    where they are missing.

    Args:
        reranker: The reranker.
        repo_id: OWNER/NAME on the hub.
        card: README.md, as `lwr.export.card.card` writes it; None uploads none.
        private: Whether a repository that is created is private; None leaves that to the hub.
        token: None takes HF_TOKEN, or the token of `hf auth login`.
        revision: Branch to upload to; None is the main branch.

    Returns:
        The address of the commit.

    Raises:
        ValueError: The hub is off or refuses, the name is not valid, or an adapter's base model is a local folder.
    """
    check_repo_id(repo_id)
    base = reranker.base
    if has_adapter(reranker.backbone) and base and Path(base.model).expanduser().is_dir():
        raise ValueError(
            f"{repo_id}: an adapter for {base.model}, a local folder that others do not have; merge it first "
            "(lwr.model.linear.lora.merge_lora)"
        )
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        reranker.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # peft writes one of its own
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
        return _upload(folder, repo_id, private, token, revision)


def check_repo_id(repo_id: str) -> None:
    """Check that an upload to OWNER/NAME can be tried.

    Raises:
        ValueError: The hub is off, or the name is not valid there.
    """
    if constants.is_offline_mode():
        raise ValueError(
            f"{repo_id}: the hub is off (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE); unset it to upload"
        )
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise ValueError(f"{repo_id!r} is not a name on the hub; write OWNER/NAME") from None


def _upload(folder: Path, repo_id: str, private: bool | None, token: str | None, revision: str | None) -> str:
    """Upload a folder and return the address of the commit. Raises ValueError without the token in its message."""
    try:
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
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
            f"{repo_id}: the hub rejects the upload ({reason}); log in with `hf auth login`, or set HF_TOKEN to a "
            "token with write access"
        ) from None
    return commit.commit_url
