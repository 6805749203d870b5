from collections.abc import Iterator

import pytest
from hub_server import Hub, start_hub


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    """A Hub on loopback that child processes talk to, as its owner and with an empty cache."""
    hub, server = start_hub()
    for name, value in {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf_home"),
        "NO_PROXY": "127.0.0.1",  # of a machine that reaches the network through one
        "no_proxy": "127.0.0.1",
        "HF_TOKEN": "hf_owner",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",  # the protocol of HTTP, not that of the Xet servers
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    yield hub
    server.shutdown()
    server.server_close()
