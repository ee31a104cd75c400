import json
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from embedfit.encode import onnx
from embedfit.encode.adapted import Adapter, save_adapted
from embedfit.encode.export import export_onnx
from embedfit.encode.local import LocalEncoder
from embedfit.encode.onnx import FILES, OnnxEncoder
from embedfit.encode.static import tokenizer_of
from embedfit.errors import ModelError

TEXTS = ["Where is my receipt?", "", "a long text " * 150, "ÄRGER mit der Karte", "two\nlines"]
PROMPTS = {"query_prompt": "query: ", "document_prompt": "passage: "}


@pytest.fixture(scope="module")
def adapted(tiny_model, tmp_path_factory):
    """A model with prompts and a query adapter."""
    base = LocalEncoder(tiny_model, precision="fp32", **PROMPTS)
    weight = np.eye(384, dtype=np.float32) + np.random.default_rng(0).normal(size=(384, 384)).astype(np.float32) / 20
    adapter = Adapter(weight, np.full(384, 0.01, np.float32), base.fingerprint, "tiny")
    return LocalEncoder(save_adapted(base, adapter, tmp_path_factory.mktemp("adapted") / "adapted"), precision="fp32")


@pytest.fixture(scope="module")
def exported(adapted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "deploy"
    for form in FILES:
        export_onnx(adapted, folder, form)
    return folder


def test_the_exported_model_gives_the_vectors_of_the_model(exported, adapted):
    form = OnnxEncoder(exported, "onnx")
    assert form.prompts == adapted.prompts
    assert form.dimension == 384
    for kind in ("query", "document"):
        np.testing.assert_allclose(form.encode(TEXTS, kind), adapted.encode(TEXTS, kind), atol=2e-6)
    assert form.encode([], "query").shape == (0, 384)


def test_the_8_bit_form_is_near_and_a_quarter_of_the_size(exported, adapted):
    form = OnnxEncoder(exported)
    assert form.form == "onnx-int8"
    cosines = (form.encode(TEXTS, "document") * adapted.encode(TEXTS, "document")).sum(axis=1)
    assert 0.95 < cosines.min() < 0.99999
    sizes = {name: (exported / file).stat().st_size for name, file in FILES.items()}
    assert sizes["onnx-int8"] < 0.3 * sizes["onnx"]
    assert form.fingerprint != OnnxEncoder(exported, "onnx").fingerprint
    assert sorted(path.name for path in (exported / "onnx").iterdir()) == ["model.onnx", "model_quantized.onnx"]


def test_a_bare_transformer_is_exported_with_the_pooling_that_was_set(tiny_model, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json", "tokenizer.json"):
        if (tiny_model / name).exists():
            shutil.copy(tiny_model / name, bare)
    encoder = LocalEncoder(bare, precision="fp32", pooling="cls", **PROMPTS)
    export_onnx(encoder, tmp_path / "deploy", "onnx")
    form = OnnxEncoder(tmp_path / "deploy")
    assert form.prompts == encoder.prompts
    np.testing.assert_allclose(form.encode(TEXTS, "query"), encoder.encode(TEXTS, "query"), atol=2e-6)
    assert {path.name for path in (tmp_path / "deploy").iterdir() if path.is_dir()} == {"1_Pooling", "onnx"}


def test_a_decoder_with_last_token_pooling_a_dense_layer_and_fewer_dimensions_is_exported(tiny_model, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
    from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model), padding_side="left", model_max_length=24)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    Qwen3Model(Qwen3Config(**sizes, intermediate_size=64, vocab_size=len(tokenizer))).save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    modules = [Transformer(str(tmp_path / "bare")), Pooling(32, "lasttoken"), Dense(32, 16)]
    SentenceTransformer(modules=modules, truncate_dim=8).save_pretrained(str(tmp_path / "decoder"), create_model_card=False)
    encoder = LocalEncoder(tmp_path / "decoder", precision="fp32", **PROMPTS)
    export_onnx(encoder, tmp_path / "deploy", "onnx")
    vectors = OnnxEncoder(tmp_path / "deploy").encode(TEXTS, "query")
    assert vectors.shape == (len(TEXTS), 8)
    np.testing.assert_allclose(vectors, encoder.encode(TEXTS, "query"), atol=2e-6)


def test_the_identity_is_that_of_the_files_that_are_read(exported, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    before = OnnxEncoder(copy, "onnx").identity
    (copy / "static" / "0_StaticEmbedding").mkdir(parents=True)  # another form beside it
    (copy / "static" / "0_StaticEmbedding" / "model.safetensors").write_bytes(b"weights")
    (copy / "forms.json").write_text("[]")
    assert OnnxEncoder(copy, "onnx").identity == before == OnnxEncoder(exported, "onnx").identity
    for name in (f"{FILES['onnx']}.data", "1_Pooling/config.json"):
        path = copy / name
        kept = path.read_bytes() if path.exists() else b""
        path.write_bytes(kept + b" ")
        assert OnnxEncoder(copy, "onnx").identity != before
        path.write_bytes(kept) if kept else path.unlink()


def test_an_exported_model_needs_no_torch(exported):
    program = (
        "import sys\n"
        "from embedfit.encode.onnx import OnnxEncoder\n"
        f"print(OnnxEncoder({str(exported)!r}).encode(['a text'], 'query').shape)\n"
        "print(sorted({'torch', 'transformers', 'sentence_transformers', 'onnx'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "(1, 384)\n[]\n"


def test_other_libraries_read_the_same_settings(exported, adapted):
    from transformers import AutoTokenizer

    settings = json.loads((exported / "tokenizer_config.json").read_text())
    assert settings["max_length"] == settings["model_max_length"] == adapted.loaded.model.max_seq_length == 256
    tokenizer = AutoTokenizer.from_pretrained(str(exported))
    assert tokenizer(TEXTS[0])["input_ids"] == adapted.loaded.model.tokenizer(TEXTS[0])["input_ids"]
    assert not (exported / "model.safetensors").exists()


@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean", ("cls", "mean")])
@pytest.mark.parametrize("left", [False, True])
def test_pooling_is_that_of_sentence_transformers(mode, left):
    import torch
    from sentence_transformers.sentence_transformer.modules import Pooling

    tokens = np.random.default_rng(1).normal(size=(3, 5, 8)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], np.float32)
    mask = mask[:, ::-1].copy() if left else mask
    features = {"token_embeddings": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(mask.astype(np.int64))}
    expected = Pooling(8, mode)(features)["sentence_embedding"].numpy()
    modes = [mode] if isinstance(mode, str) else sorted(mode, key=list(onnx.POOLING_FLAGS.values()).index)
    np.testing.assert_allclose(onnx._pooled(modes, tokens, mask, "query"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["Transformer", "WordWeights"], "is a WordWeights layer, which an exported model cannot compute"),
        (
            ["Router"],
            "one encoder for queries and another for documents, and only a single Transformer can be exported; fix: tune.documents",
        ),
        (["CNN"], "begins with a CNN; only a Transformer can be exported"),
        ([], "begins with a missing layer"),
    ],
)
def test_a_layer_that_cannot_be_exported_is_named(tmp_path, modules, message):
    rows = [{"type": f"sentence_transformers.models.{name}", "path": str(place)} for place, name in enumerate(modules)]
    (tmp_path / "modules.json").write_text(json.dumps(rows))
    with pytest.raises(ModelError, match=message):
        onnx.check_exportable(tmp_path)


def test_a_folder_without_the_form_names_the_command(tmp_path, tiny_model):
    for call in (partial(OnnxEncoder, tiny_model), partial(OnnxEncoder, tmp_path, "onnx-int8")):
        with pytest.raises(ModelError, match="fix: embedfit export RUN --form onnx"):
            call()
    with pytest.raises(ModelError, match=r"has no modules\.json"):
        onnx.check_exportable(tmp_path)
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Transformer", "path": ""}]')
    with pytest.raises(ModelError, match=r"has no tokenizer\.json, which an exported model needs; fix: "):
        onnx.check_exportable(tmp_path)
    with pytest.raises(ModelError, match=r"has no tokenizer\.json; fix: "):
        tokenizer_of(tmp_path)


def test_a_damaged_file_is_one_line(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "damaged")
    (tmp_path / "damaged" / FILES["onnx"]).write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"model\.onnx: cannot be loaded: "):
        OnnxEncoder(tmp_path / "damaged", "onnx").encode(["a"], "query")
