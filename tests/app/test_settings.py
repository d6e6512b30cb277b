"""Sections of configuration: where their values come from, and what is said of those that are wrong."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, SecretStr

from things_kit.app.settings import Settings, SettingsError
from things_kit.app.shown import schema, shown


class Pool(BaseModel):
    size: int = 1


class Shop(BaseModel):
    price: int = 0
    names: list[str] = []
    pool: Pool = Pool()
    other: Pool | None = None
    password: SecretStr | None = None
    ca_file: str | None = None
    ca: str | None = None


@dataclass
class Plain:
    size: int = 1
    tags: tuple[str, ...] = ()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "config.yaml") -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")


def shop(**kinds: Any) -> Any:
    return Settings({"shop": Shop, **kinds})["shop"]


def mistakes(kind: type = Shop) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        Settings({"shop": kind})
    return caught.value.mistakes


def test_without_a_file_there_are_the_defaults() -> None:
    assert shop() == Shop()


@pytest.mark.parametrize("name", ["config.yaml", "config/config.yaml"])
def test_the_file_is_looked_for_here_and_in_config(name: str) -> None:
    write("shop:\n  price: 3\n  names: [a]\n  pool: {size: 5}\n", name)
    assert shop() == Shop(price=3, names=["a"], pool=Pool(size=5))


def test_the_environment_goes_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write("shop:\n  price: 3\n  names: [a]\n  pool: {size: 5}\n")
    monkeypatch.setenv("SHOP_PRICE", "7")
    monkeypatch.setenv("SHOP_NAMES", "b, c")
    monkeypatch.setenv("SHOP_POOL__SIZE", "9")
    monkeypatch.setenv("SHOP_OTHER", '{"size": 4}')
    assert shop() == Shop(price=7, names=["b", "c"], pool=Pool(size=9), other=Pool(size=4))


def test_a_list_in_the_environment_may_be_one_item_none_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, expected in (("a", ["a"]), ("", []), ('["x,y", "z"]', ["x,y", "z"])):
        monkeypatch.setenv("SHOP_NAMES", text)
        assert shop().names == expected


def test_variables_that_are_no_fields_are_nobodys_concern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_PORT", "tcp://10.0.0.1:9092")
    monkeypatch.setenv("SHOP_HOME_FILE", "/nowhere")
    assert shop() == Shop()


def test_a_dataclass_can_be_a_section(monkeypatch: pytest.MonkeyPatch) -> None:
    write("plain: {size: 3}\n")
    monkeypatch.setenv("PLAIN_TAGS", "a,b")
    assert Settings({"plain": Plain})["plain"] == Plain(3, ("a", "b"))


def test_a_secret_comes_from_the_file_that_a_variable_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    monkeypatch.setenv("SHOP_PASSWORD_FILE", str(tmp_path / "secret"))
    assert shop().password.get_secret_value() == "s3cret"


def test_a_field_that_is_called_file_is_that_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_CA_FILE", "/etc/ca.pem")
    assert shop().ca_file == "/etc/ca.pem"
    assert shop().ca is None


def test_an_empty_section_has_the_defaults_and_x_sections_are_the_files_own() -> None:
    write("x-common: &common {price: 4}\nshop:\n")
    assert shop() == Shop()
    write("x-common: &common {price: 4}\nshop:\n  <<: *common\n")
    assert shop().price == 4


# --- mistakes


def test_mistakes_name_the_file_the_line_the_field_and_what_was_expected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write("shop:\n  prise: 3\n  names:\n    - a\n    - [b]\n  pool:\n    size: many\n    seize: 4\n")
    monkeypatch.setenv("SHOP_PRICE", "cheap")
    assert mistakes() == (
        "SHOP_PRICE: shop.price: expected a valid integer, unable to parse string as an integer; it is 'cheap'",
        "config.yaml:5: shop.names.1: expected a valid string",
        "config.yaml:7: shop.pool.size: expected a valid integer, unable to parse string as an integer; it is 'many'",
        "config.yaml:8: shop.pool.seize: unknown field; did you mean 'size'? known are size",
        "config.yaml:2: shop.prise: unknown field; did you mean 'price'? known are ca, ca_file, names, other, "
        "password, pool, price",
    )


def test_a_field_that_is_missing_is_named_with_the_line_of_its_section() -> None:
    class Needs(BaseModel):
        price: int

    assert mistakes(Needs) == ("config.yaml: shop.price: it is missing, and has no default",)
    write("\nshop:\n")
    assert mistakes(Needs) == ("config.yaml:2: shop.price: it is missing, and has no default",)


def test_a_value_that_may_be_of_several_types_and_is_of_none_is_one_mistake() -> None:
    class Pool(BaseModel):
        size: int

    class Shop(BaseModel):
        wait: float | timedelta = 0.0
        pool: Pool | str = ""
        pools: list[Pool | int] = []

    write("shop:\n  wait: soon\n  pool: {size: many}\n  pools:\n    - 1\n    - {}\n")
    assert mistakes(Shop) == (
        "config.yaml:2: shop.wait: expected a valid number, unable to parse string as a number; or expected a valid "
        "timedelta, invalid digit in duration; it is 'soon'",
        "config.yaml:3: shop.pool.size: expected a valid integer, unable to parse string as an integer; it is 'many'",
        "config.yaml:3: shop.pool: expected a valid string",
        "config.yaml:6: shop.pools.1.size: it is missing, and has no default",
        "config.yaml:6: shop.pools.1: expected a valid integer",
    )


def test_mistakes_in_a_dataclass_are_said_alike() -> None:
    @dataclass
    class Needs:
        price: int

    write("shop:\n  prise: 3\n")
    assert mistakes(Needs) == (
        "config.yaml:1: shop.price: it is missing, and has no default",
        "config.yaml:2: shop.prise: unknown field; did you mean 'price'? known are price",
    )


def test_a_section_that_nothing_reads_is_a_mistake_unless_another_app_does() -> None:
    write("shop: {}\nship:\n  price: 3\nelsewhere: {}\n")
    with pytest.raises(SettingsError) as caught:
        Settings({"shop": Shop}, known=["elsewhere"])
    assert caught.value.mistakes == (
        "config.yaml:2: ship: nothing reads this section; did you mean 'shop'? known are elsewhere, shop",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shop: [", "config.yaml:1: this is no YAML"),
        ("- shop", "config.yaml:1: expected sections"),
        ("\nshop: 3", "config.yaml:2: shop: expected a section"),
        ("shop:\n  price: 3\n  price: 4", "config.yaml:3: price stands on line 2 already"),
        ("shop: !!python/object:os.system {}", "config.yaml:1: this is no YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_said_with_its_line(text: str, expected: str) -> None:
    write(text)
    assert mistakes()[0].startswith(expected)


def test_a_secret_is_in_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Needs(BaseModel):
        password: int
        token: str = Field("", max_length=2)

    (tmp_path / "secret").write_text("s3cret")
    monkeypatch.setenv("SHOP_PASSWORD_FILE", str(tmp_path / "secret"))
    write("shop: {token: s3cret}")
    found = mistakes(Needs)
    assert found[0].startswith("SHOP_PASSWORD_FILE: shop.password: expected")
    assert "s3cret" not in "".join(found)


def test_a_secret_that_is_given_twice_or_cannot_be_read_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_PASSWORD_FILE", "nowhere")
    assert mistakes() == ("SHOP_PASSWORD_FILE: the file nowhere cannot be read: No such file or directory",)
    monkeypatch.setenv("SHOP_PASSWORD", "x")
    assert mistakes() == ("SHOP_PASSWORD_FILE and SHOP_PASSWORD are both set: expected one of them",)


# --- shown


def test_what_is_in_force_is_shown_without_secrets() -> None:
    class Section(BaseModel):
        price: int = 3
        password: SecretStr = SecretStr("s3cret")
        api_token: str = "s3cret"
        url: str = "kafka://user:s3cret@host?key_password=s3cret&acks=1"
        options: dict[str, str] = {"key": "s3cret", "acks": "1"}

    assert shown(Section, Section()) == {
        "price": 3,
        "password": "**********",
        "api_token": "**********",
        "url": "kafka://**********@host?key_password=**********&acks=1",
        "options": {"key": "**********", "acks": "1"},
    }


def test_the_schema_knows_every_section_and_refuses_others() -> None:
    whole = schema({"shop": Shop, "plain": Plain})
    assert whole["additionalProperties"] is False
    assert set(whole["properties"]) == {"shop", "plain"}
    assert whole["$defs"]["Pool"]["additionalProperties"] is False
    for part in whole["properties"].values():
        assert part["$ref"].removeprefix("#/$defs/") in whole["$defs"]


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("SHOP_CURENCY", "SHOP_CURRENCY"),
        ("SHOP_CURRNCEY", "SHOP_CURRENCY"),
        ("SHOP_PROCE", "SHOP_PRICE"),
        ("SHOP_DATABASE__POLL", "SHOP_DATABASE__POOL"),
        ("SHOP_PASSWROD_FILE", "SHOP_PASSWORD"),
    ],
)
def test_a_misspelt_variable_is_said_with_what_was_meant_and_without_its_value(
    monkeypatch: pytest.MonkeyPatch, variable: str, meant: str
) -> None:
    class Pool(BaseModel):
        pool: int = 1

    class Spelt(BaseModel):
        currency: str = "EUR"
        price: int = 1
        password: str = ""
        database: Pool = Pool()

    monkeypatch.setenv(variable, "s3cret")
    with pytest.raises(SettingsError) as raised:
        Settings({"shop": Spelt})
    assert str(raised.value) == (
        f"{variable}: nothing reads this variable; {meant} is probably meant: rename it, or unset it"
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SHOP_PRICES", "tcp://10.0.0.1:6379"),
        ("SHOP_SERVICE_HOST", "10.0.0.1"),
        ("SHOP_PRICELIST", "x"),
        ("SHOP_PRIZZ", "x"),
        ("PRICE", "x"),
    ],
)
def test_other_variables_are_nobodys_concern(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    class Priced(BaseModel):
        price: int = 1

    monkeypatch.setenv(variable, value)
    assert Settings({"shop": Priced})["shop"].price == 1


def test_null_in_a_variable_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(BaseModel):
        name: str | None = "x"
        names: list[str] | None = []

    monkeypatch.setenv("SHOP_NAME", "null")
    monkeypatch.setenv("SHOP_NAMES", "null")
    named = Settings({"shop": Named})["shop"]
    assert (named.name, named.names) == (None, None)


def test_a_mistake_quotes_the_wrong_value_unless_it_may_be_secret() -> None:
    class Shop(BaseModel):
        price: int = 1
        pin: SecretStr | None = None
        token: int = 1
        address: int = 1

    Path("config.yaml").write_text("shop: {price: cheap, pin: 5, token: abc, address: 'kafka://u:p@h'}\n")
    with pytest.raises(SettingsError) as raised:
        Settings({"shop": Shop})
    found = str(raised.value)
    assert "; it is 'cheap'" in found
    assert found.count("; it is") == 1
