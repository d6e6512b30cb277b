import msgspec
import pytest
from rich.pretty import pretty_repr

from things_kit import ConfigError
from things_kit.engine.secrets import Secret, is_secret
from things_kit.engine.url import BrokerURL


class Options(msgspec.Struct, frozen=True):
    size: int = 5
    password: Secret = Secret("")
    token: Secret | None = None


def test_no_text_of_a_secret_or_of_what_has_one_shows_it() -> None:
    options = BrokerURL.parse("stone://host?password=geheim&token=geheim").options(Options)
    shown = [repr(options), str(options), pretty_repr(options), f"{options.password} {options.password!r:>9}"]
    assert "geheim" not in " ".join(shown)
    assert options.password.reveal() == "geheim"
    assert options.token == Secret("geheim")


def test_a_secret_is_compared_by_its_text() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
    assert Secret("a")
    assert not Secret("")


def test_a_mistake_beside_a_secret_does_not_show_it() -> None:
    with pytest.raises(ConfigError) as raised:
        BrokerURL.parse("stone://host?password=geheim&size=many").options(Options)
    assert "geheim" not in f"{raised.value} {raised.value.__cause__}"


@pytest.mark.parametrize(
    ("kind", "secret"), [(Secret, True), (Secret | None, True), (str, False), (str | None, False)]
)
def test_the_type_of_a_field_says_whether_it_is_secret(kind: object, secret: bool) -> None:
    assert is_secret(kind) is secret
