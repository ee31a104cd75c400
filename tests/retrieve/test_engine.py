import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from embedfit.config import TuneConfig, make_config, read_config
from embedfit.data.load import load
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.local import LocalEncoder, ModelEncoder
from embedfit.errors import ConfigError, EmbedfitError, ModelError
from embedfit.hub import model_folder
from embedfit.pipeline import job, parts
from embedfit.retrieve.engine import LocalEngine, RayEncoder, RayEngine, _mapped
from embedfit.retrieve.exact import best_pairs, top_k
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.samples import TRANSACTIONS
from embedfit.tune.full import _now, tune_model

pytestmark = pytest.mark.slow
TEXTS = [f"{word} {number}" for number in range(30) for word in ("tea", "a much longer text about coffee", "bus", "tea")]


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of this machine's own, with two workers."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield RayEngine()
    ray.shutdown()


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr("embedfit.encode.encoder.SLICE", 16)
    monkeypatch.setattr("embedfit.retrieve.engine._DOCUMENTS", 500)
    monkeypatch.setattr("embedfit.retrieve.engine._PAIRS", 8)


def local(model):
    return LocalEncoder(model, precision="fp32")


def workers():
    """Return the process ids of Ray's processes that do a part for this process."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            names[int(folder.name)] = (folder / "cmdline").read_bytes()
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])

    def ours(process):
        while process > 1:
            if process == os.getpid():
                return True
            process = parents.get(process, 0)
        return False

    return {process for process, name in names.items() if name.startswith(b"ray::Map") and ours(process)}


def test_workers_pool_like_this_process(cluster, tiny_model, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(tiny_model, plain)
    (plain / "modules.json").unlink()
    shutil.rmtree(plain / "1_Pooling")
    encoder = LocalEncoder(plain, precision="fp32", pooling="cls", attn_implementation="eager", model_kwargs={"dtype": "float16"})
    there = cluster.encoder(encoder)
    np.testing.assert_allclose(there.encode(TEXTS[:8], "query"), encoder.encode(TEXTS[:8], "query"), atol=1e-5)
    assert (there.identity, there.prompts) == (encoder.identity, encoder.prompts)


def test_evaluating_on_the_cluster_gives_the_same_run_and_fills_the_same_cache(cluster, tiny_model, tmp_path, capsys, monkeypatch):
    from embedfit.cli import app

    (tmp_path / "embedfit.toml").write_text(
        f'[data]\nqueries = "{TRANSACTIONS}/transactions.jsonl"\ndocuments = "{TRANSACTIONS}/categories.json"\nrecord = "transaction"\n'
        f'document_template = "{{category}}"\n[split]\nfolds = 0\n[model]\nname = "{tiny_model}"\nprecision = "fp32"\n'
    )
    tables, runs = [], []
    for name in ("local", "ray"):
        monkeypatch.setenv("EMBEDFIT_CACHE", str(tmp_path / name))
        with pytest.raises(SystemExit) as stopped:
            app(["evaluate", str(tmp_path / "embedfit.toml"), "--part", "test", "--engine", name, "--json"])
        assert not stopped.value.code
        tables.append([{**row, "seconds": 0} for row in json.loads(capsys.readouterr().out)])
        config = read_config(tmp_path / "embedfit.toml")
        dataset = parts.read(config.data)
        test = dataset.select(parts.one_split(config, dataset).test)
        engine = job.engine_of(name)
        encoder = CachedEncoder(engine.encoder(local(tiny_model)))
        runs.append(DenseRetriever(encoder, "{category}", engine.top_k).search(test, 10))
        assert encoder.misses == 0  # whatever encoded, the vectors are in this process' cache
    assert tables[0] == tables[1]
    assert runs[0].query_ids == runs[1].query_ids
    np.testing.assert_array_equal(runs[0].ranked, runs[1].ranked)
    np.testing.assert_allclose(runs[0].scores, runs[1].scores, atol=1e-6)


def test_search_in_parts_is_exact_with_ties_in_order(cluster):
    rng = np.random.default_rng(0)
    queries, documents = (rng.integers(-2, 3, (rows, 6)).astype(np.float32) for rows in (9, 1_234))
    found, expected = cluster.top_k(queries, documents, 20), top_k(queries, documents, 20)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_a_killed_worker_loses_nothing(cluster, tiny_model, tmp_path):
    encoder = RayEncoder(local(tiny_model))
    texts = [*TEXTS, *(f"{number} of many texts that keep two workers busy" for number in range(4000))]
    expected = CachedEncoder(local(tiny_model), tmp_path / "here").encode(texts, "document")
    killed = []

    class Killing:
        name, fingerprint, encode = encoder.name, encoder.fingerprint, encoder.encode

        def encode_parts(self, texts, kind):
            for part in encoder.encode_parts(texts, kind):
                if not killed and (busy := workers()):
                    killed.append(min(busy))
                    os.kill(killed[0], signal.SIGKILL)
                yield part

    cached = CachedEncoder(Killing(), tmp_path / "there")
    vectors = cached.encode(texts, "document")
    assert killed
    assert not Path(f"/proc/{killed[0]}").exists()
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_vectors_that_came_back_before_the_cluster_was_lost_are_kept(tiny_model, tmp_path):
    class Lost:
        """A cluster that gives the first two parts."""

        name = fingerprint = "lost"

        def encode(self, texts, kind):
            return np.eye(4, dtype=np.float32)[[len(text) % 4 for text in texts]]

        def encode_parts(self, texts, kind):
            from embedfit.encode.encoder import Part, slices

            for number, rows in enumerate(slices(texts)):
                if number == 2:
                    raise EmbedfitError("the cluster is gone")
                yield Part(rows, self.encode([texts[row] for row in rows], kind))

    texts = [str(number) for number in range(100)]
    with pytest.raises(EmbedfitError, match="is gone"):
        CachedEncoder(Lost(), tmp_path).encode(texts, "query")
    again = CachedEncoder(Lost(), tmp_path)
    with pytest.raises(EmbedfitError):
        again.encode(texts, "query")
    assert again.misses == 100 - 2 * 16


def test_an_error_of_a_worker_gives_a_one_line_error(cluster):
    class Fails:
        def __call__(self, row):
            raise ModelError("no such thing as a model")

    with pytest.raises(EmbedfitError, match="no such thing as a model") as caught:
        list(_mapped(Fails, {}, [{"part": 0}]))
    assert "\n" not in str(caught.value)


def test_no_texts_start_no_worker(tiny_model):
    assert RayEncoder(local(tiny_model)).encode([], "query").shape == (0, 384)


def test_the_best_of_several_lists_are_the_best_of_all():
    positions = np.array([[4, 1, 7, 2]])
    scores = np.array([[0.5, 0.9, 0.9, 0.5]], np.float32)
    assert best_pairs(positions, scores, 3)[0].tolist() == [[1, 7, 2]]


def test_the_engine_of_a_configuration_is_the_one_it_names(cluster):
    assert isinstance(job.engine_of("ray"), RayEngine)
    assert isinstance(job.engine_of(make_config({"data": {"queries": "-"}}).engine), LocalEngine)
    with pytest.raises(ConfigError, match="'local' or 'ray'"):
        make_config({"data": {"queries": "-"}, "engine": "spark"})


@pytest.fixture
def judge(tmp_path):
    """The folder of a cross-encoder that has an opinion, if no good one."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    source, folder = model_folder("all-MiniLM-L6-v2"), tmp_path / "judge"
    AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, num_hidden_layers=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, model_max_length=64).save_pretrained(folder)
    return str(folder)


def test_negatives_mined_and_judged_on_the_cluster_equal_the_local_ones(cluster, tiny_model, judge, tmp_path, monkeypatch):
    from embedfit.tune import full
    from embedfit.tune.mine import mine

    monkeypatch.setattr("embedfit.retrieve.engine._DOCUMENTS", 10)
    made, seen = full._now, []
    monkeypatch.setattr(full, "_now", lambda *given: seen.append(made(*given)) or seen[-1])
    data = load(TRANSACTIONS / "transactions.jsonl", TRANSACTIONS / "categories.json", record="transaction")
    data = data.select(list(data.queries)[:60])
    config = TuneConfig(candidates="mined", epochs=2, mined_margin=2.0, judge=judge)
    mined, weights = [], []
    for name, engine in (("here", None), ("there", cluster)):
        found = []
        monkeypatch.setenv("EMBEDFIT_CACHE", str(tmp_path / "cache" / name))
        monkeypatch.setattr(full, "mine", lambda *given, found=found, **named: found.append(mine(*given, **named)) or found[-1])
        tuned = tune_model(local(tiny_model), data, None, tmp_path / name, config, engine=engine)
        mined.append(found)
        weights.append(load_file(tuned.model / "model.safetensors"))
        assert not (tmp_path / name / "mined").exists()
    assert len(mined[0]) == len(mined[1]) == 2
    for one, other in zip(*mined, strict=True):
        np.testing.assert_array_equal(one, other)
    for name, values in weights[0].items():
        np.testing.assert_array_equal(values, weights[1][name])
    assert [type(one.encoder) for one in seen] == [ModelEncoder, RayEncoder]


def test_a_model_with_lora_matrices_mines_in_this_process(cluster, tiny_model, tmp_path):
    training = local(tiny_model).loaded
    assert _now(training, False, cluster, tmp_path).encoder is training
