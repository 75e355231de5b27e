"""A Hub on this machine, in memory, and this process talking to it."""

import huggingface_hub
import pytest
from huggingface_hub import constants
from loopback_hub import TOKEN, LoopbackHub, environment_for


@pytest.fixture
def hub():
    """A Hub that knows one user, `ada`, of the organization `lab`, by `TOKEN`."""
    with LoopbackHub() as hub:
        hub.add_user(TOKEN, "ada", organizations=("lab",))
        yield hub


@pytest.fixture
def connect(monkeypatch, tmp_path):
    """Have this process take a server for the Hub, with nothing in its cache, logged in by `TOKEN` or another, or not."""

    def connect(url: str, token: str | None = TOKEN) -> None:
        for name, value in environment_for(url, tmp_path / "home", token).items():
            monkeypatch.setenv(name, value)
        if token is None:
            monkeypatch.delenv("HF_TOKEN", raising=False)
        # Read from the environment when the library was imported.
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "home" / "stored_tokens"))
        # transformers keeps the Hub that it has talked to first.
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
        huggingface_hub.close_session()

    yield connect
    huggingface_hub.close_session()
    huggingface_hub.utils.enable_progress_bars()


@pytest.fixture
def logged_in(hub, connect):
    """The Hub, with this process logged in to it."""
    connect(hub.url)
    return hub
