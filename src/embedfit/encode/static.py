"""A static model: one vector for each token, and a text is the mean of its tokens. It runs in numpy, and in sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from embedfit.encode.encoder import BaseEncoder, Kind, Vectors
from embedfit.errors import ModelError
from embedfit.files import digest, file_sha256, writing

_MODULE = "0_StaticEmbedding"
_TYPE = "sentence_transformers.models."


class StaticEncoder(BaseEncoder):
    """A static model in a folder that `write_static` or sentence-transformers wrote. It loads in a moment, without torch.

    Args:
        folder: Folder of the model.

    Raises:
        ModelError: The folder holds no static model, or it is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        self.folder = Path(folder)
        self.name = str(folder)
        try:
            self._rows = load_file(self.folder / _MODULE / "model.safetensors")["embedding.weight"]
        except (OSError, KeyError, SafetensorError) as error:
            raise ModelError(f"{folder}: cannot be read as a static model: {str(error).splitlines()[0]}") from None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the files, the same on every machine."""
        return digest([file_sha256(self.folder / _MODULE / name) for name in ("model.safetensors", "tokenizer.json")], sort_keys=False)

    @property
    def dimension(self) -> int:
        """Number of dimensions of the vectors."""
        return int(self._rows.shape[1])

    @property
    def saved_at(self) -> Path:
        """The folder of the model."""
        return self.folder

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order, as a float32 matrix (texts, dimensions).

        A text without a token has a vector of zeros.
        """
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        for row, encoding in enumerate(self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)):
            if encoding.ids:
                mean = self._rows[encoding.ids].mean(axis=0, dtype=np.float32)
                vectors[row] = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return vectors

    @cached_property
    def _tokenizer(self) -> Any:
        return tokenizer_of(self.folder / _MODULE)


def tokenizer_of(folder: Path) -> Any:
    """Return the tokenizer of a folder, which cuts and pads nothing.

    Raises:
        ModelError: The folder has no ``tokenizer.json``.
    """
    from tokenizers import Tokenizer

    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder}: has no tokenizer.json; fix: save the model anew with sentence-transformers")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def is_static(folder: Path) -> bool:
    """Return whether a folder has a static model."""
    return (folder / _MODULE / "model.safetensors").is_file()


def write_static(rows: Vectors, tokenizer: Any, folder: Path) -> list[str]:
    """Write a static model as sentence-transformers reads it, and return its files, relative to the folder.

    Args:
        rows: Vectors of the tokens; shape (tokens, dimensions).
        tokenizer: Tokenizer of the `tokenizers` library.
        folder: Folder to write to.
    """
    from safetensors.numpy import save

    (folder / _MODULE).mkdir(parents=True, exist_ok=True)
    modules = [
        {"idx": 0, "name": "0", "path": _MODULE, "type": f"{_TYPE}StaticEmbedding"},
        {"idx": 1, "name": "1", "path": "1_Normalize", "type": f"{_TYPE}Normalize"},
    ]
    (folder / "1_Normalize").mkdir(exist_ok=True)
    texts = {
        "modules.json": json.dumps(modules, indent=2),
        "config_sentence_transformers.json": json.dumps({"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}),
        f"{_MODULE}/tokenizer.json": tokenizer.to_str(),
        "1_Normalize/config.json": "{}",
    }
    contents = {name: text.encode() for name, text in texts.items()} | {f"{_MODULE}/model.safetensors": save({"embedding.weight": rows})}
    for name, content in contents.items():
        with writing(folder / name) as file:
            file.write(content)
    return sorted(contents)
