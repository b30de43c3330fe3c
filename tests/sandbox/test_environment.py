from __future__ import annotations

import pytest

from dagrun.sandbox.environment import allow_list_environment, base_environment, is_credential, is_loader


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


# ---------------------------------------------------------------- by a list of names


def test_only_what_the_list_names_reaches_what_is_confined() -> None:
    env = dict.fromkeys("PATH LANG LC_ALL TERM TZ USER SHELL HOME TMPDIR SSH_AUTH_SOCK CI OPENAI_API_KEY".split(), "x")
    found = allow_list_environment(env)
    assert sorted(found) == ["LANG", "LC_ALL", "PATH", "SHELL", "TERM", "TZ", "USER"]
    assert allow_list_environment(env, system=False) == {}
    assert allow_list_environment(env, pass_env=("CI", "OPENAI_*"), system=False) == {"CI": "x"}
    assert allow_list_environment(env, pass_env=("OPENAI_API_KEY",), system=False) == {}


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "GCONV_PATH", "LOCPATH", "GLIBC_TUNABLES", "BASH_ENV"]
)
def test_loader_variables_do_not_come_back_by_any_pattern(name: str) -> None:
    assert is_loader(name)
    assert allow_list_environment({name: "x", "A": "1"}, pass_env=("*", name)) == {"A": "1"}


@pytest.mark.parametrize("name", ["LDFLAGS", "ENV", "PATH", "LC_ALL", "PYTHONPATH"])
def test_ordinary_names_are_no_loader_variables(name: str) -> None:
    assert not is_loader(name)


def test_exported_functions_secrets_and_an_outer_dagrun_stay_out() -> None:
    env = {"BASH_FUNC_ls%%": "() { evil; }", "DEPLOY": "d", "DAGRUN_RUN_ID": "r", "A": "1", "ODD NAME": "x"}
    assert allow_list_environment(env, pass_env=("*",), secrets_named=("DEPLOY",)) == {"A": "1"}
