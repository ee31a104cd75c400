"""Parity with a real foreign server: a run's model as GGUF in llama.cpp's server, on the run's held-out queries and documents.

    pip install xllamacpp gguf
    python benchmarks/llama_cpp.py RUN [--weights f32|f16] [--pooling mean|cls] [--prompts client|endpoint]

The model must be a BERT with a WordPiece tokenizer, as all-MiniLM-L6-v2 is. Weights and tokens are written by the gguf package; the tokens
get the marks that llama.cpp's converter gives them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import gguf
import numpy as np
import xllamacpp
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from embedfit.pipeline.deploying import check_endpoint
from embedfit.pipeline.result import read_result

POOLING = {"mean": gguf.PoolingType.MEAN, "cls": gguf.PoolingType.CLS}


def write_gguf(folder: Path, path: Path, weights: str, pooling: str) -> None:
    """Write a BERT in a sentence-transformers folder as GGUF."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.BERT])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(POOLING[pooling])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if weights == "f16" else gguf.LlamaFileType.ALL_F32)
    _add_tokens(writer, Tokenizer.from_file(str(folder / "tokenizer.json")), config["type_vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        place = names.get_name(name.removeprefix("bert."), try_suffixes=(".weight", ".bias"))
        if place and not name.removeprefix("bert.").startswith("pooler."):
            half = weights == "f16" and tensor.ndim == 2 and place.startswith("blk.")
            writer.add_tensor(place, tensor.astype(np.float16 if half else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokens(writer: gguf.GGUFWriter, tokenizer: Tokenizer, types: int) -> None:
    special = {"[PAD]": "pad", "[UNK]": "unk", "[CLS]": "bos", "[SEP]": "sep", "[MASK]": "mask"}
    tokens, kinds = [], []
    for id in range(tokenizer.get_vocab_size()):
        token = tokenizer.id_to_token(id)
        if token.startswith("[") and token.endswith("]") and len(token) > 2:
            tokens.append(token)
        else:
            tokens.append(token[2:] if token.startswith("##") else "\u2581" + token)
        kinds.append(gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_type_count(types)
    for token, name in special.items():
        getattr(writer, f"add_{name}_token_id")(tokenizer.token_to_id(token))


def main() -> None:
    """Serve a run's model with llama.cpp and check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--weights", choices=["f32", "f16"], default="f32")
    parser.add_argument("--pooling", choices=POOLING, default="mean")
    parser.add_argument("--prompts", choices=["client", "endpoint"], default="client")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(read_result(given.run).model, path, given.weights, given.pooling)
        settings = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.hostnames, settings.port = ["127.0.0.1"], 0
        settings.embedding, settings.n_parallel = True, 1
        settings.n_ctx = settings.n_batch = settings.n_ubatch = 512
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.verbosity = 0
        server = xllamacpp.Server(settings)
        served = check_endpoint(given.run, f"openai:model@{server.listening_address}/v1", prompts=given.prompts)
        print(*served.lines, served.sentence, sep="\n")
        del server


if __name__ == "__main__":
    main()
