"""Bridges: the map that is right is chosen, and it is kept in a plain file."""

import json
import struct

import numpy as np
import pytest

from embedfit.encode.bridge import SHAPES, load_bridge
from embedfit.errors import DataError, ModelError
from embedfit.retrieve.exact import top_k
from embedfit.tune.bridging import fit_bridge


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class Named:
    def __init__(self, name):
        self.name = self.fingerprint = name


MODELS = Named("old"), Named("new")


@pytest.fixture(scope="module")
def clustered():
    """Vectors as an encoder gives them: in clusters, with few large directions. 600 to fit on, and 200 others."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 32))
    return unit((centres[rng.integers(40, size=800)] + 0.5 * rng.normal(size=(800, 32))) * np.linspace(2, 0.2, 32) + 0.5)


def turned(width, seed=1):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(max(32, width), max(32, width))))[0][:32, :width]


def stretched(vectors):
    return unit(vectors @ np.random.default_rng(2).normal(size=(32, 24)) + 0.1)


def found(bridge, queries, documents):
    return top_k(bridge.apply(queries).vectors, documents, 10)


def test_a_turned_space_is_turned_back(clustered):
    new = unit(clustered @ turned(48))  # more dimensions than before
    fitted = fit_bridge(clustered[:600], new[:600], *MODELS)
    assert fitted.bridge.kind == "orthogonal"
    assert fitted.documents == 600
    assert fitted.agreement["orthogonal"] == pytest.approx(1)
    places, cosines = found(fitted.bridge, new[600:], clustered[600:])
    wanted, exact = top_k(new[600:], new[600:], 10)
    np.testing.assert_array_equal(places, wanted)
    np.testing.assert_allclose(fitted.bridge.apply(new[600:]).estimates(cosines), exact, atol=1e-3)


def test_a_stretched_space_needs_another_map_whose_scores_are_on_the_new_scale(clustered):
    new = stretched(clustered)
    fitted = fit_bridge(clustered[:600], new[:600], *MODELS)
    assert fitted.bridge.kind != "orthogonal"
    assert fitted.agreement["orthogonal"] < max(fitted.agreement.values()) - 0.05
    queries, documents = new[600:], clustered[600:]
    places, cosines = found(fitted.bridge, queries, documents)
    exact = np.einsum("qd,qkd->qk", queries, new[600:][places])
    estimated = fitted.bridge.apply(queries).estimates(cosines)
    assert np.abs(estimated - exact).mean() < 0.07
    assert abs((estimated - exact).mean()) < 0.01
    assert np.abs(cosines - exact).mean() > np.abs(estimated - exact).mean()


@pytest.mark.parametrize("kind", list(SHAPES))
def test_a_bridge_is_plain_safetensors_with_its_shapes_in_the_header(clustered, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("embedfit.tune.bridging._agreement", lambda bridge, old, new: float(bridge.kind == kind))
    bridge = fit_bridge(clustered[:200], stretched(clustered)[:200], *MODELS).bridge
    assert bridge.kind == kind
    data = bridge.save(tmp_path / "bridge.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    sizes = {"new": 24, "old": 32, "rank": 6, "hidden": 256}
    assert {name: header[name]["shape"] for name in SHAPES[kind]} == {
        name: [sizes[dimension] for dimension in dimensions] for name, dimensions in SHAPES[kind].items()
    }
    read = load_bridge(tmp_path / "bridge.safetensors")
    assert (read.fingerprint, read.old_name, read.new_name) == (bridge.fingerprint, "old", "new")
    queries = stretched(clustered)[600:]
    for before, after in zip(bridge.apply(queries), read.apply(queries), strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_residual_map_is_that_of_its_training():
    import torch
    from torch.nn.functional import gelu

    from embedfit.encode.bridge import gelu as ours

    values = np.linspace(-4, 4, 100, dtype=np.float32)
    np.testing.assert_allclose(ours(values), gelu(torch.from_numpy(values), approximate="tanh").numpy(), atol=1e-6)


def test_what_is_no_bridge_is_refused_in_one_line(clustered, tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(DataError, match="are 99; expected at least 100"):
        fit_bridge(clustered[:99], clustered[:99], *MODELS)
    path = tmp_path / "bridge.safetensors"
    with pytest.raises(ModelError, match="cannot be read as a bridge"):
        load_bridge(path)
    save_file({"rotation": np.eye(3, dtype=np.float32)}, path)
    with pytest.raises(ModelError, match="is not a bridge"):
        load_bridge(path)
    bridge = fit_bridge(clustered[:200], clustered[:200], *MODELS).bridge
    bridge.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be read as a bridge"):
        load_bridge(path)
