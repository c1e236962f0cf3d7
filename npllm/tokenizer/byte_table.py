"""The table that writes any byte as one printable character, as in GPT-2.

A byte-level tokenizer stores its tokens in JSON. But most bytes above 126 are not
characters by themselves, and a space or newline inside a token is hard to see. So each
of the 256 bytes gets a character: a byte that is printable in Latin-1 is its own, and
the 68 others take U+0100, U+0101, ... in order. A space becomes "Ġ" and a newline "Ċ".
GPT-2 also numbers the bytes in this order, printable ones first: the id of the byte "a"
is 64, not 97.

Source: Radford, Wu, Child, Luan, Amodei & Sutskever, "Language models are unsupervised
multitask learners", 2019.
"""

PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
NOT_PRINTABLE = [byte for byte in range(256) if byte not in PRINTABLE]

ID_TO_BYTE = PRINTABLE + NOT_PRINTABLE
BYTE_TO_ID = sorted(range(256), key=ID_TO_BYTE.__getitem__)

BYTE_TO_CHARACTER = {byte: chr(byte) for byte in PRINTABLE} | {
    byte: chr(0x100 + place) for place, byte in enumerate(NOT_PRINTABLE)
}
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}


def bytes_to_text(token: bytes) -> str:
    """Return the characters that stand for the bytes of a token: b" the" -> "Ġthe"."""
    return "".join([BYTE_TO_CHARACTER[byte] for byte in token])


def text_to_bytes(text: str) -> bytes:
    """Return the bytes that the characters stand for: "Ġthe" -> b" the".

    Raises KeyError for a character that stands for no byte.
    """
    return bytes([CHARACTER_TO_BYTE[character] for character in text])
