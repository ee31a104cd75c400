import pytest

from embedfit.encode.local import load_model
from embedfit.hub import model_folder
from embedfit.tune import trainer
from embedfit.tune.full import tune_model


class Killed(BaseException):
    """No part of the program may catch it."""


@pytest.fixture
def killed(monkeypatch):
    """Tune, with a checkpoint after every step, until some steps are done; returns what stands in the checkpoints then."""
    monkeypatch.setattr(trainer, "_SAVE_SECONDS", 0)
    monkeypatch.setattr(trainer, "_SAVE_SHARE", float("inf"))

    def tune(steps, encoder, train, dev, folder, settings):
        step = trainer.RecordingTrainer.training_step

        def until(trainer, *inputs, **named):
            if trainer.state.global_step == steps:
                raise Killed
            return step(trainer, *inputs, **named)

        with monkeypatch.context() as patch:
            patch.setattr(trainer.RecordingTrainer, "training_step", until)
            with pytest.raises(Killed):
                tune_model(encoder, train, dev, folder, settings)
        return sorted(int(path.name.removeprefix("checkpoint-")) for path in (folder / "checkpoints").glob("checkpoint-*"))

    return tune


@pytest.fixture(scope="session")
def two_layers(tmp_path_factory):
    """The folder of all-MiniLM-L6-v2 cut down to its first two layers."""
    model = load_model(model_folder("all-MiniLM-L6-v2"))
    transformer = model.transformers_model
    transformer.encoder.layer = transformer.encoder.layer[:2]
    transformer.config.num_hidden_layers = 2
    folder = tmp_path_factory.mktemp("two") / "layers"
    model.save_pretrained(str(folder), create_model_card=False)
    return folder
