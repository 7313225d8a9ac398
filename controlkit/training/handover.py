"""What a run hands over on request, beside `controlnet/`: a file for other programs, and a repository on the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlkit.training.guard import RunError

if TYPE_CHECKING:
    from pathlib import Path


def push_to_hub(folder: Path, repository: str) -> str:
    """Upload the net, its card and the pictures of the card in one commit, and return the address. The net lies at the
    top, where `ControlNetModel.from_pretrained(repository)` looks. A new repository is private."""
    from huggingface_hub import CommitOperationAdd, HfApi

    files = {path.name: path for path in sorted((folder / "controlnet").iterdir())}
    files |= {path.name: path for path in sorted(folder.glob("*.safetensors"))}
    beside = [*sorted(folder.glob("unet/*")), *sorted(folder.glob("samples/*.png"))[-1:]]
    files |= {path.relative_to(folder).as_posix(): path for path in beside}
    files |= {name: folder / name for name in ("README.md", "curves.png", "config.yaml") if (folder / name).exists()}
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in files.items()]
    try:
        hub = HfApi()
        address = hub.create_repo(repository, private=True, exist_ok=True)
        hub.create_commit(repository, operations, commit_message="ControlNet trained with controlkit")
    except Exception as reason:  # of the network, the account, the name: none of it harms the run
        raise RunError(
            f"{folder} is whole, but was not uploaded to {repository} ({' '.join(str(reason).split())}); try again: "
            f"hf upload {repository} {folder / 'controlnet'} ."
        ) from reason
    return str(address)
