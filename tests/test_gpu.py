"""What only a GPU can show. Without one all of this is skipped."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch

from embedfit.config import TuneConfig
from embedfit.encode.local import LocalEncoder, ModelEncoder, load_model
from embedfit.encode.precision import use_bf16
from embedfit.hub import weights_of
from embedfit.pipeline.measuring import measure
from embedfit.tune.full import tune_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def weights(folder):
    return safetensors.torch.load_file(weights_of(folder)[0])


def test_bfloat16_is_the_default_where_the_device_has_it():
    assert use_bf16("auto", "cuda") == torch.cuda.is_bf16_supported(including_emulation=False)


def test_attention_is_fused(tiny_model):
    model = LocalEncoder(tiny_model).loaded.model
    assert model.device.type == "cuda"
    assert model.transformers_model.config._attn_implementation == "sdpa"


def test_vectors_are_those_of_the_processor(transactions):
    encoder = LocalEncoder("all-MiniLM-L6-v2", precision="fp32")
    here = ModelEncoder(load_model(encoder.folder).to("cpu"), encoder.prompts, bf16=False)
    texts = transactions.query_texts()
    np.testing.assert_allclose(encoder.encode(texts, "query"), here.encode(texts, "query"), atol=2e-3)  # products in TF32 at most
    shortened = LocalEncoder("all-MiniLM-L6-v2", precision="bf16").encode(texts, "query")
    assert (encoder.encode(texts, "query") * shortened).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("candidates", ["all", "mined"])
def test_tuning_makes_retrieval_better(transactions, tmp_path, candidates):
    encoder = LocalEncoder("all-MiniLM-L6-v2")
    ids = list(transactions.queries)
    train, test = transactions.select(ids[::2]), transactions.select(ids[1::2])
    tuned = tune_model(encoder, train, None, tmp_path, TuneConfig(candidates=candidates))
    assert measure(tuned.encoder, test).mean("mrr@10") > measure(encoder, test).mean("mrr@10") + 0.05


def test_little_memory_gives_the_same_model(transactions, tiny_model, tmp_path):
    found = []
    for name, memory in (("much", None), ("little", 0.001)):
        tune_model(LocalEncoder(tiny_model, precision="fp32"), transactions, None, tmp_path / name, TuneConfig(epochs=1, memory_gb=memory))
        found.append(weights(tmp_path / name / "model"))
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], atol=1e-4, rtol=0)


_TUNE = """
import sys
from embedfit.encode.local import LocalEncoder
from embedfit.config import TuneConfig
from embedfit.data.load import load
from embedfit.tune.full import tune_model
from embedfit.samples import TRANSACTIONS
from embedfit.tune import trainer
trainer._SAVE_SECONDS, trainer._SAVE_SHARE = 0.0, 1.0
data = load(TRANSACTIONS / "transactions.jsonl", TRANSACTIONS / "categories.json", record="transaction")
tune_model(LocalEncoder(sys.argv[1], precision="fp32"), data, None, sys.argv[2], TuneConfig(epochs=20, candidates="mined"))
"""


def test_killed_it_goes_on_to_the_same_model(tiny_model, tmp_path):
    def start(folder):
        return subprocess.Popen([sys.executable, "-c", _TUNE, str(tiny_model), str(tmp_path / folder)], env=os.environ)

    assert start("whole").wait() == 0
    process = start("killed")
    while process.poll() is None and len(list((tmp_path / "killed" / "checkpoints").glob("*/trainer_state.json"))) < 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert start("killed").wait() == 0
    whole, killed = weights(tmp_path / "whole" / "model"), weights(tmp_path / "killed" / "model")
    for key, value in whole.items():
        torch.testing.assert_close(value, killed[key], atol=1e-3, rtol=0)  # sums on a GPU come in any order
