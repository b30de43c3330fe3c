"""Which variables hold the key of which vendor of models: what a run lacks, what a broker gets, what is masked.

Pure, and without litellm: a missing key is told before the first wave, in milliseconds. An endpoint that
a workflow names gets `DAGRUN_API_KEY` and nothing else: a file must never send a vendor's key to a host
of its choosing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from dagrun.sandbox.environment import is_credential, is_loader

ENDPOINT_KEY = "DAGRUN_API_KEY"
MIN_SECRET = 8  # characters: a shorter value is no key, and masking it would blot out half of every text

# vendor -> the variables that may hold its key, the usual one first
KEYS: Mapping[str, tuple[str, ...]] = {
    "ai21": ("AI21_API_KEY",),
    "ai21_chat": ("AI21_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
    "anyscale": ("ANYSCALE_API_KEY",),
    "azure_ai": ("AZURE_AI_API_KEY",),
    "baseten": ("BASETEN_API_KEY",),
    "cerebras": ("CEREBRAS_API_KEY",),
    "codestral": ("CODESTRAL_API_KEY",),
    "cohere": ("COHERE_API_KEY", "CO_API_KEY"),
    "cohere_chat": ("COHERE_API_KEY", "CO_API_KEY"),
    "dashscope": ("DASHSCOPE_API_KEY",),
    "databricks": ("DATABRICKS_API_KEY",),
    "deepinfra": ("DEEPINFRA_API_KEY",),
    "deepseek": ("DEEPSEEK_API_KEY",),
    "featherless_ai": ("FEATHERLESS_AI_API_KEY",),
    "fireworks_ai": ("FIREWORKS_AI_API_KEY", "FIREWORKS_API_KEY", "FIREWORKSAI_API_KEY", "FIREWORKS_AI_TOKEN"),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "groq": ("GROQ_API_KEY",),
    "huggingface": ("HUGGINGFACE_API_KEY", "HF_TOKEN"),
    "mistral": ("MISTRAL_API_KEY",),
    "moonshot": ("MOONSHOT_API_KEY",),
    "nebius": ("NEBIUS_API_KEY",),
    "novita": ("NOVITA_API_KEY",),
    "nvidia_nim": ("NVIDIA_NIM_API_KEY",),
    "openai": ("OPENAI_API_KEY",),
    "openrouter": ("OPENROUTER_API_KEY", "OR_API_KEY"),
    "perplexity": ("PERPLEXITYAI_API_KEY", "PERPLEXITY_API_KEY"),
    "replicate": ("REPLICATE_API_KEY",),
    "sambanova": ("SAMBANOVA_API_KEY",),
    "together_ai": ("TOGETHERAI_API_KEY", "TOGETHER_API_KEY", "TOGETHER_AI_API_KEY"),
    "vercel_ai_gateway": ("VERCEL_AI_GATEWAY_API_KEY",),
    "volcengine": ("VOLCENGINE_API_KEY",),
    "wandb": ("WANDB_API_KEY",),
    "xai": ("XAI_API_KEY",),
}
# vendors that need more than a key: ways to say it, each of them a set of variables, the usual one first
WAYS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "azure": (
        ("AZURE_API_KEY", "AZURE_API_BASE", "AZURE_API_VERSION"),
        ("AZURE_AD_TOKEN", "AZURE_API_BASE", "AZURE_API_VERSION"),
        (
            "AZURE_TENANT_ID",
            "AZURE_CLIENT_ID",
            "AZURE_CLIENT_SECRET",
            "AZURE_API_BASE",
            "AZURE_API_VERSION",
        ),
    ),
    "cloudflare": (("CLOUDFLARE_API_KEY", "CLOUDFLARE_ACCOUNT_ID"), ("CLOUDFLARE_API_KEY", "CLOUDFLARE_API_BASE")),
    "watsonx": (("WATSONX_APIKEY", "WATSONX_URL"), ("WATSONX_API_KEY", "WATSONX_URL")),
}
# no key, or one that may as well be in a file or come from the machine: what is unset proves nothing
# (bedrock, sagemaker, vertex_ai: AWS_* and GOOGLE_*; ollama and its likes: on this machine)
CHAINS = frozenset("bedrock bedrock_converse sagemaker sagemaker_chat vertex_ai vertex_ai_beta".split())
KEYLESS = frozenset("ollama ollama_chat lm_studio llamafile hosted_vllm vllm xinference oobabooga".split())

_SYSTEM = frozenset("HOME LANG LOGNAME PATH TMPDIR TZ USER XDG_CACHE_HOME".split())
_NETWORK = frozenset(
    "HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy "
    "SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE".split()
)
# what tells litellm where a vendor is, or as whom to come
_FAMILIES = ("AWS_", "AZURE_", "GOOGLE_", "VERTEX", "WATSONX_", "OLLAMA_", "HOSTED_VLLM_")
_SETTINGS = ("_API_BASE", "_BASE_URL", "_API_URL", "_API_VERSION", "_ACCOUNT_ID", "_ORGANIZATION", "_ORG_ID")
_KEYLIKE = ("_API_KEY", "_APIKEY", "_API_TOKEN")
_KNOWN = frozenset(name for names in KEYS.values() for name in names) | frozenset(
    name for ways in WAYS.values() for way in ways for name in way
)
_HALF_SECRET = frozenset("AWS AZURE LITELLM ANTHROPIC OPENAI".split())
_FOREIGN = ("DAGRUN_", "LITELLM_", "PYTHON")


def missing(
    models: Iterable[str], environ: Mapping[str, str], base_url: str = ""
) -> list[tuple[str, tuple[str, ...]]]:
    """(model, variables to set) for each `vendor/name` that can't be called; each model once, in order.

    Empty with `base_url`: such an endpoint needs no key, or takes `DAGRUN_API_KEY`. Vendors that find
    their credentials elsewhere too, and those that are not known here, are never reported.
    """
    if base_url:
        return []
    found = ((model, _lacking(_vendor(model), environ)) for model in dict.fromkeys(models))
    return [(model, names) for model, names in found if names]


def _lacking(vendor: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """What to set so that the vendor can be called: of several ways, the one that lacks least."""
    if names := KEYS.get(vendor):
        return () if any(environ.get(name) for name in names) else names[:1]
    ways = [tuple(name for name in way if not environ.get(name)) for way in WAYS.get(vendor, ())]
    return min(ways, key=len, default=())


def api_key(model: str, environ: Mapping[str, str]) -> str | None:
    """The key that goes with calls of `model`; None where its vendor takes another way, or it is not set."""
    vendor = _vendor(model)
    if vendor in KEYS:
        names = tuple(name for name in KEYS[vendor] if name != "ANTHROPIC_AUTH_TOKEN")  # goes in another header
    elif vendor in WAYS:
        names = WAYS[vendor][0][:1]
    elif vendor in CHAINS or vendor in KEYLESS:
        return None
    else:
        names = (f"{vendor.upper()}_API_KEY",)
    return next((environ[name] for name in names if environ.get(name)), None)


def key_values(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The values of all variables that look like keys, the longest first: what must be seen nowhere."""
    found = {value.strip() for name, value in environ.items() if _is_secret(name)} | set(_proxy_passwords(environ))
    return tuple(sorted((v for v in found if len(v) >= MIN_SECRET), key=lambda value: (-len(value), value)))


def broker_environment(environ: Mapping[str, str], base_url: str = "") -> dict[str, str]:
    """What of the caller's environment a broker gets: keys and settings of vendors, proxies, certificates.

    Other secrets (of a database, of a code forge) are not among them; with `base_url` only
    `DAGRUN_API_KEY`, and no setting of a vendor.
    """
    if base_url:
        return {name: v for name, v in environ.items() if name in _SYSTEM | _NETWORK or name == ENDPOINT_KEY}
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(_FOREIGN)
        and not is_loader(name)
        and (
            name in _SYSTEM
            or name in _NETWORK
            or name in _KNOWN
            or name.startswith(_FAMILIES)
            or name.endswith((*_SETTINGS, *_KEYLIKE))
        )
    }


def _vendor(model: str) -> str:
    return model.partition("/")[0]


def _is_secret(name: str) -> bool:
    """Whether the value is a key: AWS_REGION and ANTHROPIC_MODEL are none, though their families hold some."""
    head, _, rest = name.partition("_")
    return is_credential(f"X_{rest}" if head in _HALF_SECRET else name) or name.endswith("_KEY")


def _proxy_passwords(environ: Mapping[str, str]) -> Iterator[str]:
    """The passwords in the addresses of proxies."""
    for name in _NETWORK:
        user, at, _ = environ.get(name, "").rpartition("@")
        password = user.rpartition("/")[2].partition(":")[2]
        if at and password:
            yield password
