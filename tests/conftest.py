"""A scenario that runs offline in half a second."""

import pytest

TINY = """\
name: tiny
seeds: [0]
rounds: 3
clients: 5
forget: [4]
data: {name: digits}
partition: {name: dirichlet, alpha: 0.3}
model: {name: softmax}
training: {epochs: 1, batch_size: 32, lr: 0.2}
methods: [nothing, rollback]
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Return the path of the scenario file; there is no group folder beside it."""
    file = tmp_path_factory.mktemp("project") / "scenario" / "tiny.yaml"
    file.parent.mkdir()
    file.write_text(TINY)
    return file
