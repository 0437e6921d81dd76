import pytest

from security.world import World, make_honest, make_secret


@pytest.fixture(scope="session")
def honest(tmp_path_factory):
    return make_honest(tmp_path_factory.mktemp("honest"))


@pytest.fixture
def world(honest, tmp_path, monkeypatch):
    """Give a world with an empty hostile folder; HOME and the working folder are bait."""
    secret, cwd = make_secret(tmp_path / "secret"), tmp_path / "cwd"
    cwd.mkdir()
    (tmp_path / "given").mkdir()
    for module in ("json", "bertjax", "numpy", "jax", "sitecustomize"):
        (cwd / f"{module}.py").write_text("raise SystemExit('a module of the working folder ran')\n")
    monkeypatch.setenv("HOME", str(secret / "home"))
    return World(tmp_path / "given", tmp_path / "out", secret, honest)
