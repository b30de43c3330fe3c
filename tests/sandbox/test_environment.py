from __future__ import annotations

import pytest

from dagrun.sandbox.environment import base_environment, is_credential


@pytest.mark.parametrize(
    "name",
    [
        "ANTHROPIC_API_KEY",
        "OPENAI_API_KEY",
        "MISTRAL_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_PROFILE",
        "GITHUB_TOKEN",
        "TOKEN",
        "NPM_TOKEN",
        "DB_PASSWORD",
        "PASSWORD_FILE",
        "MY_SECRET",
        "apikey",
        "X_APIKEY_Y",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "SSH_PRIVATE_KEY",
        "PGPASSWORD",
    ],
)
def test_keys_are_taken_away(name: str) -> None:
    assert base_environment({name: "x", "PATH": "/bin"}) == {"PATH": "/bin"}


@pytest.mark.parametrize(
    "name", ["PATH", "HOME", "TOKENIZERS_PARALLELISM", "KEYBOARD", "SECRETARY", "SSH_AUTH_SOCK", "XDG_SESSION_ID", "CI"]
)
def test_ordinary_names_stay(name: str) -> None:
    assert base_environment({name: "x"}) == {name: "x"}
    assert not is_credential(name)


def test_pass_env_brings_back_by_name_and_by_glob() -> None:
    env = {"GITHUB_TOKEN": "t", "NPM_TOKEN": "n", "GITHUB_SHA": "s", "github_token": "u"}
    assert base_environment(env, pass_env=("GITHUB_*",)) == {"GITHUB_TOKEN": "t", "GITHUB_SHA": "s"}
    assert base_environment(env, pass_env=("NPM_TOKEN",)) == {"NPM_TOKEN": "n", "GITHUB_SHA": "s"}


def test_a_declared_secret_and_an_outer_dagrun_never_come_back() -> None:
    env = {"DEPLOY": "d", "DAGRUN_RUN_ID": "r7k2", "A": "1"}
    assert base_environment(env, pass_env=("*",), secrets_named=("DEPLOY",)) == {"A": "1"}
