"""Each mistake in the configuration is one sentence that names the key."""

from pathlib import Path

import pytest

from secagg.errors import ConfigError
from secagg_coordinator.config import load

MINIMAL = 'keys = "keys"\ndata = "/var/lib/secagg"\n'


def written(directory: Path, text: str) -> Path:
    path = directory / "coordinator.toml"
    path.write_text(text)
    return path


def test_a_minimal_file_has_sane_defaults(tmp_path: Path) -> None:
    config = load(written(tmp_path, MINIMAL), {})
    assert config.keys == tmp_path / "keys"
    assert config.data == Path("/var/lib/secagg")
    assert (config.listen.host, config.listen.port) == ("127.0.0.1", 8470)
    assert 5 <= config.lease.seconds <= 10
    assert config.evidence is None


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    environment = {
        "SECAGG_COORDINATOR__LISTEN__PORT": "9000",
        "SECAGG_COORDINATOR__DATA": "elsewhere",
        "SECAGG_COORDINATOR__LEASE__SECONDS": "7.5",
        "OTHER": "ignored",
    }
    config = load(written(tmp_path, MINIMAL + "[listen]\nport = 1\n"), environment)
    assert config.listen.port == 9000
    assert config.data == tmp_path / "elsewhere"
    assert config.lease.seconds == 7.5


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("keys = ", "not TOML"),
        ('data = "d"\n', "keys"),
        (MINIMAL + "surprise = 1\n", "surprise"),
        (MINIMAL + "[listen]\nport = 70000\n", "listen.port"),
        (MINIMAL + "[listen]\nprot = 1\n", "listen.prot"),
        (MINIMAL + "[lease]\nseconds = 0\n", "lease.seconds"),
        (MINIMAL + '[log]\nlevel = "loud"\n', "log.level"),
        (MINIMAL + "[limits]\nspool_bytes = -1\n", "limits.spool_bytes"),
        (MINIMAL + "listen = 5\n", "listen"),
    ],
)
def test_a_mistake_names_its_key(tmp_path: Path, text: str, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        load(written(tmp_path, text), {})


def test_a_mistake_in_the_environment_is_found_too(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL)
    with pytest.raises(ConfigError, match=r"lease\.seconds"):
        load(path, {"SECAGG_COORDINATOR__LEASE__SECONDS": "soon"})
    with pytest.raises(ConfigError, match="SECAGG_COORDINATOR__DATA__X"):
        load(path, {"SECAGG_COORDINATOR__DATA__X": "1"})


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load(tmp_path / "none.toml", {})
