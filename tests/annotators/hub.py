"""A hub of our own behind the functions of huggingface_hub that are called; what it gives lands in a true cache."""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled

REVISION = "0" * 40


class FakeHub:
    """`repositories` maps a hub id to its files by name; `asked` counts what was downloaded."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.folder, self.repositories, self.licence = folder, {}, "mit"
        self.online, self.asked, self.lies = True, [], False
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=self.model_info))

    def download(self, repo, name):
        if not self.online:
            raise OfflineModeIsEnabled("no network in this test")
        if name not in self.repositories[repo]:
            raise EntryNotFoundError(f"404: {repo} has no {name}")
        self.asked.append(name)
        place = self.folder / f"models--{repo.replace('/', '--')}"
        path = place / "snapshots" / REVISION / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.repositories[repo][name])
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / "main").write_text(REVISION)
        return str(path)

    def model_info(self, repo, files_metadata):
        assert files_metadata
        siblings = [
            SimpleNamespace(rfilename=name, size=len(content), lfs=self._lfs(name, content))
            for name, content in self.repositories[repo].items()
        ]
        return SimpleNamespace(siblings=siblings, card_data={"license": self.licence})

    def _lfs(self, name, content):
        """Small files are kept in git and have none."""
        if name.endswith(".json"):
            return None
        return SimpleNamespace(sha256="f" * 64 if self.lies else hashlib.sha256(content).hexdigest())
