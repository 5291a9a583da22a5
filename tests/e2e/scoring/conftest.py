"""The demo's target and sets in Hugging Face and PEFT: what the server's log-probabilities are compared with."""

import pytest

from unlearngate.artefact import load_forget_set
from unlearngate.assistant_training.data.encoding import Encoded
from unlearngate.assistant_training.model.loaded_sets import with_sets
from unlearngate.assistant_training.model.loaded_target import load_target
from unlearngate.assistant_training.model.scoring import score
from unlearngate.commands._shared import demo_folder


@pytest.fixture(scope="module")
def target(demo_server):
    return load_target(demo_folder(None) / "target")


@pytest.fixture(scope="module")
def offline(target):
    """Each token's log-probability behind those before it, by Hugging Face and the sets' own PEFT files."""

    def log_p(texts, sets):
        folders = [] if sets == "none" else [demo_folder(None) / "forget_sets" / name for name in sets.split("+")]
        model = with_sets(target.model, target.tokenizer, [load_forget_set(folder) for folder in folders])
        rows = [target.tokenizer(text).input_ids for text in texts]
        encoded = [Encoded(ids, [-100, *ids[1:]]) for ids in rows]
        scored = score(model.target, encoded, pad_id=0, in_force=model.in_force, mode="scoring")
        return [one.log_p.tolist() for one in scored]

    return log_p
