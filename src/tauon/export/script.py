"""`predict.py` of a bundle: a short script that predicts with numpy and the runtime alone.

It is put together from the pieces that the bundle's kind of data, task and runtime need. Where a short script would not give the predictions
of `tauon predict`, there is none, and the reason is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["script_of"]

_RUNTIMES = {
    "onnx": (
        "onnxruntime",
        """\
SESSION = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])

def compute(arrays):
    return SESSION.run(None, {spec["name"]: array for spec, array in zip(BUNDLE["signature"]["inputs"], arrays)})
""",
    ),
    "openvino": (
        "openvino",
        """\
COMPILED = openvino.compile_model(HERE / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

def compute(arrays):
    found = COMPILED(list(arrays))
    return [found[i] for i in range(len(BUNDLE["signature"]["outputs"]))]
""",
    ),
}
_NO_SCRIPT = {
    "executorch": "the Python runtime of ExecuTorch needs torch; on a device, an app loads model.pte",
    "aoti": "a package of AOTInductor needs torch, or C++",
}

_NORMALIZE = """\
def normalized(x):
    n = P["normalize"]
    if "limits" in n:
        x[:, n["columns"]] = np.clip(x[:, n["columns"]], *n["limits"])
    kind = np.float64 if n.get("dtype") == "float64" else np.float32
    center, scale = (np.array(n[k], kind).reshape(n["shape"]) for k in ("center", "scale"))
    return (x if n["kind"] == "none" else (x.astype(kind) - center) / scale).astype(np.float32)
"""

_ROWS = """\
def rows_of(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file, delimiter=DELIMITER))
"""

_NUMBERS = """\
def examples(path):
    rows = rows_of(path)
    return [normalized(np.array([[float(row[name]) for name in P["features"]] for row in rows]))]
"""

_TABLE = """\
def spelling(value):  # blanks are cut, true and false are in lower case, 1.0 is 1
    text = unicodedata.normalize("NFC", value.strip())
    head, point, tail = text.partition(".")
    whole = point and tail and not tail.strip("0") and head.lstrip("-").isdigit()
    return text.lower() if text.lower() in ("true", "false") else head if whole else text

def encoded(column, values):
    lost = [value in P["missing"] or value.strip() in P["missing"] for value in values]
    if column["kind"] == "number":
        if any(lost) and column["fill"] is None:
            raise SystemExit(f"a value of {column['name']} is missing, and the model was trained without missing values")
        block = np.array([column["fill"] if gone else float(v) for v, gone in zip(values, lost)])[:, None]
    else:
        number = {c: i + 1 for i, c in enumerate(column["categories"])}
        codes = np.array([column["most_frequent"] if gone else number.get(spelling(v), 0) for v, gone in zip(values, lost)])
        how = column["encoding"]
        block = np.eye(len(number) + 1)[codes][:, 1:] if how == "onehot" else np.array(column["means"])[codes] if how == "target" else codes[:, None]
    return np.concatenate([block, np.array(lost)[:, None]], axis=1) if column["indicator"] else block

def examples(path):
    rows = rows_of(path)
    blocks = [encoded(c, [row[c["name"]] for row in rows]) for c in P["columns"]["columns"]]
    return [normalized(np.concatenate(blocks, axis=1).astype(np.float64))]
"""

_PICTURES = """\
def examples(path):
    C, H, W = P["input_shape"]
    picture = Image.open(path)
    if SIZE and picture.format == "JPEG":
        picture.draft(None, (2 * W, 2 * H))
    picture = ImageOps.exif_transpose(picture)
    if picture.mode not in ("L", "RGB", "1", "CMYK", "YCbCr") or (C == 1 and picture.mode not in ("L", "1") and COLOURS != "grey"):
        raise SystemExit(f"{path}: an image of mode {picture.mode}; convert it to {'L' if C == 1 else 'RGB'} first")
    picture = picture.convert("L" if C == 1 else "RGB")
    if SIZE:
        resize = {"crop": ImageOps.fit, "pad": ImageOps.pad, "stretch": lambda p, size, how: p.resize(size, how)}[FIT]
        picture = resize(picture, (W, H), Image.Resampling.BILINEAR)
    if picture.size != (W, H):
        raise SystemExit(f"{path}: {picture.size} pixels, the model was trained on {(W, H)}")
    return [normalized(np.moveaxis(np.asarray(picture, np.float32).reshape(H, W, C), -1, 0)[None])]
"""

_RECORDINGS = """\
def examples(path):
    with wave.open(path) as file:
        if file.getframerate() != P["sample_rate"] or file.getsampwidth() not in (2, 4):
            raise SystemExit(f"{path}: the model reads {P['sample_rate']} Hz, 16 or 32 bits")
        bits, samples = 8 * file.getsampwidth(), np.frombuffer(file.readframes(file.getnframes()), f"<i{file.getsampwidth()}")
        x = (samples.astype(np.float32) / np.float32(2 ** (bits - 1))).reshape(-1, file.getnchannels()).mean(1)
    start, n = max(0, (len(x) - P["samples"]) // 2), min(len(x), P["samples"])
    out = np.zeros((1, P["samples"]), np.float32)
    out[0, :n] = x[start : start + n]
    return [out, np.array([n])]
"""

_SERIES = """\
def examples(path):
    rows = rows_of(path)[-P["context"]:]
    if len(rows) < P["context"]:
        raise SystemExit(f"{path}: {len(rows)} time steps, the model reads the last {P['context']}")
    return [normalized(np.array([[float(row[name]) for name in P["columns"]] for row in rows]))[None]]
"""

_TEXTS = """\
def examples(path):
    if path.endswith(".csv"):
        texts = ["\\n\\n".join(row[name] for name in TEXT) for row in rows_of(path)]
    else:
        texts = [Path(path).read_bytes().decode("utf-8-sig")]
    T = P["seq_len"]
    ids = [[BOS, *encode(text)][:T] for text in texts]
    tokens = np.array([i + [BOS] * (T - len(i)) for i in ids], np.int64)
    segments = np.array([[0] * len(i) + [-1] * (T - len(i)) for i in ids], np.int32)
    return [tokens, segments]
"""

_ENCODERS = {
    "subword": """\
TOKENIZER = tokenizers.Tokenizer.from_str(json.dumps(P["tokenizer"]["model"]))
TOKENIZER.encode_special_tokens = True
BOS = TOKENIZER.token_to_id(P["tokenizer"]["bos"])

def encode(text):
    return TOKENIZER.encode(text, add_special_tokens=False).ids

def decode(ids):
    return TOKENIZER.decode(ids)
""",
    "chars": """\
ALPHABET, BOS = P["tokenizer"]["alphabet"], 0
NUMBER = {c: i + 2 for i, c in enumerate(ALPHABET)}

def encode(text):
    return [NUMBER.get(c, 1) for c in text]

def decode(ids):
    return "".join(ALPHABET[i - 2] if i >= 2 else "\\ufffd" for i in ids if i)
""",
    "bytes": """\
BOS = 256

def encode(text):
    return list(text.encode())

def decode(ids):
    return bytes(i for i in ids if i < 256).decode(errors="replace")
""",
}

_CLASSES = """\
def answers(outputs):
    scores = np.exp(outputs[0] - outputs[0].max(-1, keepdims=True))
    for row in scores / scores.sum(-1, keepdims=True):
        yield {"prediction": LABELS[row.argmax()]} | {f"probability_{label}": float(p) for label, p in zip(LABELS, row)}
"""
_VALUES = """\
def answers(outputs):
    scale = P.get("target_scale") or {"center": [0.0], "scale": [1.0]}
    for row in outputs[0].astype(np.float64) * np.array(scale["scale"]) + np.array(scale["center"]):
        names = ["prediction"] if len(row) == 1 else [f"prediction_{label}" for label in LABELS]
        yield dict(zip(names, row.tolist()))
"""
_FORECASTS = """\
def answers(outputs):
    n, K = P["normalize"], P["targets"]
    values = outputs[0].astype(np.float64) * np.array(n["scale"][:K]) + np.array(n["center"][:K])
    names = ["prediction"] if K == 1 else [f"prediction_{name}" for name in P["columns"][:K]]
    for step, row in enumerate(values[0].tolist()):
        yield {"step": step + 1} | dict(zip(names, row))
"""
_SPOKEN = """\
def answers(outputs):
    for path, n in zip(outputs[0].argmax(-1), outputs[1]):
        said = [c for i, c in enumerate(path[:n]) if c and (i == 0 or path[i - 1] != c)]
        yield {"prediction": "".join(LABELS[c] for c in said).strip()}
"""
_GENERATE = """\
def continued(prompt, tokens=40):
    ids = [BOS, *encode(prompt)]
    begin = len(ids)
    shortest, longest = BUNDLE["signature"]["ranges"]["time"]
    while len(ids) < begin + tokens:
        seen = ids[-longest:]
        padded = seen + [0] * (shortest - len(seen))  # what follows a token does not change it
        ids.append(int(compute([np.array([padded], np.int64)])[0][0, len(seen) - 1].argmax()))
        if ids[-1] == BOS:
            break
    return decode(ids[begin:])

for prompt in sys.argv[1:]:
    print(json.dumps({"prompt": prompt, "text": continued(prompt)}, ensure_ascii=False))
"""
_MAIN = """\
for path in sys.argv[1:]:
    arrays = examples(path)
    for start in range(0, len(arrays[0]), 64):
        for answer in answers(compute([a[start : start + 64] for a in arrays])):
            print(json.dumps(answer, ensure_ascii=False))
"""


def script_of(kind: str, record: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return (script, "") for a bundle's record, or (None, the reason why there is none)."""
    if kind in _NO_SCRIPT:
        return None, _NO_SCRIPT[kind]
    reason = _refusal(record)
    if reason:
        return None, reason
    library, load = _RUNTIMES[kind]
    needs, settings, pieces = _data_pieces(record)
    generates = record["task"]["kind"] == "language-modelling"
    what = "PROMPT" if generates else "FILE"
    libraries = [library, "numpy", *sorted({"PIL": "pillow"}.get(n, n) for n in needs if n in ("PIL", "tokenizers"))]
    standard = sorted({"json", "sys", *(n for n in needs if n not in ("PIL", "tokenizers"))})
    third = ["import numpy as np", f"import {library}", *(["import tokenizers"] if "tokenizers" in needs else [])]
    third += ["from PIL import Image, ImageOps"] if "PIL" in needs else []
    head = [
        f'"""Predict with this bundle, without Tauon and without torch: python predict.py {what} ...\n\nNeeds: pip install {" ".join(libraries)}\n"""\n',
        "".join(f"import {n}\n" for n in standard) + "from pathlib import Path\n\n" + "\n".join(third) + "\n",
        'HERE = Path(__file__).resolve().parent\nBUNDLE = json.loads((HERE / "bundle.json").read_text(encoding="utf-8"))\n'
        f'P, LABELS = BUNDLE["preprocess"], BUNDLE["labels"]\n{settings}',
    ]
    return "\n".join([*head, load, *pieces]), ""


def _data_pieces(record: Mapping[str, Any]) -> tuple[set[str], str, list[str]]:
    """Return (libraries, constants, pieces of code) of the data's kind and the task."""
    preprocess, source, task = record["preprocess"], record["source"], record["task"]["kind"]
    kind, delimiter = preprocess["kind"], source.get("delimiter")
    answers = {"regression": _VALUES, "forecasting": _FORECASTS, "speech-recognition": _SPOKEN}.get(task, _CLASSES)
    rows = f"DELIMITER = {delimiter if isinstance(delimiter, str) and len(delimiter) == 1 else ','!r}\n"
    if task == "language-modelling":
        encoder = preprocess["tokenizer"]["kind"]
        return ({"tokenizers"} if encoder == "subword" else set()), "", [_ENCODERS[encoder], _GENERATE]
    if kind == "table":
        return {"csv", "unicodedata"}, rows, [_NORMALIZE, _ROWS, _TABLE, answers, _MAIN]
    if kind == "arrays" and preprocess.get("features"):
        return {"csv"}, rows, [_NORMALIZE, _ROWS, _NUMBERS, answers, _MAIN]
    if kind == "arrays":
        size = (
            f"SIZE, FIT, COLOURS = {source.get('size') is not None}, {source.get('fit') or 'crop'!r}, {source.get('colours') or 'auto'!r}\n"
        )
        return {"PIL"}, size, [_NORMALIZE, _PICTURES, answers, _MAIN]
    if kind == "signals":
        return {"wave"}, "", [_RECORDINGS, answers, _MAIN]
    if kind == "series":
        return {"csv"}, rows, [_NORMALIZE, _ROWS, _SERIES, answers, _MAIN]
    encoder, text = preprocess["tokenizer"]["kind"], source.get("text") or "text"
    names = [text] if isinstance(text, str) else list(text)
    libraries = {"csv"} | ({"tokenizers"} if encoder == "subword" else set())
    return libraries, rows + f"TEXT = {names!r}\n", [_ENCODERS[encoder], _ROWS, _TEXTS, answers, _MAIN]


_TASKS = (
    "classification", "text-classification", "audio-classification", "regression", "forecasting", "speech-recognition", "language-modelling",
)  # fmt: skip


def _refusal(record: Mapping[str, Any]) -> str:
    """Return why a short script would not give the predictions of `tauon predict`; "" if it does."""
    preprocess, source, task = record["preprocess"], record["source"], record["task"]
    kind, why = preprocess.get("kind"), ""
    if task["kind"] not in _TASKS:
        why = f"the task {task['kind']} is not in it"
    elif kind not in ("table", "arrays", "signals", "series", "labelled-text", "tokens"):
        why = f"data of kind {kind} is not in it"
    elif task.get("loss_kind") == "quantile":
        why = "quantiles are not in it"
    elif (preprocess.get("normalize") or {}).get("kind") == "quantile":
        why = "data.normalize: quantile is not in it"
    elif "scattering" in preprocess:
        why = "features by scattering are not in it"
    elif "pixel_range" in preprocess:
        why = "images of more than 8 bits are not in it"
    elif kind == "arrays" and not preprocess.get("features") and len(preprocess["input_shape"]) != 3:
        why = "arrays are not in it"
    elif kind == "series" and preprocess.get("calendar"):
        why = "calendar features are not in it"
    elif source.get("header") is False:
        why = "files without a header are not in it"
    elif len(str(source.get("delimiter") or ",")) != 1:
        why = "columns that are separated by blanks are not in it"
    elif kind == "series" and source.get("numbers"):
        why = "numbers written in a way of their own are not in it"
    elif kind == "table":
        odd = next((c for c in preprocess["columns"]["columns"] if c["kind"] == "date" or "form" in c), None)
        why = "" if odd is None else f"column {odd['name']!r} has dates, or numbers written in a way of their own, which are not in it"
    return f"no predict.py: it is kept short, and {why}. Use `tauon predict`" if why else ""
