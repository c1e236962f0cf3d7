"""Writes and reads Hugging Face's tokenizer.json.

Three fields decide the ids of plain text: `pre_tokenizer` cuts it into pieces, `model`
holds vocabulary and merges, and `added_tokens` the special tokens. The three kinds of
tokenizer look like this:

    bpe    pre_tokenizer ByteLevel    model BPE with merges    decoder ByteLevel
    byte   pre_tokenizer ByteLevel    model BPE, no merges     decoder ByteLevel
    char   pre_tokenizer null         model BPE, no merges     decoder Fuse

A file that asks for something unsupported that would change the ids is refused.

Source: https://huggingface.co/docs/tokenizers, the `tokenizers` library's
serialisation.
"""

import json

from npllm.errors import DataError
from npllm.tokenizer.pretokenize import GPT2_SPLIT
from npllm.tokenizer.vocabulary import Vocabulary, check_vocabulary

SUPPORTED_PRE_TOKENIZERS = (
    "ByteLevel with add_prefix_space=false and use_regex=true, "
    "or a Sequence of Split (a Regex, behavior Isolated) and ByteLevel with use_regex=false"
)


def to_json(vocabulary: Vocabulary) -> bytes:
    """Return the content of the file. Equal vocabularies give equal bytes."""
    texts = vocabulary.texts()
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(text, i) for text, i in vocabulary.special_tokens.items()],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(vocabulary),
        "post_processor": None,
        "decoder": _byte_level(use_regex=True) if vocabulary.byte_level else {"type": "Fuse"},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": vocabulary.ignore_merges,
            "vocab": {text: i for i, text in enumerate(texts)},
            # Every release of the library reads "a b"; only newer ones read ["a", "b"].
            "merges": [f"{texts[left]} {texts[right]}" for left, right in vocabulary.merges],
        },
    }
    return (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode("utf-8")


def _added_token(text: str, token_id: int) -> dict:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": text, **flags}


def _byte_level(use_regex: bool) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _pre_tokenizer(vocabulary: Vocabulary) -> dict | None:
    if not vocabulary.byte_level:
        return None
    if vocabulary.split_pattern == GPT2_SPLIT:
        return _byte_level(use_regex=True)
    split = {
        "type": "Split",
        "pattern": {"Regex": vocabulary.split_pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(use_regex=False)]}


def from_json(document: object, source: str) -> Vocabulary:
    """Return the vocabulary of a parsed tokenizer.json.

    Raises DataError, which names `source`, when it cannot be used.
    """
    model = _field(document, "model", dict, source)
    split_pattern = _read_split_pattern(document, source)
    byte_level = split_pattern is not None
    _refuse_unsupported(document, model, byte_level, source)
    return check_vocabulary(
        source,
        _field(model, "vocab", dict, source, within="model."),
        [_read_merge(merge, source) for merge in _field(model, "merges", list, source, within="model.")],
        _read_special_tokens(document, source),
        byte_level=byte_level,
        split_pattern=split_pattern if byte_level else GPT2_SPLIT,
        ignore_merges=model.get("ignore_merges") is True,
    )


def _field(container: object, name: str, expected: type, source: str, within: str = "") -> object:
    value = container.get(name) if isinstance(container, dict) else None
    if not isinstance(value, expected):
        kind = {dict: "an object", list: "a list"}[expected]
        raise DataError(f"{source} has no field {within + name!r} that is {kind}; save or download the file again.")
    return value


def _read_merge(merge: object, source: str) -> tuple[str, str]:
    """The two tokens of a merge, written as "a b" or as ["a", "b"]."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise DataError(f"{source} has the merge {merge!r:.80}; write it as two tokens, 'a b' or ['a', 'b'].")
    return parts[0], parts[1]


def _refuse_unsupported(document: dict, model: dict, byte_level: bool, source: str) -> None:
    if model.get("type", "BPE") != "BPE":
        raise DataError(f"{source} has a model of type {model['type']!r:.80}; only 'BPE' is supported.")
    if document.get("normalizer") is not None:
        raise DataError(f"{source} has the normalizer {_name(document['normalizer'])}; only null is supported.")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            raise DataError(f"{source} has {option} = {model[option]!r:.80} in its model; only null is supported.")
    if not byte_level:
        decoder = document.get("decoder")
        if _name(decoder) != "'Fuse'":
            raise DataError(
                f"{source} has no pre_tokenizer and the decoder {_name(decoder)}; "
                f"supported are {SUPPORTED_PRE_TOKENIZERS}, or no pre_tokenizer and the decoder 'Fuse' (characters)."
            )
        if model.get("unk_token") is not None:
            raise DataError(
                f"{source} has unk_token = {model['unk_token']!r:.80} in its model; only null is supported."
            )


def _name(component: object) -> str:
    """The words of a message for a part of the file, such as {"type": "NFC"}."""
    name = component["type"] if isinstance(component, dict) and "type" in component else component
    return f"{name!r:.80}"


def _read_split_pattern(document: dict, source: str) -> str | None:
    """The regular expression that cuts text into pieces; None if text is not cut."""
    pre_tokenizer = document.get("pre_tokenizer")
    if pre_tokenizer is None:
        return None
    if _is_byte_level(pre_tokenizer, use_regex=True):
        return GPT2_SPLIT
    match pre_tokenizer:
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", **split},
                byte_level,
            ],
        } if not split.get("invert") and _is_byte_level(byte_level, use_regex=False):
            return pattern
    raise DataError(
        f"{source} has the pre_tokenizer {_describe(pre_tokenizer)}; supported is {SUPPORTED_PRE_TOKENIZERS}."
    )


def _is_byte_level(component: object, use_regex: bool) -> bool:
    return (
        isinstance(component, dict)
        and component.get("type") == "ByteLevel"
        and component.get("add_prefix_space", True) is False
        and component.get("use_regex", True) is use_regex
    )


def _describe(pre_tokenizer: object) -> str:
    """The component in at most 200 characters on one line."""
    text = json.dumps(pre_tokenizer, ensure_ascii=False)
    return text if len(text) <= 200 else text[:200] + "..."


def _read_special_tokens(document: dict, source: str) -> dict[str, int]:
    special_tokens: dict[str, int] = {}
    if document.get("added_tokens") is None:
        return special_tokens
    for entry in _field(document, "added_tokens", list, source):
        match entry:
            case {"id": int(token_id), "content": str(text)}:
                pass
            case _:
                raise DataError(f"{source} has the added token {entry!r:.80}; give it an integer id and a content.")
        if entry.get("special") is not True:
            raise DataError(f"{source} has the added token {text!r:.80} with special = false; only true is supported.")
        for option in ("lstrip", "rstrip", "single_word"):
            if entry.get(option):
                raise DataError(f"{source} has the added token {text!r:.80} with {option}; only false is supported.")
        if text in special_tokens:
            raise DataError(f"{source} has the added token {text!r:.80} twice; remove one of them.")
        special_tokens[text] = token_id
    return special_tokens
