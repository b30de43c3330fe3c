"""Which variables are keys: what is missing, what a broker gets, what is masked."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from dagrun.agent.keys import CHAINS, KEYLESS, KEYS, WAYS, api_key, broker_environment, key_values, missing
from tests.agent.talking import need_litellm

AZURE = ("AZURE_API_KEY", "AZURE_API_BASE", "AZURE_API_VERSION")


def test_what_is_missing_is_named_once_for_each_model_in_order() -> None:
    models = ["openai/gpt-4o", "anthropic/claude-sonnet-4-5", "openai/gpt-4o", "groq/llama"]
    assert missing(models, {"ANTHROPIC_API_KEY": "k"}) == [
        ("openai/gpt-4o", ("OPENAI_API_KEY",)),
        ("groq/llama", ("GROQ_API_KEY",)),
    ]


@pytest.mark.parametrize(
    ("model", "environ", "names"),
    [
        ("gemini/pro", {}, ("GEMINI_API_KEY",)),
        ("gemini/pro", {"GOOGLE_API_KEY": "k"}, ()),
        ("gemini/pro", {"GOOGLE_API_KEY": ""}, ("GEMINI_API_KEY",)),
        ("anthropic/c", {"ANTHROPIC_AUTH_TOKEN": "t"}, ()),
        ("azure/mine", {}, AZURE),
        ("azure/mine", {"AZURE_API_KEY": "k"}, ("AZURE_API_BASE", "AZURE_API_VERSION")),
        ("azure/mine", {"AZURE_AD_TOKEN": "t", "AZURE_API_BASE": "b"}, ("AZURE_API_VERSION",)),
        ("azure/mine", dict.fromkeys(AZURE, "x"), ()),
        ("bedrock/anthropic.claude", {}, ()),  # a role of the machine, a file in home
        ("vertex_ai/gemini-2.5-pro", {}, ()),
        ("ollama/llama3", {}, ()),
        ("someone-new/model", {}, ()),
    ],
)
def test_what_a_vendor_lacks(model: str, environ: dict[str, str], names: tuple[str, ...]) -> None:
    assert missing([model], environ) == ([(model, names)] if names else [])


def test_an_endpoint_of_the_workflow_needs_no_key() -> None:
    assert missing(["openai/gpt-4o", "azure/x"], {}, "http://127.0.0.1:8080/v1") == []


def test_the_key_that_goes_with_a_call() -> None:
    environ = {"GOOGLE_API_KEY": "g", "AZURE_API_KEY": "a", "NEWVENDOR_API_KEY": "n", "ANTHROPIC_AUTH_TOKEN": "t"}
    assert api_key("gemini/pro", environ) == "g"
    assert api_key("gemini/pro", {**environ, "GEMINI_API_KEY": "first"}) == "first"
    assert api_key("azure/x", environ) == "a"
    assert api_key("newvendor/x", environ) == "n"
    assert api_key("anthropic/x", environ) is None  # litellm sends it in its own way
    assert api_key("bedrock/x", {"BEDROCK_API_KEY": "b"}) is None
    assert api_key("openai/x", {"OPENAI_API_KEY": ""}) is None


def test_values_of_keys_are_masked_and_settings_are_not() -> None:
    environ = {
        "OPENAI_API_KEY": "sk-0123456789",
        "AWS_SECRET_ACCESS_KEY": "aws-secret-value",
        "AWS_ACCESS_KEY_ID": "AKIA0123456789",
        "WATSONX_APIKEY": "watson-0123",
        "LITELLM_MASTER_KEY": "master-0123456",
        "DAGRUN_API_KEY": "  endpoint-0123  ",
        "GITHUB_TOKEN": "ghp_0123456789",
        "HTTPS_PROXY": "http://me:proxy-password@proxy:3128",
        "AWS_REGION": "eu-central-1",
        "ANTHROPIC_MODEL": "claude-sonnet-4-5",
        "OPENAI_BASE_URL": "http://localhost:8080",
        "HTTP_PROXY": "http://proxy:3128",
        "MISTRAL_API_KEY": "short",
        "HOME": "/home/somebody",
    }
    found = key_values(environ)
    assert set(found) == {
        "aws-secret-value",
        "proxy-password",
        "AKIA0123456789",
        "ghp_0123456789",
        "master-0123456",
        "endpoint-0123",
        "sk-0123456789",
        "watson-0123",
    }
    assert [len(value) for value in found] == sorted((len(value) for value in found), reverse=True)


ENVIRON = {
    "PATH": "/bin",
    "HOME": "/home/x",
    "https_proxy": "http://proxy",
    "SSL_CERT_FILE": "/ca.pem",
    "OPENAI_API_KEY": "k",
    "OPENAI_BASE_URL": "u",
    "AWS_PROFILE": "p",
    "NEWVENDOR_API_KEY": "n",
    "DAGRUN_API_KEY": "d",
    "GITHUB_TOKEN": "t",
    "DATABASE_PASSWORD": "w",
    "PYTHONPATH": "/evil",
    "LD_PRELOAD": "/evil.so",
    "LITELLM_LOG": "DEBUG",
    "LITELLM_API_KEY": "l",
    "DAGRUN_RUN_DIR": "/run",
    "OTEL_EXPORTER": "x",
}


def test_a_broker_gets_keys_of_vendors_and_its_way_out_and_nothing_else() -> None:
    assert sorted(broker_environment(ENVIRON)) == [
        "AWS_PROFILE",
        "HOME",
        "NEWVENDOR_API_KEY",
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "PATH",
        "SSL_CERT_FILE",
        "https_proxy",
    ]


def test_a_broker_for_an_endpoint_gets_no_key_of_a_vendor() -> None:
    assert sorted(broker_environment(ENVIRON, "http://somewhere/v1")) == [
        "DAGRUN_API_KEY",
        "HOME",
        "PATH",
        "SSL_CERT_FILE",
        "https_proxy",
    ]


def test_the_names_are_those_that_litellm_looks_for() -> None:
    need_litellm()
    assert not set(KEYS) & (set(WAYS) | CHAINS | KEYLESS)
    script = """
import json, sys, litellm
print(json.dumps({v: litellm.validate_environment(f"{v}/some-model")["missing_keys"] for v in sys.argv[1:]}))
"""
    env = {"PATH": os.environ["PATH"], "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
    done = subprocess.run([sys.executable, "-I", "-c", script, *KEYS], env=env, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told = {vendor: names for vendor, names in json.loads(done.stdout.splitlines()[-1]).items() if names}
    assert {"openai", "anthropic", "gemini", "mistral", "groq", "deepseek", "xai", "openrouter"} <= set(told)
    for vendor, names in told.items():
        assert set(names) & set(KEYS[vendor]), (vendor, names)
