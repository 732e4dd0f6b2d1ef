"""Convert a run's chat template to Hugging Face's format (Jinja), for programs that load exported models. Reads no file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tauon.config import parse
from tauon.data.chat_encoder import RENDERS, Encoder, template_for
from tauon.data.chat_template import ANSWER, BEGIN, END, ChatConfig, PlainTemplate, RoleConfig
from tauon.data.tokenizer import SubwordTokenizer, Tokenizer

__all__ = ["jinja_of"]


def jinja_of(preprocess: Mapping[str, Any]) -> str | None:
    """Return the template of a checkpoint of conversations or preferences; None if its tokenizer has no tokens that a template could write."""
    config = parse(ChatConfig, preprocess["chat"])
    tokenizer = Tokenizer.from_json(preprocess["tokenizer"])
    if not isinstance(tokenizer, SubwordTokenizer):
        return None
    template = template_for(config)
    if not isinstance(template, PlainTemplate):
        assert config.jinja is not None
        before = "" if preprocess.get("renders", 1) >= RENDERS or "bos_token" in config.jinja else "{{ bos_token }}"
        return before + config.jinja
    end = tokenizer.text_of(int(preprocess.get("end", Encoder(template, tokenizer).end))) or ""
    return _written(template, tokenizer.bos_token, end)


def _written(template: PlainTemplate, bos: str, end: str) -> str:
    """Markup before and after each role, as Jinja."""

    def text(markup: str) -> str:
        return json.dumps(markup.replace(END, end).replace(BEGIN, bos), ensure_ascii=False)

    def one(role: RoleConfig) -> str:
        parts = [*([text(role.before)] if role.before else []), "message['content']", *([text(role.after)] if role.after else [])]
        return f"{{{{ {' + '.join(parts)} }}}}"

    preset = template.preset
    lines = [f"{{{{ {text(bos)} }}}}"]
    if preset.opening:
        opening = text(preset.opening)
        if preset.opening_with_input:
            there = "messages | selectattr('role', 'equalto', 'input') | list"
            opening = f"{text(preset.opening_with_input)} if {there} else {opening}"
        lines.append(f"{{% if messages[0]['role'] != 'system' %}}{{{{ {opening} }}}}{{% endif %}}")
    lines.append("{% for message in messages %}")
    for i, (name, role) in enumerate(preset.roles.items()):
        lines.append(f"{{% {'elif' if i else 'if'} message['role'] == {text(name)} %}}{one(role)}")
    roles = ", ".join(preset.roles)
    lines.append(
        f"{{% else %}}{{{{ raise_exception({text(f'there are the roles {roles}, not ')} + message['role']) }}}}{{% endif %}}{{% endfor %}}"
    )
    lines.append(f"{{% if add_generation_prompt %}}{{{{ {text(preset.roles[ANSWER].before)} }}}}{{% endif %}}")
    return "".join(lines)
