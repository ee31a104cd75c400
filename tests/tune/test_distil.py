"""A static model: near the model that it is distilled from, and read by sentence-transformers alone."""

import numpy as np
import pytest

from embedfit.encode.local import LocalEncoder
from embedfit.encode.named import encoder_of
from embedfit.encode.static import StaticEncoder, is_static, write_static
from embedfit.errors import ModelError
from embedfit.retrieve.exact import top_k
from embedfit.sections import ModelConfig
from embedfit.tune import distil as distilling
from embedfit.tune.distil import distil


def agreement(left, right):
    places = [top_k(vectors, vectors, 6)[0] for vectors in (left, right)]
    return np.mean([len(set(a) & set(b)) - 1 for a, b in zip(*places, strict=True)]) / 5


def test_a_static_model_has_the_similarities_of_its_model(tiny_model, transactions, tmp_path, monkeypatch):
    monkeypatch.setattr(distilling, "_STEPS", 60)
    model = LocalEncoder(tiny_model, precision="fp32")
    texts = transactions.query_texts()
    trained, held_out = texts[:226], texts[226:]
    rows, tokenizer = distil(model, {"query": trained})
    files = write_static(rows, tokenizer, tmp_path / "static")
    assert {str(path.relative_to(tmp_path / "static")) for path in (tmp_path / "static").rglob("*") if path.is_file()} == set(files)
    static = encoder_of(ModelConfig(name=str(tmp_path / "static")))
    assert isinstance(static, StaticEncoder)
    assert static.dimension == rows.shape[1] == 256
    wanted = model.encode(held_out, "query")
    start = StaticEncoder(tmp_path / "static")
    start._rows = distilling._reduced(distilling._token_vectors(model, tokenizer))
    before, after = (agreement(encoder.encode(held_out, "query"), wanted) for encoder in (start, static))
    assert after > max(before, 0.5)

    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(tmp_path / "static"), device="cpu").encode([*held_out[:20], ""])
    np.testing.assert_allclose(theirs, static.encode([*held_out[:20], ""], "query"), atol=1e-6)


def test_what_is_no_static_model_is_refused(tmp_path):
    assert not is_static(tmp_path)
    with pytest.raises(ModelError, match="cannot be read as a static model"):
        StaticEncoder(tmp_path)
