"""Chat templates and their tokens wherever a directory keeps them: as transformers renders them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_chat import CONVERSATIONS, TEMPLATES, TOOLS, USER, VARIABLES
from tokenizer_files import write_hf_tokenizer

from lockstep.engine.export_hf import TOKENIZER_FILES
from lockstep.errors import LockstepError
from lockstep.tokenizers import (
    ChatRenderer,
    ChatTemplate,
    GGUFTokenizer,
    HFTokenizer,
    choose_template,
    gguf_tokenizer_metadata,
    templates_of_directory,
    templates_of_gguf,
    vocabulary_of,
)

pytestmark = pytest.mark.torch
transformers = pytest.importorskip("transformers")

NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
# Writes all that it is given.
PROBE = "".join(
    f"{{{{ {name} }}}}{{% if {name} is defined %}}!{{% endif %}}," for name in NAMES
) + (
    "{% for m in messages %}[{{ m.role }}: {{ m.content }}"
    "{% if m.tool_calls is defined %} {{ m.tool_calls | tojson }}{% endif %}]{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if tools is defined %}t{% endif %}"
    "{% if documents is defined %}d{% endif %}{% if add_generation_prompt %}go{% endif %}"
)
WITH_TOOLS, OTHER = PROBE + " with tools", PROBE + " other"
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TALKS = {k: v for k, v in CONVERSATIONS.items() if v} | {
    "null content": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, USER],
    "null calls": [USER, {"role": "assistant", "content": "x", "tool_calls": None}, USER],
    "a name": [{"role": "user", "content": "x", "name": "bob"}],
}

Change = Callable[[Path], object]


def settings(**changes: object) -> Change:
    """Sets keys of tokenizer_config.json; None leaves them null, `...` removes them."""

    def change(path: Path) -> None:
        file = path / "tokenizer_config.json"
        document = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({k: v for k, v in document.items() if v is not ...}))

    return change


def file(name: str, text: str) -> Change:
    def write(path: Path) -> None:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)

    return write


JINJA = file("chat_template.jinja", PROBE)
TOOL_FILE = file("additional_chat_templates/tool_use.jinja", WITH_TOOLS)
OTHER_FILE = file("additional_chat_templates/rag.jinja", OTHER)
NAMED = {"default": PROBE, "tool_use": WITH_TOOLS, "rag": OTHER}
LISTED = [{"name": name, "template": text} for name, text in NAMED.items()]
OBJECT = {"__type": "AddedToken", "content": "<|im_start|>", "lstrip": False, "normalized": False,
          "rstrip": False, "single_word": False, "special": True}  # fmt: skip
MAP = json.dumps({"bos_token": "<|im_start|>", "eos_token": OBJECT | {"content": "<|im_end|>"}})
NONE = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"))
DECODER = {"1": OBJECT | {"content": "x"}}
DIRECTORIES: dict[str, list[Change]] = {
    "a text": [settings(chat_template=PROBE)],
    "a list": [settings(chat_template=LISTED)],
    "a mapping": [settings(chat_template=NAMED)],
    "a file": [JINJA],
    "a file and a text": [JINJA, settings(chat_template=OTHER)],
    "a file and a list": [JINJA, settings(chat_template=LISTED)],
    "files": [JINJA, TOOL_FILE, OTHER_FILE],
    "files and a list": [JINJA, OTHER_FILE, settings(chat_template=LISTED)],
    "an object": [JINJA, settings(bos_token=OBJECT)],
    "all tokens": [JINJA, settings(**dict.fromkeys(NAMES, "<|im_end|>"))],
    "no tokens": [JINJA, settings(**NONE)],
    "a map": [JINJA, settings(**dict.fromkeys(NONE, ...)), file("special_tokens_map.json", MAP),
              settings(tokenizer_class="PreTrainedTokenizerFast")],
    "a map beside others": [JINJA, file("special_tokens_map.json", MAP)],
    "a map that is not read": [JINJA, file("special_tokens_map.json", MAP),
                               settings(added_tokens_decoder=DECODER)],
    **{name: [file("chat_template.jinja", text)] for name, text in TEMPLATES.items()},
}  # fmt: skip


@pytest.fixture(scope="module")
def renderer() -> Iterator[ChatRenderer]:
    with ChatRenderer() as one:
        yield one


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_tokenizer("qwen2", tmp_path_factory.mktemp("plain") / "hf")


def made(plain: Path, path: Path, changes: list[Change]) -> Path:
    shutil.copytree(plain, path)
    for change in changes:
        change(path)
    return path


def theirs(tokenizer: Any, talk: list[dict[str, Any]], variables: dict[str, Any]) -> str | None:
    try:
        asked = {"add_generation_prompt": True, **variables}
        text: str = tokenizer.apply_chat_template(talk, tokenize=False, **asked)
    except Exception:  # the template's own, of any kind
        return None
    return text


def ours(
    template: ChatTemplate, talk: list[dict[str, Any]], variables: dict[str, Any]
) -> str | None:
    try:
        return template.render(talk, variables)
    except LockstepError:
        return None


@pytest.mark.parametrize("kind", DIRECTORIES)
def test_a_directory_renders_as_in_transformers(
    kind: str, plain: Path, tmp_path: Path, renderer: ChatRenderer
) -> None:
    path = made(plain, tmp_path / "hf", DIRECTORIES[kind])
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = templates_of_directory(path)
    template = ChatTemplate(choose_template(model, None), model, renderer)
    n_texts = 0
    for talk in TALKS.values():
        for variables in VARIABLES:
            expected = theirs(tokenizer, talk, variables)
            assert ours(template, talk, variables) == expected
            n_texts += expected is not None
    assert n_texts > 12
    if kind not in TEMPLATES:  # of which each names the same tokens
        assert HFTokenizer(path).eos_id == tokenizer.eos_token_id
        assert HFTokenizer(path).bos_id == tokenizer.bos_token_id


@pytest.mark.parametrize("kind", ["a list", "files"])
def test_an_export_keeps_the_templates_with_names(
    kind: str, plain: Path, tmp_path: Path, renderer: ChatRenderer
) -> None:
    path = made(plain, tmp_path / "hf", DIRECTORIES[kind])
    before = templates_of_directory(path)
    copied = [f for name in TOKENIZER_FILES for f in path.glob(name)]
    for each in copied:
        file(str(each.relative_to(path)), each.read_text())(tmp_path / "copy")
    assert templates_of_directory(tmp_path / "copy").named == before.named == NAMED
    metadata = gguf_tokenizer_metadata(vocabulary_of(HFTokenizer(path)), before.named)
    assert sorted(metadata["tokenizer.chat_templates"]) == ["rag", "tool_use"]
    tokenizer = GGUFTokenizer.read(
        {k: getattr(v, "tolist", lambda v=v: v)() for k, v in metadata.items()}
    )
    after = templates_of_gguf(metadata, tokenizer, "model.gguf")
    assert after.named == before.named
    template = ChatTemplate(choose_template(after, None), after, renderer)
    assert template.render([USER], {"tools": TOOLS}).endswith("with tools")
