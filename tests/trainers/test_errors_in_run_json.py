"""`run.json` names an error that has no message by its class alone."""

import json

import pytest
from searches import search

from supernet.trainers import Callback


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "interrupted"), (KeyError, "failed")])
def test_an_error_without_a_message_is_its_name(tmp_path, error, status):
    class Raises(Callback):
        def step_ended(self, trainer):
            raise error

    with pytest.raises(error):
        search("path", tmp_path, num_epochs=1, callbacks=[Raises()]).fit()
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["status"], record["error"]) == (status, error.__name__)
    assert "signal" not in record
