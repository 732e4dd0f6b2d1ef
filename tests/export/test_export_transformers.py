"""What is exported is loaded by transformers and does there what it does here: the same tokens, the same prompts, the same text, the same end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tauon.artifacts import RunFolder, latest_checkpoint
from tauon.config import parse
from tauon.data import Message, Tokenizer, chat_prompt, tokenizer_of
from tauon.data.tokenizer import SubwordTokenizer
from tauon.export import export_checkpoint
from tauon.generate import Sampling, generate
from tauon.models import open_model_folder
from tauon.pipeline import run
from tauon.recipe import Recipe
from tauon.stages.load import load_model
from toy import Tauon, words

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers for an old name
GPT = {"kind": "gpt", "layers": 1, "width": 32, "heads": 2}
ANSWERS = ("Yes, it is.", "No.", "Who knows?")
JINJA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[Q] ' + m['content'] | trim + ' [A]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)


def recipe(folder: Path, name: str, **sections: Any) -> Recipe:
    base: dict[str, Any] = {
        "name": name, "data": {"seq_len": 96, "cache": str(folder / "cache"), "split": {"validation": "10%"}}, "task": "language-modelling",
        "optim": {"lr": 0.02}, "train": {"steps": 60, "batch": 8, "precision": "fp32", "compile": False, "checkpoint_every": 60},
        "evaluate": {"resamples": 100},
    }  # fmt: skip
    for key, value in sections.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) and isinstance(value, dict) else value
    return parse(Recipe, base)


def go(folder: Path, name: str, **sections: Any) -> RunFolder:
    return run(recipe(folder, name, **sections), root=folder / "runs", stages=("prepare", "train"))


def published(folder: Path) -> Path:
    """A folder as Hugging Face has them: a tiny Llama whose tokens before and behind a text differ, with a chat template of its own."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    tok = tokenizers.Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tok.train_from_iterator([words(300), *ANSWERS, "Is it fine? "], trainer)
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    fast.chat_template = "{{ 'the template of the base' }}"
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=96,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts, conversations, a published folder `hf`, and runs: `texts`, `answers`, `adapters`, `jinja`."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "docs").mkdir()
    for i in range(40):
        (folder / "docs" / f"{i}.txt").write_text(f"{ANSWERS[i % 3]} {ANSWERS[(i + 1) % 3]}")
    rows = [{"instruction": f"Is {i % 3} fine?", "output": "No."} for i in range(60)]
    (folder / "chat.json").write_text(json.dumps(rows))
    published(folder / "hf")
    text = {"source": {"kind": "text", "path": str(folder / "docs")}, "tokenizer": {"kind": "bpe", "vocab": 300}}
    go(folder, "texts", data=text, model=GPT)
    chat = {"source": {"kind": "chat", "path": str(folder / "chat.json")}}
    tuned = {"task": "instruction-tuning", "model": {"from": str(folder / "hf")}}
    go(folder, "answers", data=chat, **tuned)
    go(folder, "adapters", data=chat, **tuned, adapt={"kind": "lora", "rank": 8, "also": ["embed.weight", "head.weight"]})
    go(folder, "jinja", data=chat | {"chat": {"jinja": JINJA}}, **tuned)
    go(folder, "own", data=chat, task="instruction-tuning", model={"from": str(folder / "runs/texts")})
    return folder


CHATS = ("answers", "adapters", "jinja", "own")


@pytest.fixture(scope="module")
def exported(world: Path) -> Path:
    for name in ("texts", *CHATS):
        export_checkpoint(world / "runs" / name, world / "out" / name, format="huggingface")
    return world / "out"


def trained(world: Path, name: str) -> tuple[Any, Any, dict[str, Any]]:
    """(model, tokenizer, preprocess) of a run."""
    checkpoint = latest_checkpoint(world / "runs" / name / "checkpoints")
    assert checkpoint is not None
    tree = parse(Recipe, json.loads(json.dumps(_tree(world, name))))
    return load_model(checkpoint, tree)[0], Tokenizer.from_json(checkpoint.state["preprocess"]["tokenizer"]), checkpoint.state["preprocess"]


def _tree(world: Path, name: str) -> dict[str, Any]:
    from tauon.config import read_yaml

    return dict(read_yaml((world / "runs" / name / "recipe.yaml").read_text()))


def test_a_language_model_of_the_default_architecture_writes_the_same_text_and_ends_alike(world: Path, exported: Path) -> None:
    mine, tokenizer, _ = trained(world, "texts")
    model = transformers.AutoModelForCausalLM.from_pretrained(exported / "texts").eval()
    tok = transformers.AutoTokenizer.from_pretrained(exported / "texts")
    assert model.config.model_type == "apertus"
    assert (tok.bos_token, tok.eos_token) == ("<|bos|>", "<|bos|>")
    for text in ("", "Yes, ", "Who knows? Ünï"):
        ids = tok(text, return_tensors="pt")["input_ids"]
        assert ids[0].tolist() == [tokenizer.bos, *tokenizer.encode(text).tolist()]
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, mine.logits(mine(ids)), rtol=0, atol=1e-4)
        ours = generate(mine, ids[0].tolist(), max_tokens=40, sampling=Sampling(temperature=0), stop_id=tokenizer.bos)[0]
        theirs = model.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :].tolist()
        assert theirs == [*ours, tokenizer.eos][:40]
    assert len(theirs) < 40  # it stopped


@pytest.mark.parametrize("name", CHATS)
def test_an_answer_is_asked_for_and_ends_as_in_training(world: Path, exported: Path, name: str) -> None:
    mine, tokenizer, preprocess = trained(world, name)
    model = transformers.AutoModelForCausalLM.from_pretrained(exported / name).eval()
    tok = transformers.AutoTokenizer.from_pretrained(exported / name)
    end = tokenizer.id_of("</s>" if name != "own" else "<|bos|>")
    for i in range(3):
        asked = tok.apply_chat_template(
            [{"role": "user", "content": f"Is {i} fine?"}], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        prompt, stop = chat_prompt(preprocess, [Message("user", f"Is {i} fine?")])
        assert (asked["input_ids"][0].tolist(), stop) == (prompt, end)
        ours = generate(mine, prompt, max_tokens=40, sampling=Sampling(temperature=0), stop_id=stop)[0]
        theirs = model.generate(**asked, max_new_tokens=40, do_sample=False)[0, len(prompt) :].tolist()
        assert theirs == [*ours, end]
        assert tokenizer.decode(ours).strip() == "No."
    assert tok.eos_token_id == end
    listed = model.generation_config.eos_token_id
    assert end in (listed if isinstance(listed, list) else [listed])


def test_what_the_base_brought_along_stays_beside_what_training_changed(exported: Path) -> None:
    config = json.loads((exported / "answers" / "tokenizer_config.json").read_text())
    assert (config["pad_token"], config["bos_token"]) == ("<unk>", "<s>")
    assert "the template of the base" not in "".join(
        p.read_text() for p in (exported / "answers").glob("*.j*") if p.suffix in (".json", ".jinja")
    )
    raw = json.loads((exported / "answers" / "config.json").read_text())
    assert (raw["bos_token_id"], raw["eos_token_id"]) == (1, 2)


@pytest.mark.parametrize("name", ["texts", "own"])
def test_an_exported_folder_is_a_start_with_the_same_tokenizer(world: Path, exported: Path, name: str) -> None:
    again, was = tokenizer_of(exported / name), tokenizer_of(world / "runs" / name)
    assert isinstance(again, SubwordTokenizer) and isinstance(was, SubwordTokenizer)
    assert (again.named, again.bos, again.eos) == (was.named, was.bos, was.eos)
    assert again.encode("Is it? ").tolist() == was.encode("Is it? ").tolist()
    assert open_model_folder(str(exported / name)).config.kind_ == "gpt"


def test_adapters_for_peft_bring_the_tokenizer_and_the_template(world: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    export_checkpoint(world / "runs/adapters", tmp_path / "peft", format="peft")
    tok = transformers.AutoTokenizer.from_pretrained(tmp_path / "peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(world / "hf")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    asked = tok.apply_chat_template(
        [{"role": "user", "content": "Is 1 fine?"}], return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    said = model.generate(**asked, max_new_tokens=40, do_sample=False, eos_token_id=tok.eos_token_id)[0, asked["input_ids"].shape[1] :]
    assert tok.decode(said, skip_special_tokens=True).strip() == "No."


@pytest.fixture
def tauon(capsys: pytest.CaptureFixture[str], world: Path, monkeypatch: pytest.MonkeyPatch) -> Tauon:
    monkeypatch.chdir(world)
    return Tauon(capsys)


@pytest.mark.parametrize("name", CHATS)
def test_generate_answers_a_question_and_stops(tauon: Tauon, name: str) -> None:
    code, out, err = tauon("generate", f"runs/{name}", "--prompt", "Is 1 fine?", "--temperature", "0")
    assert (code, out.strip()) == (0, "No."), err
    code, out, _ = tauon("generate", f"runs/{name}", "--prompt", "Is 1 fine?", "--samples", "2", "--temperature", "0")
    assert [line.strip() for line in out.splitlines()] == ["----- 1", "No.", "----- 2", "No."]
    code, out, _ = tauon("generate", f"runs/{name}", "--plain", "--prompt", "Is 1 fine?", "--temperature", "0", "--tokens", "3")
    assert code == 0 and out.startswith("Is 1 fine?")


def test_a_question_is_needed_where_the_model_answers(tauon: Tauon) -> None:
    code, _, err = tauon("generate", "runs/answers")
    assert code == 3 and "the prompt is empty. Give a question with --prompt, or generate plain text with --plain" in err
    assert tauon("generate", "runs/texts", "--tokens", "2")[0] == 0


def test_a_model_whose_text_ends_with_another_token_than_it_begins_with_stops_there(world: Path, tauon: Tauon) -> None:
    """As it comes: continue training on running text, where documents are parted by the token before them; either ends a text."""
    text = {"source": {"kind": "text", "path": str(world / "docs")}}
    done = go(world, "further", data=text, model={"from": str(world / "hf")}, train={"steps": 2})
    mine, tokenizer, _ = trained(world, "further")
    assert (tokenizer.bos, tokenizer.eos) == (1, 2)
    with torch.no_grad():
        mine.head.weight.zero_()
        mine.head.weight[tokenizer.eos] = mine(torch.tensor([[1]]))[0, -1]  # whatever comes, its end is likeliest
    assert generate(mine, [1], max_tokens=9, sampling=Sampling(temperature=0), stop_id={tokenizer.bos, tokenizer.eos}) == [[]]
    export_checkpoint(done.folder, world / "out-further", format="huggingface")
    model = transformers.AutoModelForCausalLM.from_pretrained(world / "out-further")
    assert model.generation_config.eos_token_id == [2, 1]
    assert transformers.AutoTokenizer.from_pretrained(world / "out-further").chat_template == "{{ 'the template of the base' }}"


def test_a_tokenizer_that_transformers_has_not_is_said_to_be_left_out(world: Path, tauon: Tauon) -> None:
    text = {"source": {"kind": "text", "path": str(world / "docs")}, "tokenizer": "bytes"}
    go(world, "bytes", data=text, model=GPT, train={"steps": 1})
    code, out, err = tauon("export", "runs/bytes", "--to", "huggingface", "--out", "bytes-hf")
    assert code == 0 and (world / "bytes-hf" / "model.safetensors").is_file()
    assert "no tokenizer.json was written: transformers has no tokenizer of single characters or bytes" in out + err
    code, out, err = tauon("export", "runs/texts", "--to", "huggingface", "--out", "texts-hf")
    assert code == 0 and (world / "texts-hf" / "tokenizer.json").is_file() and "no tokenizer.json" not in out + err
